"""``/dictionaries``: what has been fitted, and how good it is."""

import logging

from fastapi import APIRouter

from app.errors import DictionaryDamaged, InvalidFields, UnknownDictionary
from app.routes.openapi import problems
from app.schemas import DictionaryList
from app.services import ServicesDep
from app.store import DictionaryRecord, Reference

logger = logging.getLogger("dictserve")

router = APIRouter(prefix="/dictionaries", tags=["dictionaries"])


@router.get(
    "",
    summary="The latest version of every dictionary",
    response_model_exclude={"dictionaries": {"__all__": {"loss_history": True, "metrics": {"energy"}}}},
)
def list_dictionaries(services: ServicesDep) -> DictionaryList:
    """Without what grows with the dictionary, which is told of one at a time. A damaged version is left out of the
    list, and told of when it is asked for."""
    found = []
    for name in services.store.names():
        try:
            found.append(services.store.described(Reference(name)))
        except DictionaryDamaged as error:
            logger.error("left out of the list: %s", error)
        except UnknownDictionary:
            continue  # removed since it was listed
    return DictionaryList(dictionaries=found)


@router.get("/{reference}", summary="A dictionary with its metrics", responses=problems(404, 422, 500))
def get_dictionary(reference: str, services: ServicesDep) -> DictionaryRecord:
    """By name (the latest version) or as `name@version`."""
    try:
        parsed = Reference.parse(reference)
    except ValueError as error:
        raise InvalidFields.at("reference", msg=str(error)) from None
    return services.store.described(parsed)
