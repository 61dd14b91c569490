"""Entity tags: what a client has already is not sent again, and what it knows as it is no more is not changed.

RFC 9110, sections 8.8.3 and 13.1.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import orjson
from fastapi import Header, Response

from app.errors import InvalidFields
from app.store.hashed import sha256

IfMatch = Annotated[str | None, Header()]
IfNoneMatch = Annotated[str, Header()]
JSON_TYPE = "application/json"
_TAG = re.compile(r'(?:W/)?"[^"]*"')


def tagged(tag: str, if_none_match: str, answer: Callable[[], Response]) -> Response:
    """The answer with its ETag, or 304 where the client has it already."""
    response = unchanged(tag, if_none_match)
    if response is None:
        response = answer()
        response.headers["ETag"] = f'"{tag}"'
    return response


def unchanged(tag: str, if_none_match: str) -> Response | None:
    """304 where the client has what is tagged so."""
    etag = f'"{tag}"'
    known = {tag.removeprefix("W/") for tag in _tags(if_none_match)}
    return Response(status_code=304, headers={"ETag": etag}) if {etag, "*"} & known else None


def tagged_body(body: bytes, if_none_match: str) -> Response:
    """JSON with its own hash as ETag."""
    return tagged(sha256(body), if_none_match, lambda: Response(body, media_type=JSON_TYPE))


def tagged_json(told: Mapping[str, Any], if_none_match: str) -> Response:
    """Fields, in which there may be numpy arrays, as such JSON."""
    return tagged_body(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY), if_none_match)


def is_known(body: bytes, if_match: str | None) -> bool:
    """Whether the client knows this JSON as it is now, or sets no condition. An empty If-Match is met by nothing: the
    client meant to set one, and had no tag."""
    return if_match is None or bool({f'"{sha256(body)}"', "*"} & _tags(if_match))


def is_to_be_new(if_none_match: str) -> bool:
    """Whether what is put may have no version yet, as `*` says.

    Raises:
        InvalidFields: the header names tags, which would let it have all versions but those.
    """
    told = _tags(if_none_match)
    if told - {"*"}:
        raise InvalidFields.at("header", "if-none-match", msg="`*` alone is read here; If-Match takes an ETag")
    return bool(told)


def _tags(header: str) -> set[str]:
    """What a header names, which may have come in several lines: entity tags, in which there may be commas, or `*`
    alone. What is neither is itself, and no tag of ours."""
    parts = {part.strip() for part in header.split(",")} - {""}
    return parts if parts <= {"*"} else set(_TAG.findall(header)) or {header}
