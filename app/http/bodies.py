"""From a request's body to a validated model, and from codes to an answer's body. Each step happens once, here.

The array goes from the body's bytes to a C-contiguous float32 ndarray; pydantic validates it as one value, and
never sees its numbers.
"""

import asyncio
import mmap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import numpy as np
import pydantic
from fastapi import Request, Response

from app.errors import BodyTooLarge, InvalidFields, MalformedBody, UnsupportedMediaType
from app.formats import CSV, JSON, NPY, SAFETENSORS, Format, answer_format, request_format, require_fields
from app.formats.answer import Answer, Scalar
from app.formats.buffer import Buffer
from app.formats.csv_format import LINE_END
from app.formats.json_format import first_repeated
from app.formats.npy_format import MAGIC
from app.http.disconnects import Gone
from app.http.headers import header
from app.http.inflate import CODINGS, inflated
from app.http.responses import ReadyResponse
from app.http.shares import share_of_bodies
from app.schemas import Fields
from app.settings import Settings
from app.store.disk import store_errors

HEAD_BYTES = 16  # enough to tell a format by
INLINE_BYTES = 256 * 1024  # of text that is parsed at once, or of an array that is written as text; more in a thread
INLINE_BINARY_BYTES = 1024 * 1024  # as quick to check as that is to parse
WRITE_BYTES = 4 * 1024 * 1024  # of an upload at a time
MAX_ITEM_BYTES = 8  # of the widest dtype that is read
TEXT_GROWTH, BASE64_GROWTH = 3, 2  # of numbers that are written as text: in float32, of some eleven characters

# What helps whoever has more bytes than may be.
FEWER = "encode or decode fewer rows at a time, fit from files of the service's data directory (`files`)"
OF_JSON = f"Send the array as npy, {FEWER}, or raise DICTSERVE_MAX_JSON_BYTES"
OF_OTHERS = f"{FEWER.capitalize()}, or raise DICTSERVE_MAX_BODY_BYTES"
OF_MEMORY = f"{FEWER.capitalize()}, or raise DICTSERVE_BODIES_BYTES"

ARRAY_FIELD = "data"
JSON_ALONE = {"files"}  # fields that stand in the data's place, in a JSON body
CURLS_OWN = "application/x-www-form-urlencoded"  # what curl says of a body where nothing else is said

# One thread: several would fight over the interpreter's lock, and end later than one after another.
_parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")

Model = TypeVar("Model", bound=Fields)
T = TypeVar("T")


class Limit(NamedTuple):
    """Most bytes of a body, and what helps whoever has more."""

    nbytes: int
    advice: str


@dataclass(frozen=True)
class Payload(Generic[Model]):
    """A request read and validated, and what its answer is to look like."""

    fields: Model
    format: Format
    accept: str

    async def answer(
        self, scalars: Mapping[str, Scalar], arrays: Mapping[str, np.ndarray], base64: bool = False
    ) -> Response:
        """The answer in the format asked for.

        Raises:
            NotAcceptable: there are several arrays, and the format asked for holds one.
        """
        format = self.answer_format(many_arrays=len(arrays) > 1)
        if format in (CSV, JSON) and not base64:  # the others are quick to write
            size = sum(array.nbytes for array in arrays.values())
            return await aside(size, lambda: array_answer(format, scalars, arrays))
        return array_answer(format, scalars, arrays, base64)

    def growth(self, *, many_arrays: bool, base64: bool = False) -> int:
        """How many times as long as its numbers an answer may be."""
        if self.answer_format(many_arrays=many_arrays) not in (CSV, JSON):
            return 1
        return BASE64_GROWTH if base64 else TEXT_GROWTH

    def answer_format(self, *, many_arrays: bool) -> Format:
        return answer_format(self.accept, self.format, many_arrays=many_arrays)


def _limit(settings: Settings, *, is_json: bool) -> Limit:
    """Of a body with an array."""
    return Limit(settings.max_json_bytes, OF_JSON) if is_json else Limit(settings.max_body_bytes, OF_OTHERS)


def in_memory(settings: Settings, *, is_json: bool) -> Limit:
    """Of one that is not put into a file."""
    return min(_limit(settings, is_json=is_json), Limit(settings.bodies_bytes, OF_MEMORY))


