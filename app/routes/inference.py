"""``/v2``: the Open Inference Protocol (KServe v2), as clients of Triton speak it. Each dictionary is a model.

The bodies are the protocol's own; limits, validation and work are those of ``/encode`` and ``/decode``.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from app import __version__
from app.errors import (
    BodyTooLarge,
    DictionaryDamaged,
    InvalidFields,
    StoreUnavailable,
    UnknownDictionary,
    WorkerUnavailable,
)
from app.formats import inference_format
from app.formats.inference_format import LENGTH_HEADER, InferenceRequest
from app.http.access import take_rows
from app.http.bodies import TEXT_GROWTH, Limit, aside, in_memory, model_with_array, read_body
from app.http.problems import PROTOCOL
from app.http.responses import ReadyResponse
from app.http.shares import share_of_answers
from app.inference import (
    EXTENSIONS,
    INPUT,
    OUTPUTS,
    ErrorAnswer,
    InferenceAnswer,
    Live,
    ModelMetadata,
    ModelReady,
    ModelState,
    Ready,
    ServerMetadata,
    configuration,
    metadata,
)
from app.memory_budget import Share
from app.routes import examples
from app.routes.openapi import BINARY, Responses, answers, device_full, header, struct_schema
from app.routes.references import parsed
from app.schemas import DecodeRequest, EncodeRequest
from app.services import Services, ServicesDep
from app.settings import Settings
from app.store.records import DictionaryRecord
from app.store.references import Reference
from core.errors import OutOfRange

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

router = APIRouter(prefix=PROTOCOL, tags=["open inference protocol"])

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
INDEX = Limit(4096, "All that the request for an index may say is whether `ready`")

MODEL_ROUTES = {"/models/{name}": ["name"], "/models/{name}/versions/{version}": ["name", "version"]}
STATISTICS = "stats"  # in the place of a model's name, the protocol's call for those of all
INFER = "/infer"
FLOAT64 = ", or compute in float64 (dtype=float64)"  # advice of core's that no request of the protocol can take
INFER_ROUTES = [f"{PROTOCOL}{model}{INFER}" for model in MODEL_ROUTES]


class IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    ready: bool = False


def _errors(*statuses: int) -> Responses:
    return answers(ErrorAnswer, *statuses)


def _of_model(
    method: str, path: str, summary: str, responses: Responses, **more: Any
) -> Callable[[Endpoint], Endpoint]:
    """Registers a route of a dictionary, and the same of one version of it; ``more`` goes to its OpenAPI entry."""

    def register(endpoint: Endpoint) -> Endpoint:
        for model, names in MODEL_ROUTES.items():
            parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
            router.add_api_route(
                model + path,
                endpoint,
                methods=[method],
                summary=summary,
                responses=responses,
                openapi_extra={"parameters": parameters} | more,
            )
        return endpoint

    return register


def _referred(request: Request) -> Reference:
    """The dictionary that a path means: a version, or else the latest."""
    name, version = request.path_params["name"], request.path_params.get("version")
    return parsed(name if version is None else f"{name}@{version}", "model")


ReferenceDep = Annotated[Reference, Depends(_referred)]


@router.get("", summary="The server, and the extensions of the protocol that it speaks")
async def server_metadata() -> ServerMetadata:
    return ServerMetadata(name="dictserve", version=__version__, extensions=list(EXTENSIONS))


@router.get("/health/live", summary="Whether the process answers")
async def live() -> Live:
    return Live(live=True)


@router.get("/health/ready", summary="Whether the worker takes work", responses=_errors(503))
async def ready(services: ServicesDep) -> Ready:
    _require_worker(services)
    return Ready(ready=True)


@router.post(
    "/repository/index",
    summary="Every version of every dictionary",
    responses=_errors(400, 413, 415, 422, 503),
    openapi_extra={
        "requestBody": {
            "content": {"application/json": {"schema": struct_schema(IndexRequest), "examples": examples.INDEX}}
        }
    },
)
async def repository_index(request: Request, services: ServicesDep) -> list[ModelState]:
    """With `{"ready": true}` only those that can be used now."""
    body = await read_body(request, INDEX)
    told = inference_format.decoded(bytes(body), IndexRequest) if body else IndexRequest()
    states = await asyncio.to_thread(_states, services)
    return [state for state in states if state.state == READY or not told.ready]


@_of_model("GET", "", "A dictionary's tensors", _errors(404, 422, 500, 503))
def model_metadata(reference: ReferenceDep, services: ServicesDep) -> ModelMetadata:
    try:
        record = services.store.record(reference)
    except UnknownDictionary as error:
        if reference.name != STATISTICS:
            raise
        raise UnknownDictionary(f"statistics are not kept; as for a model, {error}") from None
    return metadata(record, services.store.versions(record.name))


@_of_model("GET", "/config", "The same as Triton's model configuration", _errors(404, 422, 500, 503))
def model_configuration(reference: ReferenceDep, services: ServicesDep) -> dict[str, Any]:
    return configuration(model_metadata(reference, services))


@_of_model("GET", "/ready", "Whether a dictionary can be used now", _errors(404, 422, 500, 503))
def model_ready(reference: ReferenceDep, services: ServicesDep) -> ModelReady:
    record = services.store.record(reference)
    _require_worker(services)
    return ModelReady(name=record.name, ready=True)


@_of_model(
    "POST",
    INFER,
    "Encode activations, or decode codes",
    {
        200: {
            "model": InferenceAnswer,
            "content": {"application/octet-stream": {"schema": BINARY}},
            "headers": {LENGTH_HEADER: header("Of the JSON in bytes, where those of tensors follow it.", "integer")},
        },
        **_errors(400, 404, 413, 415, 422, 500, 503),
        **device_full(ErrorAnswer),
    },
    requestBody={
        "required": True,
        "content": {
            "application/json": {"schema": struct_schema(InferenceRequest), "examples": examples.INFER},
            "application/octet-stream": {"schema": BINARY},
        },
    },
)
async def infer(request: Request, services: ServicesDep) -> Response:
    """The input `activations` gives the output `codes`; `converged`, `relative_error` and `reconstruction` where they
    are asked for. With the parameter `task: "decode"` the input `codes` gives the output `activations`."""
    told, fields = await _read(request, _referred(request), services.settings)
    take_rows(request, len(fields.data))
    wanted = _wanted(told)
    binary = _binary(told, wanted)
    growth = 1 if binary.issuperset(wanted) else TEXT_GROWTH
    try:
        record, arrays = await _solved(services, fields, wanted, share_of_answers(request.scope), growth)
    except OutOfRange as error:
        raise OutOfRange(str(error).replace(FLOAT64, "")) from None
    answer: dict[str, object] = {"model_name": record.name, "model_version": str(record.version)}
    if "converged" in arrays:
        answer["parameters"] = {"converged": bool(arrays["converged"].all())}
    if told.id is not None:
        answer["id"] = told.id
    outputs = {name: arrays[name] for name in wanted}
    as_text = sum(array.nbytes for name, array in outputs.items() if name not in binary)
    body, length = await aside(as_text, lambda: inference_format.write(answer, outputs, binary))
    if not binary:
        return ReadyResponse(body, "application/json", {})
    return ReadyResponse(body, "application/octet-stream", {LENGTH_HEADER.lower(): str(length)})


async def _read(
    request: Request, reference: Reference, settings: Settings
) -> tuple[InferenceRequest, EncodeRequest | DecodeRequest]:
    """A request as the protocol has it, and as ``/encode`` or ``/decode`` would have it."""
    length = inference_format.json_length(request.headers.get(LENGTH_HEADER))
    if length is not None and length > settings.max_json_bytes:
        raise BodyTooLarge(f"the JSON may have {settings.max_json_bytes} bytes; this has {length}")
    body = await read_body(request, in_memory(settings, is_json=length is None), aligned_at=length or 0)

    def parse() -> tuple[InferenceRequest, EncodeRequest | DecodeRequest]:
        told, array = inference_format.read(body, length)
        _require_input(told, reference)
        try:
            return told, _fields(told, reference, array, settings)
        except InvalidFields as error:
            raise inference_format.of_input(error) from None

    return await aside(len(body), parse)


def _fields(
    told: InferenceRequest, reference: Reference, array: np.ndarray, settings: Settings
) -> EncodeRequest | DecodeRequest:
    fields: dict[str, object] = {"dictionary": str(reference)}
    if told.options.task == "decode":
        if told.options.clip:
            raise InvalidFields.at("parameters", "clip", msg="activations alone are clipped, and decode takes codes")
        return model_with_array(DecodeRequest, fields, array, settings)
    if told.options.clip:
        fields["clip"] = True
    fields["reconstruct"] = "relative_error" in _wanted(told)
    return model_with_array(EncodeRequest, fields, array, settings)


def _require_input(told: InferenceRequest, reference: Reference) -> None:
    if told.model_name not in (None, reference.name):
        raise InvalidFields.at("model_name", msg=f"it is not {reference.name!r}, which the path names")
    task = told.options.task
    if told.inputs[0].name != INPUT[task]:
        raise InvalidFields.at("inputs", 0, "name", msg=f"the input of {task} is {INPUT[task]!r}")


def _wanted(told: InferenceRequest) -> list[str]:
    """The outputs asked for, in their order; the task's first where none are named."""
    task = told.options.task
    able = OUTPUTS[task]
    names = [output.name for output in told.outputs or ()] or [able[0]]
    for index, name in enumerate(names):
        if name not in able:
            raise InvalidFields.at("outputs", index, "name", msg=f"the outputs of {task} are {', '.join(able)}")
        if name in names[:index]:
            raise InvalidFields.at("outputs", index, "name", msg=f"{name!r} is asked for twice")
    return names


