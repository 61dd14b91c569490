"""What the OpenAPI document says of bodies that the routes read themselves."""

from typing import Any

import msgspec

from app.bodies import ARRAY_FIELD
from app.formats import FORMATS
from app.schemas import Fields, ProblemAnswer

PROBLEM = {"model": ProblemAnswer, "content": {"application/problem+json": {}}}
BINARY = {"type": "string", "format": "binary"}


def json_body(model: type[Fields]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}


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
        return {key: resolved(value) for key, value in part.items()}

    whole: dict[str, Any] = resolved(schema)
    return whole


def array_body(model: type[Fields]) -> dict[str, Any]:
    """A body in any format: as JSON the whole model, else the array, the other fields being query parameters."""
    schema = model.model_json_schema()
    properties, required = schema["properties"], schema.get("required", [])
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    content.update({f.media_types[0]: {"schema": BINARY} for f in FORMATS if not f.carries_fields})
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,  # with a JSON body it stands in the body
            "schema": {key: value for key, value in told.items() if key != "description"},
            "description": f"{told.get('description', '')} Only with a body that is not JSON"
            + (", and then required." if name in required else "."),
        }
        for name, told in properties.items()
        if name != ARRAY_FIELD
    ]
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: dict(PROBLEM) for status in statuses}