async def read_payload(
    request: Request,
    model: type[Model],
    settings: Settings,
    upload: Path | None = None,
    *,
    answers_array: bool = True,
) -> Payload[Model]:
    """Read a request's body into its model.

    Args:
        answers_array: in a format that `Accept` chooses; a record is JSON whatever that says.
        upload: where to put a body that is not JSON, instead of in memory. The array is then a view of that file,
            or a converted copy of it.

    Raises:
        BodyTooLarge, UnsupportedMediaType, NotAcceptable, MalformedBody, InvalidFields: as their names say.
        Overloaded: there is no room for it beside other bodies.
    """

    def limit(format: Format) -> Limit:
        if upload is None or format is JSON:
            return in_memory(settings, is_json=format is JSON)
        return _limit(settings, is_json=False)

    _refuse_encodings(request)
    content_type = header(request.scope, b"content-type")
    # the one that the type says; where it says none, the first bytes may be of any
    possible = [request_format(content_type, head) for head in (b"{", MAGIC)]
    _declared(request, max(map(limit, possible)))
    incoming = _Incoming(request)
    head = await incoming.chunk()
    while len(head) < HEAD_BYTES and not incoming.ended:
        head += await incoming.chunk()
    if not head:
        raise MalformedBody('the body is empty; send JSON such as {"data": [[0.5, 1.2]], …} or an npy array')
    format = request_format(content_type, head)
    accept = header(request.scope, b"accept")
    if answers_array:
        answer_format(accept, format)  # refuse what cannot be answered before the body has come
    if upload is None or format is JSON:
        body: Buffer = await incoming.whole(limit(format), head)
    else:
        body = await incoming.to_file(upload, limit(format), head)
    query = _query(request.scope["query_string"])

    def parse() -> Model:
        if not _is_as_curls_d_leaves_it(request, format, body):
            return _parse(body, format, model, query, settings)
        if format is CSV and upload is not None:  # rows that have become one can be read, as what nobody meant
            raise MalformedBody(
                "the CSV is one line, and a fit wants many rows (curl's -d joins lines: --data-binary)"
            )
        try:
            return _parse(body, format, model, query, settings)
        except MalformedBody as error:
            raise MalformedBody(f"{error} (curl's -d changes files on their way: --data-binary)") from None

    at_once = INLINE_BINARY_BYTES if format in (NPY, SAFETENSORS) else INLINE_BYTES
    return Payload(await aside(len(body), parse, at_once), format, accept)


def _is_as_curls_d_leaves_it(request: Request, format: Format, body: Buffer) -> bool:
    """Without the line ends that were in a file; one of npy has them, too."""
    is_curls = header(request.scope, b"content-type").startswith(CURLS_OWN) and format is not JSON
    return is_curls and LINE_END.search(body) is None


async def read_fields(request: Request, model: type[Model], limit: Limit) -> Model:
    """Read a JSON body that holds no array into its model; raises as ``read_payload`` does."""
    _refuse_encodings(request)
    require_fields(header(request.scope, b"content-type"))
    body = await _Incoming(request).whole(limit)

    def parse() -> Model:
        fields, _ = JSON.read(body, "")
        return _validated(model, fields, strict=True)

    return await aside(len(body), parse)


async def read_body(request: Request, limit: Limit, aligned_at: int = 0) -> memoryview:
    """A body as it is, gzip and deflate undone.

    Args:
        limit: of the body as it comes, and inflated.
        aligned_at: where values of any dtype will be read from: unless the body came compressed, they are aligned,
            so that a view of them needs no copy.

    Raises:
        BodyTooLarge, UnsupportedMediaType, MalformedBody: as their names say.
        Overloaded: there is no room for it beside other bodies.
    """
    coding, share = _coding(request), share_of_bodies(request.scope)
    if coding == "identity":
        lead = -aligned_at % MAX_ITEM_BYTES
        return memoryview(await _Incoming(request).whole(limit, lead=lead))[lead:]
    if coding not in CODINGS:
        raise UnsupportedMediaType(f"Content-Encoding {coding[:40]!r} is not read here; gzip and deflate are")
    body = await _Incoming(request).whole(limit)
    return memoryview(
        await asyncio.to_thread(inflated, body, coding, limit.nbytes, lambda more: share.hold(len(body) + more))
    )


async def aside(size: int, parse: Callable[[], T], at_once: int = INLINE_BYTES) -> T:
    """Parse or write a body of this size: one of ``at_once`` bytes or less at once, a larger one in a thread, after
    those that came before it and while others are served."""
    if size <= at_once:
        return parse()
    return await asyncio.get_running_loop().run_in_executor(_parsing, parse)


def model_with_array(
    model: type[Model], fields: Mapping[str, object], array: np.ndarray, settings: Settings
) -> Model:
    """The model of fields and the array, whatever body they came in; raises InvalidFields or an error of core."""
    _refuse_large(array, settings)
    return _validated(model, {**fields, ARRAY_FIELD: array}, strict=True)


def array_answer(
    format: Format, scalars: Mapping[str, Scalar], arrays: Mapping[str, np.ndarray], base64: bool = False
) -> Response:
    """An answer of scalars and arrays. Headers carry the scalars too: some bodies hold the array alone."""
    answer = Answer(scalars, arrays)
    headers = {f"dictserve-{name}": text for name, text in answer.as_text().items()}
    return ReadyResponse(format.write(answer, base64), format.media_types[0], headers)


