"""``GET /dictionaries/{a}/compare/{b}``: which concept of one dictionary is which of another."""

import asyncio

import orjson
from fastapi import APIRouter, Request, Response

from app import __version__
from app.comparison import require_comparable
from app.http.disconnects import unless_gone
from app.http.etags import JSON_TYPE, IfNoneMatch, unchanged
from app.routes.openapi import TAGGED, problems
from app.routes.query import KNOWN_ALONE
from app.routes.references import parsed
from app.schemas import Comparison
from app.services import ServicesDep

router = APIRouter(prefix="/dictionaries", tags=["dictionaries"], dependencies=KNOWN_ALONE)


@router.get(
    "/{a}/compare/{b}",
    summary="Match the concepts of two dictionaries",
    response_model=Comparison,
    responses={**TAGGED, **problems(404, 422, 500, 503)},
)
async def compare(
    a: str, b: str, request: Request, services: ServicesDep, if_none_match: IfNoneMatch = ""
) -> Response:
    """Pairs of concepts, each in one pair at most, whose cosines together are largest (a linear assignment). Of two
    fits that differ in their seed alone, it tells how stable is what they found."""
    one = await asyncio.to_thread(services.store.record, parsed(a, "a"))
    other = await asyncio.to_thread(services.store.record, parsed(b, "b"))
    require_comparable(one, other)
    # What is told of two versions is the same for good, or until the service tells it otherwise.
    tag = f"{__version__}-{one.version}-{one.sha256}-{other.version}-{other.sha256}"
    if (known := unchanged(tag, if_none_match)) is not None:
        return known
    body = orjson.dumps(await unless_gone(request.scope, services.comparisons.between(one, other)))
    return Response(body, media_type=JSON_TYPE, headers={"ETag": f'"{tag}"'})
