"""``/dictionaries``: what has been fitted, and how good it is."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

import numpy as np
from fastapi import APIRouter, Header, Path, Request, Response

from app import __version__
from app.errors import InvalidFields, PreconditionFailed, UnknownDictionary
from app.formats import MERGE_PATCH, NPY, answer_format
from app.http.bodies import Limit, array_answer, read_fields, read_payload
from app.http.etags import IfMatch, IfNoneMatch, is_known, is_to_be_new, tagged, tagged_body
from app.http.shares import share_of_answers
from app.routes import examples
from app.routes.openapi import ETAG, TAGGED, UNCHANGED, array_answers, array_body, header, json_body, problems
from app.routes.query import KNOWN_ALONE
from app.routes.references import parsed
from app.schemas import DictionaryList, ImportRequest, LabelRequest, WeightsAnswer
from app.services import ServicesDep
from app.store.records import DictionaryRecord, Labels
from app.store.references import Reference
from app.store.store import Store

LABELS = Limit(8 * 1024 * 1024, "Set fewer labels at a time")
K = TypeVar("K")

router = APIRouter(prefix="/dictionaries", tags=["dictionaries"], dependencies=KNOWN_ALONE)


@router.get(
    "",
    summary="The latest version of every dictionary",
    responses=problems(422, 503),
    response_model_exclude={
        "dictionaries": {
            "__all__": {"loss_history": True, "concept_labels": True, "metrics": {"energy"}, "data": {"files"}}
        }
    },
)
def list_dictionaries(services: ServicesDep) -> DictionaryList:
    """Without what grows with a dictionary or its data, which is told of one at a time. In place of a version that is
    damaged or cannot be read, which is told of when it is asked for, stands the latest before it."""
    return DictionaryList(dictionaries=services.store.latest())


@router.get(
    "/{reference}",
    summary="A dictionary with its metrics",
    response_model=DictionaryRecord,
    responses={**TAGGED, **problems(404, 422, 500, 503)},
)
def get_dictionary(reference: str, services: ServicesDep, if_none_match: IfNoneMatch = "") -> Response:
    """By name (the latest version) or as `name@version`."""
    record = services.store.described(parsed(reference))
    return tagged_body(_as_json(record), if_none_match)


@router.get(
    "/{reference}/weights",
    summary="D itself",
    response_class=Response,
    responses={
        **array_answers(WeightsAnswer, ETAG),
        **UNCHANGED,
        **problems(404, 406, 422, 500, 503),
    },
)
def get_weights(
    reference: str,
    request: Request,
    services: ServicesDep,
    accept: Annotated[str, Header()] = "",
    if_none_match: IfNoneMatch = "",
) -> Response:
    """In any format, npy by default."""
    format = answer_format(accept, NPY)

    def answer(record: DictionaryRecord) -> Response:
        def weights() -> Response:
            nbytes = record.nb_concepts * record.n_features * np.dtype(np.float32).itemsize
            share_of_answers(request.scope).hold(nbytes, alone=True)  # before it is loaded, for many may ask at once
            D = services.store.load(record.name, record.version)
            return array_answer(format, {"dictionary": record.name, "version": record.version}, {"weights": D})

        return tagged(f"{record.sha256}-{record.version}-{format.name}", if_none_match, weights)

    return services.store.reading(parsed(reference), answer)


@router.put(
    "/{reference}",
    status_code=201,
    summary="Import a dictionary made elsewhere",
    responses={
        201: {"headers": {"Location": header("The new version.")}},
        **problems(400, 409, 412, 413, 415, 422, 500, 503, 507),
    },
    openapi_extra=array_body(ImportRequest, examples.IMPORT, examples.IMPORT_CSV),
)
async def import_dictionary(
    reference: Annotated[str, Path(description="The name that gets its next version.")],
    request: Request,
    response: Response,
    services: ServicesDep,
    if_match: IfMatch = None,
    if_none_match: Annotated[str, Header(description="`*`: where the name has a version, the answer is 412.")] = "",
) -> DictionaryRecord:
    """The next version of the name. It has no metrics: those are of a dictionary and the data it was fitted to."""
    wanted = parsed(reference)
    if wanted.version is not None:
        raise InvalidFields.at("reference", msg=f"an import makes the next version of {wanted.name!r}; leave out `@`")
    only_first = is_to_be_new(if_none_match)
    payload = await read_payload(request, ImportRequest, services.settings, answers_array=False)
    D = payload.fields.data
    if len(D) > services.settings.max_concepts:
        raise InvalidFields.at("data", msg=f"{len(D)} concepts; at most {services.settings.max_concepts} are taken")
    record = await services.threads(_import, services.store, wanted, D, if_match, only_first=only_first)
    response.headers["Location"] = f"/dictionaries/{record.reference}"
    return record


@router.patch(
    "/{reference}",
    summary="Label a dictionary and its concepts",
    responses=problems(400, 404, 412, 413, 415, 422, 500, 503, 507),
    openapi_extra={"requestBody": json_body(LabelRequest, examples.LABELS, MERGE_PATCH)},
)
async def label_dictionary(
    reference: str, request: Request, services: ServicesDep, if_match: IfMatch = None
) -> DictionaryRecord:
    """Labels that are given are set, null removes one, others stay. The dictionary itself never changes."""
    wanted = parsed(reference)
    patch = await read_fields(request, LabelRequest, LABELS)
    return await services.threads(_label, services.store, wanted, patch, if_match)


@router.delete(
    "/{reference}",
    status_code=204,
    response_class=Response,  # of no type: it has no body
    summary="Remove a version, or all of a name",
    responses=problems(404, 412, 422, 500, 503),
)
def delete_dictionary(reference: str, services: ServicesDep, if_match: IfMatch = None) -> None:
    """`name@3` removes that version, `name` all. A version's number is not given again."""
    store, wanted = services.store, parsed(reference)
    store.look_again(wanted.name)  # what others have made goes with the rest, and what they changed is no match
    name, version = store.resolve(wanted)
    versions = store.versions(name) if wanted.version is None else [version]

    def require() -> None:
        if if_match is not None:  # else nothing of it is read: what is damaged can be removed, too
            _require_match(store.described(wanted), if_match)

    store.remove(name, versions, require)


