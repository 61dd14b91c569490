"""What the OpenAPI document says of bodies that the routes read and write themselves."""

from http import HTTPStatus
from inspect import cleandoc
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app.formats import CSV, FORMATS, JSON, NPY, SAFETENSORS
from app.http.bodies import ARRAY_FIELD, JSON_ALONE
from app.routes.examples import Examples
from app.schemas import Fields, ProblemAnswer

# Where tokens are set, either is needed; where none are, neither is.
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token, as `dictserve token new` makes them."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same token."},
}
NAMES = {413: "Content Too Large", 422: "Unprocessable Content"}  # of statuses, where Python before 3.13 has old ones
PROBLEM_TYPE = "application/problem+json"
BINARY = {"type": "string", "format": "binary"}
SCHEMAS = {
    NPY.name: BINARY | {"description": "An array as `numpy.save` writes it; little-endian float32 is fastest."},
    SAFETENSORS.name: BINARY | {"description": f"A tensor `{ARRAY_FIELD}`, or the only one; answers name theirs."},
    CSV.name: {"type": "string", "description": "A row a line; a body may begin with a header line."},
}


def json_body(model: type[Fields], examples: Examples) -> dict[str, Any]:
    content = {JSON.media_types[0]: {"schema": model.model_json_schema(), "examples": examples}}
    return {"required": True, "content": content}


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
            "schema": {key: value for key, value in told.items() if key != "description"},
            "description": f"{told.get('description', '')} Only with a body that is not JSON"
            + (", and then required." if name in required else "."),
        }
        for name, told in schema["properties"].items()
        if name not in JSON_ALONE | {ARRAY_FIELD}
    ]
    return {"requestBody": body, "parameters": parameters}


def array_answers(model: type[Any]) -> dict[int | str, dict[str, Any]]:
    """An answer with arrays in any format; as JSON the whole model."""
    return {200: {"model": model, "content": _content()}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return answers(ProblemAnswer, *statuses)


def answers(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": model, "description": NAMES.get(status) or HTTPStatus(status).phrase} for status in statuses
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, in which problems have the media type that they are sent with."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for operations in told["paths"].values():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if status >= "400":
                        _as_problem(response)
        for unused in ("HTTPValidationError", "ValidationError"):
            told["components"]["schemas"].pop(unused, None)
        told["components"]["securitySchemes"] = SECURITY
        told["security"] = [{}, *({name: []} for name in SECURITY)]
        app.openapi_schema = told
    return app.openapi_schema


def _as_problem(response: dict[str, Any]) -> None:
    """FastAPI files every model under application/json, and its own kind of 422 where a route tells of none."""
    if "content" in response:
        schema = {"$ref": "#/components/schemas/ProblemAnswer"}
        response["content"] = {PROBLEM_TYPE: {"schema": schema}}


def _content() -> dict[str, Any]:
    return {f.media_types[0]: {"schema": SCHEMAS[f.name]} for f in FORMATS if f is not JSON}
