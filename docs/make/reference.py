"""docs/reference.md: every path and field of the OpenAPI document."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import Settings

Schema = Mapping[str, Any]

PAGE = Path(__file__).parents[1] / "reference.md"

HEAD = """# HTTP reference

Every call, parameter and field, made from the OpenAPI document by `python -m docs.make`. What they mean together is
in [http.md](http.md); a running service has the same at `/docs`, to be tried, and the document at `/openapi.json`.
"""


def page() -> str:
    document = create_app(Settings()).openapi()
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).extend(_operation(f"{method.upper()} {path}", operation))
    parts = [HEAD]
    for group, calls in groups.items():
        parts += [f"## {group[:1].upper() + group[1:]}\n", *calls]
    parts.append("## Schemas\n")
    for name, schema in document["components"]["schemas"].items():
        parts += [f"### {name}\n", *_described(schema), *_fields(schema)]
    return "\n".join(parts)


def _operation(call: str, operation: Schema) -> Iterable[str]:
    yield f"### {call}\n"
    yield f"{operation['summary']}.\n"
    yield from _described(operation)
    if parameters := operation.get("parameters"):
        yield _table(
            ["parameter", "in", "type", "default", "meaning"],
            [
                [f"`{p['name']}`", p["in"], _kind(p["schema"]), _default(p["schema"], p["required"]), _meaning(p)]
                for p in parameters
            ],
        )
    if body := operation.get("requestBody"):
        content = body["content"]
        yield f"Body{'' if body.get('required') else ' (may be left out)'}: {', '.join(_media(content))}.\n"
        told = content.get("application/json", {})
        yield from _fields(told.get("schema", {}))
        for example in list(told.get("examples", {}).values())[:1]:
            yield f"```json\n{json.dumps(example['value'], ensure_ascii=False)}\n```\n"
    answers, problems = [], []
    for status, answer in operation["responses"].items():
        if "application/problem+json" in answer.get("content", {}):
            problems.append(status)
        else:
            told = answer["description"].replace("Successful Response", "")
            answers.append([status, ", ".join(_media(answer.get("content", {}))), _headers(answer), told])
    yield _table(["status", "answer", "headers", "meaning"], answers)
    if problems:
        yield f"[Problems](http.md#errors) ([ProblemAnswer](#problemanswer)): {', '.join(problems)}.\n"


def _headers(answer: Schema) -> str:
    told = answer.get("headers", {}).items()
    return "; ".join(f"`{name}`: {header['description'].rstrip('.')}" for name, header in told)


def _described(told: Schema) -> Iterable[str]:
    if description := told.get("description"):
        yield f"{description.strip()}\n"


def _fields(schema: Schema) -> Iterable[str]:
    """A table of an object's fields."""
    if properties := schema.get("properties"):
        required = schema.get("required", [])
        yield _table(
            ["field", "type", "default", "meaning"],
            [
                [f"`{name}`", _kind(field), _default(field, name in required), _meaning(field)]
                for name, field in properties.items()
            ],
        )


def _media(content: Mapping[str, Any]) -> Iterable[str]:
    for media_type, told in content.items():
        kind = _kind(told["schema"]) if "$ref" in json.dumps(told.get("schema", {})) else ""
        yield f"`{media_type}`" + (f" {kind}" if kind else "")


def _kind(schema: Schema) -> str:
    """A type in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[several]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(_kind(item) for item in schema['prefixItems'])}]"
        case "array":
            return f"list of {_kind(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), Mapping):
            return f"object of {_kind(schema['additionalProperties'])}"
        case "object" if "properties" in schema:
            return "{" + ", ".join(f"`{name}`" for name in schema["properties"]) + "}"
        case "string" if "format" in schema:
            return str(schema["format"])
        case None:
            return "any"
        case kind:
            return kind + _bounds(schema)


def _bounds(schema: Schema) -> str:
    """What a number must be, in the signs of OpenAPI's words."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {schema[word]}" for word, sign in signs.items() if word in schema)


def _default(schema: Schema, required: bool) -> str:
    if "default" in schema:
        return f"`{json.dumps(schema['default'], ensure_ascii=False)}`"
    return "required" if required else ""


def _meaning(field: Schema) -> str:
    return " ".join(field.get("description", "").split())


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
