"""The formats of bodies: which there are, which one a body is in, and which one an answer goes out in.

A format reads a body into fields and one array, and writes an answer from scalars and one array. The array read
is a view of the body where that can be had; it is not yet validated.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.errors import NotAcceptable, UnsupportedMediaType
from app.formats import json_format, npy_format

Buffer = bytearray | mmap.mmap
Scalars = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Body:
    """A body read: the fields that it held beside the array, and the array by the field's name."""

    fields: dict[str, object]
    arrays: dict[str, np.ndarray]


class Read(Protocol):
    def __call__(self, body: Buffer, array_field: str) -> Body: ...


class Write(Protocol):
    def __call__(self, scalars: Scalars, array_name: str, array: np.ndarray) -> tuple[bytes, dict[str, str]]: ...


@dataclass(frozen=True)
class Format:
    name: str
    media_types: tuple[str, ...]  # the first is the one that answers carry
    carries_fields: bool  # else the other fields are query parameters
    read: Read
    write: Write


def _read_json(body: Buffer, array_field: str) -> Body:
    fields, arrays = json_format.read(body, array_field)
    return Body(fields, arrays)


def _read_npy(body: Buffer, array_field: str) -> Body:
    return Body({}, {array_field: npy_format.read(body)})


JSON = Format("JSON", ("application/json",), True, _read_json, json_format.write)
NPY = Format("npy", ("application/x-npy", "application/npy"), False, _read_npy, npy_format.write)
FORMATS = (JSON, NPY)

# What clients send that did not think of a type: curl's defaults, HTML forms, generic binary.
UNTOLD_TYPES = frozenset(
    {"", "application/x-www-form-urlencoded", "application/octet-stream", "binary/octet-stream", "text/plain"}
)


def request_format(content_type: str, head: bytes) -> Format:
    """The format of a body, by its Content-Type, or by its first bytes where that type says nothing."""
    media_type = content_type.partition(";")[0].strip().lower()
    for candidate in FORMATS:
        if media_type in candidate.media_types:
            return candidate
    if media_type not in UNTOLD_TYPES:
        raise UnsupportedMediaType(f"Content-Type {media_type!r} is not read here; send {_known()}")
    if head.startswith(npy_format.MAGIC):
        return NPY
    if head.lstrip(b" \t\r\n")[:1] in (b"{", b"["):
        return JSON
    raise UnsupportedMediaType(
        f"the body's first bytes are of no known format and Content-Type does not say; send {_known()}"
    )


def answer_format(accept: str, default: Format) -> Format:
    """The format of the answer: the best that ``Accept`` names (RFC 9110), the request's own by default."""
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()]
    if not ranges:
        return default
    preferred = [default, *(f for f in FORMATS if f is not default)]
    quality = {f.name: max((_quality(f, ranges)), default=(0, 0.0))[1] for f in preferred}
    best = max(preferred, key=lambda f: quality[f.name])  # max keeps the first among equals
    if quality[best.name] <= 0:
        raise NotAcceptable(f"Accept {accept[:100]!r} names no kind of answer made here; these are {_known()}")
    return best


def _media_range(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return media_range, float(parameter[2:])
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _quality(candidate: Format, ranges: list[tuple[str, float]]) -> list[tuple[int, float]]:
    """(specificity, q) of every range that covers the format: the most specific one decides."""
    found = []
    for media_range, q in ranges:
        if media_range in candidate.media_types:
            found.append((2, q))
        elif media_range.endswith("/*") and candidate.media_types[0].startswith(media_range[:-1]):
            found.append((1, q))
        elif media_range == "*/*":
            found.append((0, q))
    return found


def _known() -> str:
    return " or ".join(f.media_types[0] for f in FORMATS)
