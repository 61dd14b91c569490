"""``GET /dictionaries/{a}/compare/{b}``: which concept of one dictionary is which of another."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from app.routes.dictionaries import UNCHANGED, IfNoneMatch, parsed, tagged_json
from app.routes.openapi import problems
from app.schemas import Comparison
from app.services import Services, ServicesDep
from app.store import Reference

router = APIRouter(prefix="/dictionaries", tags=["dictionaries"])

NOBODY_WAITS = 499


@router.get(
    "/{a}/compare/{b}",
    summary="Match the concepts of two dictionaries",
    response_model=Comparison,
    responses={**UNCHANGED, **problems(404, 422, 500, 503)},
)
async def compare(
    a: str, b: str, request: Request, services: ServicesDep, if_none_match: IfNoneMatch = ""
) -> Response:
    """Pairs of concepts, each in one pair at most, whose cosines together are largest (a linear assignment). Of two
    fits that differ in their seed alone, it tells how stable is what they found."""
    comparing = asyncio.create_task(_compared(services, parsed(a, "a"), parsed(b, "b")))
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({comparing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not comparing.done():
            return Response(status_code=NOBODY_WAITS)
        return tagged_json(comparing.result(), if_none_match)
    finally:
        comparing.cancel()
        leaving.cancel()


async def _compared(services: Services, a: Reference, b: Reference) -> dict[str, Any]:
    one = await asyncio.to_thread(services.store.bring, a)
    other = await asyncio.to_thread(services.store.bring, b)
    return await services.comparisons.between(one, other)


async def _gone(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
