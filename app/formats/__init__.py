"""The formats of bodies: which there are, which one a body is in, and which one an answer goes out in.

A format reads a body into fields and one array, and writes an answer from scalars and arrays. The array read is a
view of the body where that can be had; it is not yet validated.
"""

import re
from codecs import BOM_UTF8 as BOM
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from app.errors import NotAcceptable, UnsupportedMediaType
from app.formats import csv_format, json_format, npy_format, safetensors_format
from app.formats.answer import Answer, Content
from app.formats.buffer import Buffer

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Format:
    """One format.

    Attributes:
        media_types: the first is the one that answers carry.
        carries_fields: its bodies hold the other fields too; else those are query parameters.
        many_arrays: its answers can hold more than one array.
        read: (body, the array's field) → fields beside the array, arrays by field.
        write: (answer, whether arrays are to be base64 text) → body, whole or in parts.
    """

    name: str
    media_types: tuple[str, ...]
    carries_fields: bool
    many_arrays: bool
    read: Callable[[Buffer, str], tuple[dict[str, object], Arrays]]
    write: Callable[[Answer, bool], Content]


def _alone(read: Callable[[Buffer, str], Arrays]) -> Callable[[Buffer, str], tuple[dict[str, object], Arrays]]:
    """A reader of bodies that hold an array and no fields."""
    return lambda body, array_field: ({}, read(body, array_field))


def _binary(write: Callable[[Answer], Content]) -> Callable[[Answer, bool], Content]:
    """A writer that has no use for base64."""
    return lambda answer, _: write(answer)


JSON = Format("JSON", ("application/json",), True, True, json_format.read, json_format.write)
NPY = Format(
    "npy",
    ("application/x-npy", "application/npy"),
    False,
    False,
    _alone(npy_format.read),
    _binary(npy_format.write),
)
SAFETENSORS = Format(
    "safetensors",
    ("application/vnd.safetensors", "application/x-safetensors"),
    False,
    True,
    _alone(safetensors_format.read),
    _binary(safetensors_format.write),
)
CSV = Format("CSV", ("text/csv", "application/csv"), False, False, _alone(csv_format.read), _binary(csv_format.write))
FORMATS = (JSON, NPY, SAFETENSORS, CSV)

# What clients send that did not think of a type: curl's defaults, HTML forms, generic binary.
UNTOLD_TYPES = frozenset(
    {"", "application/x-www-form-urlencoded", "application/octet-stream", "binary/octet-stream", "text/plain"}
)

MERGE_PATCH = "application/merge-patch+json"  # RFC 7396

# Of bodies that hold fields alone.
FIELD_TYPES = UNTOLD_TYPES | {*JSON.media_types, MERGE_PATCH}

ARCHIVES = {
    b"\x1f\x8b": "the body is compressed by gzip: send it as it was before that",
    b"PK\x03\x04": "the body is a zip archive, such as an npz: send its arrays one by one, as npy",
}
_NUMBER = re.compile(rb'"?[0-9.+-]')  # how a CSV begins that has no header line


def request_format(content_type: str, head: bytes) -> Format:
    """The format of a body, by its Content-Type, or by its first bytes where that type says nothing."""
    told = _told_format(content_type)
    if told is not None:
        return told
    if head.startswith(npy_format.MAGIC):
        return NPY
    if safetensors_format.begins(head):
        return SAFETENSORS
    start = head.removeprefix(BOM).lstrip(b" \t\r\n")
    if start[:1] in (b"{", b"["):
        return JSON
    if _NUMBER.match(start):
        return CSV
    for magic, what in ARCHIVES.items():
        if head.startswith(magic):
            raise UnsupportedMediaType(what)
    raise UnsupportedMediaType(
        f"the body's first bytes are of no known format and Content-Type does not say; send one of {_known()}"
    )


def require_fields(content_type: str) -> None:
    """Raises UnsupportedMediaType where a body that is to hold fields alone is said to be of another kind."""
    media_type = _media_type(content_type)
    if media_type not in FIELD_TYPES:
        raise UnsupportedMediaType(
            f"Content-Type {media_type!r} is not read here: fields are sent as {JSON.media_types[0]}"
        )


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


@lru_cache(maxsize=64)
def _told_format(content_type: str) -> Format | None:
    """None where it does not say."""
    media_type = _media_type(content_type)
    for candidate in FORMATS:
        if media_type in candidate.media_types:
            return candidate
    if media_type == "multipart/form-data":
        raise UnsupportedMediaType("no form is read here: send a file itself as the body (curl --data-binary @FILE)")
    if media_type not in UNTOLD_TYPES:
        raise UnsupportedMediaType(f"Content-Type {media_type!r} is not read here; these are: {_known()}")
    return None


@lru_cache(maxsize=64)  # a client's requests say the same, and each is asked more than once
def answer_format(accept: str, default: Format, *, many_arrays: bool = False) -> Format:
    """The format of the answer: the best that ``Accept`` names (RFC 9110), the request's own by default.

    Raises:
        NotAcceptable: ``Accept`` names none, or none that can hold several arrays where there are to be some.
    """
    able = [f for f in FORMATS if f.many_arrays or not many_arrays]
    default = default if default in able else SAFETENSORS
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()]
    if not ranges:
        return default
    preferred = [default, *(f for f in able if f is not default)]
    quality = {f.name: max(_quality(f, ranges), default=(0, 0.0))[1] for f in preferred}
    best = max(preferred, key=lambda f: quality[f.name])  # max keeps the first among equals
    if quality[best.name] <= 0:
        told = "can hold several arrays" if many_arrays else "are made here"
        raise NotAcceptable(f"Accept {accept[:100]!r} names no kind of answer that fits; {_known(able)} {told}")
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


def _known(formats: Iterable[Format] = FORMATS) -> str:
    return ", ".join(f.media_types[0] for f in formats)
