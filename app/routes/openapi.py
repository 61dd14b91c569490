"""What the OpenAPI document says of bodies that the routes read themselves."""

from typing import Any

from app.bodies import ARRAY_FIELD
from app.formats import FORMATS
from app.schemas import Fields, ProblemAnswer

PROBLEM = {"model": ProblemAnswer, "content": {"application/problem+json": {}}}
JSON_ALONE = {"files"}  # fields that stand in the data's place, in a JSON body
BINARY = {"type": "string", "format": "binary"}


def json_body(model: type[Fields]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}


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
        if name not in JSON_ALONE | {ARRAY_FIELD}
    ]
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: dict(PROBLEM) for status in statuses}
