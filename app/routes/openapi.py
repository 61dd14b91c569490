"""What the OpenAPI document says of bodies that the routes read and write themselves."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from inspect import cleandoc
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app.errors import KINDS, DeviceOutOfMemory, Forbidden, RateLimited, Unauthorized
from app.formats import CSV, FORMATS, JSON, NPY, SAFETENSORS
from app.http.access import PROBES
from app.http.bodies import ARRAY_FIELD, JSON_ALONE
from app.http.problems import is_of_protocol
from app.inference import ErrorAnswer
from app.routes.examples import Examples
from app.schemas import Fields, ProblemAnswer

Responses = dict[int | str, dict[str, Any]]

# Where tokens are set, either is needed; where none are, neither is.
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token, as `dictserve token new` makes them."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same token."},
}
NAMES = {413: "Content Too Large", 422: "Unprocessable Content"}  # of statuses, where Python before 3.13 has old ones
PROBLEM = {"schema": {"$ref": f"#/components/schemas/{ProblemAnswer.__name__}"}}
PROBLEM_CONTENT = {"application/problem+json": PROBLEM}
ERROR_CONTENT = {JSON.media_types[0]: {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}
SCALARS = {"string", "integer", "boolean"}
BINARY = {"type": "string", "format": "binary"}
SCHEMAS = {
    NPY.name: BINARY | {"description": "An array as `numpy.save` writes it; little-endian float32 is fastest."},
    SAFETENSORS.name: BINARY | {"description": f"A tensor `{ARRAY_FIELD}`, or the only one; answers name theirs."},
    CSV.name: {"type": "string", "description": "A row a line; a body may begin with a header line."},
}


def header(description: str, type: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": type}}


ETAG = {"ETag": header("Of what is answered, for If-None-Match.")}
UNCHANGED: Responses = {304: {"description": "It is as it was (If-None-Match).", "headers": ETAG}}
TAGGED: Responses = {200: {"headers": ETAG}, **UNCHANGED}
RETRY_AFTER = {"Retry-After": header("Seconds after which to ask again.", "integer")}
RETRIED = {kind.status for kind in KINDS.values() if kind.retry_after_seconds is not None}
CHALLENGE = {"WWW-Authenticate": header("`Bearer`, and what is wrong with the token (RFC 6750).")}
REFUSED: Mapping[type[Exception], dict[str, Any]] = {
    Unauthorized: CHALLENGE,
    Forbidden: CHALLENGE,
    RateLimited: RETRY_AFTER,
}

# Of parameters that say nothing themselves, as they mean the same wherever they are.
MEANINGS = {
    "id": "A job, by its id.",
    "reference": "A dictionary, `name` for its latest version, or `name@version`.",
    "a": "A dictionary, `name` or `name@version`.",
    "b": "Another, of as many features.",
    "concept": "A row of D, counted from 0.",
    "name": "A dictionary.",
    "version": "One of its versions.",
    "limit": "At most so many.",
    "accept": "Media types that the answer may have.",
    "prefer": "`wait=` and the most seconds to wait for the job's end.",
    "idempotency-key": "Of the client's choice: while the record of its job is there, it makes no second one.",
    "if-match": "An `ETag` of before; where it holds no more, the answer is 412 and nothing is done.",
    "if-none-match": "An `ETag` of before; the answer is 304 where it still holds.",
    "last-event-id": "The last event that came: what follows it is sent.",
}


def json_body(model: type[Fields], examples: Examples, *others: str) -> dict[str, Any]:
    """A body of fields alone, as JSON or any of these other media types."""
    told = {"schema": model.model_json_schema(), "examples": examples}
    return {"required": True, "content": dict.fromkeys((JSON.media_types[0], *others), told)}


def struct_schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """A msgspec type's schema, whole: references would not be found from where it stands in the document."""
    (schema,), definitions = msgspec.json.schema_components([struct])

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolved(definitions[part["$ref"].rpartition("/")[2]])
        # Python before 3.13 leaves a docstring's indent where it is
        return {key: cleandoc(value) if key == "description" else resolved(value) for key, value in part.items()}

    whole: dict[str, Any] = resolved(schema)
    return whole