def _binary(told: InferenceRequest, wanted: Sequence[str]) -> set[str]:
    """The outputs to be answered as bytes: as each of them says, or else as the request does."""
    said = {output.name: output.parameters.binary_data for output in told.outputs or () if output.parameters}
    default = told.options.binary_data_output
    return {name for name in wanted if (default if said.get(name) is None else said[name])}


async def _solved(
    services: Services, fields: EncodeRequest | DecodeRequest, wanted: Sequence[str], share: Share, growth: int
) -> tuple[DictionaryRecord, dict[str, np.ndarray]]:
    """The dictionary used, and its outputs by name."""
    if isinstance(fields, DecodeRequest):
        record, (activations,) = await services.solve("decode", fields.dictionary, fields.data, share, growth=growth)
        return record, {"activations": activations}
    record, (codes, converged, *relative_errors) = await services.solve(
        "encode", fields.dictionary, fields.data, share, growth=growth, reconstruct=fields.reconstruct
    )
    arrays = {"codes": codes, "converged": converged.astype(np.bool_)}
    if relative_errors:
        arrays["relative_error"] = relative_errors[0]
    if "reconstruction" in wanted:  # of the version that encoded, though another may be the latest by now
        _, (arrays["reconstruction"],) = await services.solve(
            "decode", str(record.reference), codes, share, growth=growth
        )
    return record, arrays


def _require_worker(services: Services) -> None:
    if not services.workers.is_ready:
        raise WorkerUnavailable("no worker is ready; ask again in a moment")


def _states(services: Services) -> list[ModelState]:
    """A version that is damaged, or cannot be read now, hides no other."""
    is_ready = services.workers.is_ready
    store = services.store
    states = []
    for reference in [Reference(name, version) for name in store.names() for version in store.versions(name)]:
        told = {"name": reference.name, "version": str(reference.version)}
        try:
            store.record(reference)
        except (DictionaryDamaged, StoreUnavailable) as error:
            states.append(ModelState(**told, state=UNAVAILABLE, reason=str(error)))
        except UnknownDictionary:
            continue  # removed since it was listed
        else:
            states.append(
                ModelState(**told, state=READY)
                if is_ready
                else ModelState(**told, state=UNAVAILABLE, reason="no worker is ready")
            )
    return states
