"""``/dictionaries/{reference}/concepts``: what is known of a dictionary's concepts."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.http.etags import IfNoneMatch, tagged_json
from app.routes.openapi import TAGGED, problems
from app.routes.query import KNOWN_ALONE
from app.routes.references import parsed
from app.schemas import Concept, ConceptColumns
from app.services import ServicesDep

router = APIRouter(prefix="/dictionaries", tags=["dictionaries"], dependencies=KNOWN_ALONE)


@router.get(
    "/{reference}/concepts",
    summary="All concepts, in columns",
    response_model=ConceptColumns,
    responses={**TAGGED, **problems(404, 422, 500, 503)},
)
def list_concepts(reference: str, services: ServicesDep, if_none_match: IfNoneMatch = "") -> Response:
    """A number of each concept in each column. A column is null where it is not known."""
    return tagged_json(services.concepts.all(parsed(reference)), if_none_match)


@router.get(
    "/{reference}/concepts/{concept}",
    summary="One concept",
    response_model=Concept,
    responses={**TAGGED, **problems(404, 422, 500, 503)},
)
def get_concept(
    reference: str, concept: Annotated[int, Path(ge=0)], services: ServicesDep, if_none_match: IfNoneMatch = ""
) -> Response:
    """Its weights, and what the fit has counted of it."""
    return tagged_json(services.concepts.one(parsed(reference), concept), if_none_match)