def _label(store: Store, reference: Reference, patch: LabelRequest, if_match: str | None) -> DictionaryRecord:
    store.look_again(reference.name)
    record = store.record(reference)
    beyond = [index for index in patch.concept_labels if int(index) >= record.nb_concepts]
    if beyond:
        told = f"there is no such concept: {record.reference} has {record.nb_concepts}, from 0"
        raise InvalidFields.at("concept_labels", beyond[0], msg=told)
    concept_labels = {int(index): label for index, label in patch.concept_labels.items()}

    def change(old: Labels) -> Labels:
        _require_match(record.model_copy(update={"versions": store.versions(record.name), **vars(old)}), if_match)
        return Labels(
            labels=_merged(old.labels, patch.labels),
            concept_labels=_merged(old.concept_labels, concept_labels),
        )

    store.relabel(record.name, record.version, change)
    return store.described(record.reference)


def _as_json(record: DictionaryRecord) -> bytes:
    return record.model_dump_json().encode()


def _require_match(record: DictionaryRecord, if_match: str | None) -> None:
    """Raises PreconditionFailed where the client knows the record as it is no more."""
    if not is_known(_as_json(record), if_match):
        told = (
            f"If-Match is no ETag of {record.reference} as it is now; GET /dictionaries/{record.reference} tells it"
        )
        raise PreconditionFailed(told)


def _require_latest_matches(store: Store, latest: Reference, if_match: str | None) -> None:
    """As ``_require_match``; of a name without a version there is nothing that the client could know."""
    try:
        record = store.described(latest)
    except UnknownDictionary as error:
        raise PreconditionFailed(f"If-Match asks for one that is there, and {error}") from None
    _require_match(record, if_match)


def _import(
    store: Store, latest: Reference, D: np.ndarray, if_match: str | None, *, only_first: bool
) -> DictionaryRecord:
    def require() -> None:
        if if_match is not None:
            _require_latest_matches(store, latest, if_match)

    if if_match is not None:
        store.look_again(latest.name)  # as the store does by itself before it asks
    require()  # before anything is written, too
    name = latest.name
    record = store.publish(
        name,
        D,
        require=require,
        only_first=only_first,
        parameters={"imported": True},
        data={},
        metrics={},
        software={"dictserve": __version__},
    )
    known = store.versions(name) if store.knows(name) else []  # it is done: nothing is asked of a network
    return record.model_copy(update={"versions": sorted({*known, record.version})})


def _merged(old: Mapping[K, str], patch: Mapping[K, str | None]) -> dict[K, str]:
    merged = {**old, **patch}
    return {key: value for key, value in merged.items() if value is not None}