def array_body(model: type[Fields], examples: Examples, csv: str) -> dict[str, Any]:
    """A body in any format: as JSON the whole model, else the array, the other fields being query parameters.

    Their schemas have no defaults: Swagger UI would fill those in, and send them beside a JSON body too, which is
    refused.

    Args:
        examples: of JSON bodies, by name.
        csv: an example of a CSV body.
    """
    body = json_body(model, examples)
    body["content"].update(_content())
    body["content"][CSV.media_types[0]]["example"] = csv
    schema = model.model_json_schema()
    required = schema.get("required", [])
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,  # with a JSON body it stands in the body
            "schema": {key: value for key, value in told.items() if key not in ("description", "default")},
            "description": f"{told.get('description', '')}{_default(told)} Only with a body that is not JSON"
            + (", and then required." if name in required else "."),
        }
        for name, told in schema["properties"].items()
        if name not in JSON_ALONE | {ARRAY_FIELD}
    ]
    return {"requestBody": body, "parameters": parameters}


def _default(told: Mapping[str, Any]) -> str:
    default = told.get("default")
    return "" if default is None else f" By default `{default if isinstance(default, str) else json.dumps(default)}`."


def array_answers(model: type[BaseModel], headers: Mapping[str, Any] | None = None) -> Responses:
    """An answer with arrays in any format; as JSON the whole model. Its scalars are headers too, beside these."""
    properties = model.model_json_schema()["properties"]
    scalars = {
        f"Dictserve-{name.title()}": header(told.get("description", "As in the JSON."), told["type"])
        for name, told in properties.items()
        if told.get("type") in SCALARS
    }
    # JSON, whose schema FastAPI adds, comes first: Swagger UI asks for the first, and shows others as bytes
    content = {JSON.media_types[0]: {}, **_content()}
    return {200: {"model": model, "content": content, "headers": scalars | dict(headers or {})}}


def problems(*statuses: int) -> Responses:
    return answers(ProblemAnswer, *statuses)


def answers(model: type[BaseModel], *statuses: int) -> Responses:
    return {
        status: {
            "model": model,
            "description": NAMES.get(status) or HTTPStatus(status).phrase,
            **({"headers": RETRY_AFTER} if status in RETRIED else {}),
        }
        for status in statuses
    }


def device_full(model: type[BaseModel]) -> Responses:
    """507 of what is computed: unlike that of a full store, it does not tell when to ask again."""
    kind = KINDS[DeviceOutOfMemory]
    return {kind.status: {"model": model, "description": f"{kind.title}."}}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, in which errors have the media type that they are sent with, what needs a token tells
    how one may be refused, and parameters that several paths have tell what they mean."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, operations in told["paths"].items():
            for operation in operations.values():
                for response in operation["responses"].values():
                    _as_problem(response)
                for parameter in operation.get("parameters", ()):
                    if "description" not in parameter:
                        parameter["description"] = MEANINGS[parameter["name"]]
                responses = operation["responses"] | _refusals(path)
                operation["responses"] = dict(sorted(responses.items()))
        told["components"]["securitySchemes"] = SECURITY
        told["security"] = [{}, *({name: []} for name in SECURITY)]
        app.openapi_schema = told
    return app.openapi_schema


def _as_problem(response: dict[str, Any]) -> None:
    """FastAPI files every model under the media type of the route's own answer."""
    if PROBLEM in response.get("content", {}).values():
        response["content"] = PROBLEM_CONTENT


def _refusals(path: str) -> dict[str, Any]:
    """Where tokens are set, how a path's operations refuse one; nothing of those that need none."""
    if path in PROBES:
        return {}
    content = ERROR_CONTENT if is_of_protocol(path) else PROBLEM_CONTENT
    told = [(KINDS[error], {"headers": headers} if headers else {}) for error, headers in REFUSED.items()]
    return {str(kind.status): {"description": f"{kind.title}.", "content": content} | more for kind, more in told}


def _content() -> dict[str, Any]:
    return {f.media_types[0]: {"schema": SCHEMAS[f.name]} for f in FORMATS if f is not JSON}