class _Incoming:
    """A request's body as it comes. What is in memory of it is the request's share until that ends."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._share = share_of_bodies(request.scope)
        self.ended = False

    async def chunk(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self.ended = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def whole(self, limit: Limit, head: bytes = b"", lead: int = 0) -> bytearray:
        """The body that begins with ``head``, which has come, after ``lead`` blank bytes.

        Raises:
            BodyTooLarge, MalformedBody: as their names say.
            Overloaded: there is no room for it beside other bodies.
        """
        self._share.expect(_declared(self._request, limit))
        body = bytearray(lead)  # grows as it comes: a length that is told costs nothing to tell
        while True:
            body += head
            self._share.hold(len(body))
            if len(body) - lead > limit.nbytes:
                raise _too_large(limit, None)
            if self.ended:
                return body
            head = await self.chunk()

    async def to_file(self, path: Path, limit: Limit, head: bytes) -> mmap.mmap:
        """The body in a file, mapped. Bytes are gathered so that each write is worth a thread's while."""
        _declared(self._request, limit)
        gathered, received = bytearray(head), len(head)
        with store_errors(), path.open("xb") as file:
            while not self.ended and received <= limit.nbytes:
                chunk = await self.chunk()
                gathered += chunk
                received += len(chunk)
                self._share.hold(len(gathered))
                if len(gathered) >= WRITE_BYTES:
                    await asyncio.to_thread(file.write, gathered)
                    gathered = bytearray()
            if received > limit.nbytes:
                raise _too_large(limit, None)
            await asyncio.to_thread(file.write, gathered)
        self._share.hold(0)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _refuse_encodings(request: Request) -> None:
    coding = _coding(request)
    if coding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {coding[:40]!r} is not read; send the body uncompressed")


def _coding(request: Request) -> str:
    return header(request.scope, b"content-encoding").strip().lower() or "identity"


def _declared(request: Request, limit: Limit) -> int:
    """The body's length by Content-Length, 0 where that is absent; refuses by it alone, before the body has come."""
    told = header(request.scope, b"content-length")
    declared = int(told) if told.isdigit() else 0
    if declared > limit.nbytes:
        raise _too_large(limit, declared)
    return declared


@lru_cache(maxsize=64)  # a client's requests have the same few
def _query(query_string: bytes) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))


def _too_large(limit: Limit, size: int | None) -> BodyTooLarge:
    told = "this body has more" if size is None else f"this body has {size}"
    return BodyTooLarge(f"a body of this kind may have {limit.nbytes} bytes; {told}. {limit.advice}")


def _parse(
    body: Buffer,
    format: Format,
    model: type[Model],
    query: Sequence[tuple[str, str]],
    settings: Settings,
) -> Model:
    fields, arrays = format.read(body, ARRAY_FIELD)
    for array in arrays.values():
        _refuse_large(array, settings)
    told = _told_fields(fields, query, format, model)
    # JSON has types, so that "5" is no number there; a query has strings alone.
    return _validated(model, {**told, **arrays}, strict=format.carries_fields)


def _validated(model: type[Model], told: Mapping[str, object], *, strict: bool) -> Model:
    try:
        return model.model_validate(told, strict=strict)
    except pydantic.ValidationError as error:
        raise InvalidFields.from_pydantic(error) from None


def _told_fields(
    fields: Mapping[str, object], query: Sequence[tuple[str, str]], format: Format, model: type[Fields]
) -> Mapping[str, object]:
    if format.carries_fields:
        if query:
            raise InvalidFields.at("query", query[0][0], msg=f"with a {format.name} body, fields stand in the body")
        return fields
    told = dict(query)
    if len(told) != len(query):
        raise InvalidFields.at("query", first_repeated(name for name, _ in query), msg="given more than once")
    if ARRAY_FIELD in told:
        raise InvalidFields.at("query", ARRAY_FIELD, msg="the body is the data")
    for name in JSON_ALONE & told.keys() & model.model_fields.keys():
        raise InvalidFields.at("query", name, msg=f"stands in a JSON body, in the place of {ARRAY_FIELD}")
    return told


def _refuse_large(array: np.ndarray, settings: Settings) -> None:
    if array.ndim == 2 and len(array) > settings.max_rows:
        raise InvalidFields.at(ARRAY_FIELD, msg=f"{len(array)} rows; at most {settings.max_rows} are taken at a time")
    if array.ndim and array.shape[-1] > settings.max_features:
        raise InvalidFields.at(
            ARRAY_FIELD, msg=f"{array.shape[-1]} columns; at most {settings.max_features} are taken"
        )
