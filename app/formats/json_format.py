"""JSON bodies: `{"dictionary": "digits", "data": [[…], …]}`, read strictly and fast.

The object is taken apart first, its array left as raw bytes; the array is then decoded straight to floats by a
typed decoder that takes neither strings, booleans nor null for numbers. Only what is not an array ever becomes
general Python objects.

A codec holds the interpreter's lock to its end. Arrays are therefore decoded and written in pieces, with the lock
given up in between, so that a large one in a thread holds up nobody for long; and the numbers of a piece, while they
are Python objects, fit a core's cache. What cannot be decoded so is decoded whole, to tell what is wrong and where.
"""

import json
import math
import re
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

import msgspec
import numpy as np
import orjson

from app.errors import InvalidFields, Location, MalformedBody
from app.formats.answer import Answer, Content, Scalar
from app.formats.buffer import MAX_DIMENSIONS, Buffer, Size, shaped

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_rows_decoder = msgspec.json.Decoder(list[list[float]])
_row_decoder = msgspec.json.Decoder(list[float])

_PATH = re.compile(r"\[(\d+)\]")  # the indices in msgspec's «at `$[3][5]`»
_BYTE = re.compile(r"byte (\d+)")
_KEY = re.compile(rb'"([^"]*)"\s*:\s*$')  # a key whose value comes next
_ROWS = re.compile(rb"\[\s*\[")
_AFTER_A_ROW = re.compile(rb"\]\s*(,)")
_AFTER_A_NUMBER = re.compile(rb"(,)")
_NOT_A_NUMBER = re.compile(rb"[-+]?(?:nan|inf(?:inity)?)\b", re.IGNORECASE)


MAX_KEYS = 1000  # of a body's object
MAX_BESIDE_BYTES = 64 * 1024  # of all that is not the array: to read it as Python's objects takes 0.4 s a MiB
MANY_BYTES, MANY_KEYS = 4 * 1024 * 1024, 100_000
# Of an array's text that is decoded at a time, or of an array that is written: about 1 ms; giving up the lock costs
# 0.07 ms.
PIECE_BYTES = 256 * 1024
_BLANK = b'"\\u0000the array"'  # what stands in the array's place once it is cut out


def read(body: Buffer, array_field: str) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """The fields beside the array, and the array (float64) by its field's name, where the body has it.

    Raises:
        MalformedBody: the body is no JSON object, or has a key twice.
        InvalidFields: the array has something other than finite numbers, or ragged rows.
    """
    if array_field and isinstance(body, bytearray):  # a file of a fit holds no JSON
        refuse_many_keys(body)
    return _read_apart(body, array_field) or _read_whole(body, array_field)


Read = tuple[dict[str, object], dict[str, np.ndarray]]


def refuse_many_keys(body: bytes | bytearray) -> None:
    """A large body is large for its array, which has none: to take millions of them apart would hold up everybody."""
    if len(body) > MANY_BYTES and (keys := body.count(b":")) > MANY_KEYS:
        raise MalformedBody(f"the body has {len(body)} bytes and {keys} colons: at most {MAX_KEYS} keys are read")


def _read_apart(body: Buffer, array_field: str) -> Read | None:
    """As ``read``, for a body that has no brackets but its array's. None where it has others or anything is wrong.

    If the object is right with a blank in the place of all from the first bracket to the last, the blank is the
    array's value, and what was cut out is an array of numbers, then the body is right.
    """
    start, stop = body.find(b"["), body.rfind(b"]") + 1
    if not 0 < start < stop or start + len(body) - stop > MAX_BESIDE_BYTES:
        return None
    head, tail = bytes(body[:start]), bytes(body[stop:])
    if _BLANK in head or _BLANK in tail:
        return None
    envelope = head + _BLANK + tail
    try:
        raw = _object_decoder.decode(envelope)
        if len(raw) > MAX_KEYS or array_field not in raw or bytes(raw.pop(array_field)) != _BLANK:
            return None
        fields = {name: msgspec.json.decode(value) for name, value in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    array = _decoded_in_pieces(memoryview(body)[start:stop], array_field)
    if array is None:
        return None
    refuse_repeated_keys(envelope, None)
    return fields, {array_field: array}


def _read_whole(body: Buffer, array_field: str) -> Read:
    try:
        raw = _object_decoder.decode(body)
    except msgspec.ValidationError:
        raise MalformedBody('the body must be a JSON object, such as {"data": [[0.5, 1.2]], …}') from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error, body, array_field) from None
    if len(raw) > MAX_KEYS:  # to tell of each that it is unknown would take seconds
        raise MalformedBody(f"the body has {len(raw)} keys; at most {MAX_KEYS} are read")
    if array_field:
        sizes = {name: len(memoryview(value)) for name, value in raw.items() if name != array_field}
        refuse_much_beside(sizes, array_field)
    refuse_repeated_keys(body, raw.get(array_field))
    arrays = {array_field: _array(raw.pop(array_field), array_field)} if array_field in raw else {}
    try:
        return {name: msgspec.json.decode(value) for name, value in raw.items()}, arrays
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from None


def refuse_much_beside(sizes: Mapping[str, int], array_field: str) -> None:
    """Raise InvalidFields where the fields, but for the array, have more bytes than are read."""
    if sum(sizes.values()) > MAX_BESIDE_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        told = f"{sizes[largest]} bytes; all fields but {array_field} may have {MAX_BESIDE_BYTES} together"
        raise InvalidFields.at(largest[:100], msg=told)


def write(answer: Answer, base64: bool) -> Content:
    """Scalars and arrays in one object; arrays as rows of numbers, or as text (see ``_Encoded``)."""
    if base64:
        encoded = {name: _Encoded.of(array) for name, array in answer.arrays.items()}
        return msgspec.json.encode({**answer.scalars, **encoded})
    arrays = {name: np.ascontiguousarray(array) for name, array in answer.arrays.items()}
    if sum(array.nbytes for array in arrays.values()) <= PIECE_BYTES:
        return orjson.dumps({**answer.scalars, **arrays}, option=orjson.OPT_SERIALIZE_NUMPY)
    return tuple(memoryview(part) for part in _written_in_pieces(answer.scalars, arrays))


def _written_in_pieces(
    scalars: Mapping[str, Scalar], arrays: Mapping[str, np.ndarray]
) -> Iterator[bytes | memoryview]:
    yield orjson.dumps(scalars)[:-1]
    for name, array in arrays.items():
        yield f',"{name}":'.encode()
        yield from array_in_pieces(array)
    yield b"}"


def array_in_pieces(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """The text of an array, in C order."""
    yield b"["
    rows = max(1, PIECE_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        if start:
            time.sleep(0)  # gives up the interpreter's lock
            yield b","
        text = orjson.dumps(array[start : start + rows], option=orjson.OPT_SERIALIZE_NUMPY)
        yield memoryview(text)[1:-1]
    yield b"]"


class _Encoded(msgspec.Struct, forbid_unknown_fields=True):
    """An array as text: its bytes (little-endian, C order) in base64, for clients that can only send JSON."""

    base64: bytes
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    dtype: Literal["float16", "float32", "float64", "int32", "int64"] = "float32"

    @classmethod
    def of(cls, array: np.ndarray) -> "_Encoded":
        return cls(np.ascontiguousarray(array).tobytes(), array.shape, array.dtype.name)  # type: ignore[arg-type]

    def array(self, name: str) -> np.ndarray:
        dtype = np.dtype(self.dtype).newbyteorder("<")
        wanted = math.prod(self.shape) * dtype.itemsize
        if len(self.base64) != wanted:
            told = f"shape {list(self.shape)} of {self.dtype} takes {wanted} bytes; base64 holds {len(self.base64)}"
            raise InvalidFields.at(name, "base64", msg=told)
        return shaped(np.frombuffer(self.base64, dtype), self.shape)


def numbers(raw: msgspec.Raw, name: str) -> np.ndarray:
    """An array of numbers, or rows of them, as float64.

    Raises:
        MalformedBody, InvalidFields: as ``read`` does.
    """
    text = memoryview(raw)
    array = _decoded_in_pieces(text, name)
    if array is not None:
        return array
    decode = _rows_decoder.decode if _ROWS.match(bytes(text[:64])) else _row_decoder.decode
    try:
        values = decode(text)
    except msgspec.ValidationError as error:
        raise _not_numbers(error, name, 0) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(error, bytes(text), name) from None
    if values and isinstance(values[0], list):
        for index, row in enumerate(values):
            _refuse_ragged(row, len(values[0]), name, index)
    return np.array(values, dtype=np.float64)


def _decoded_in_pieces(text: memoryview, name: str) -> np.ndarray | None:
    """``numbers`` of an array's text, some at a time; None where there are none, or it is no JSON."""
    if bytes(text[:1]) != b"[" or bytes(text[-1:]) != b"]":
        return None
    in_rows = _ROWS.match(text) is not None
    packed, width = bytearray(), 0

    def begun() -> int:
        """The rows, or numbers, before this piece."""
        return len(packed) // (8 * width if in_rows and width else 8)

    try:
        for piece in _pieces(text, _AFTER_A_ROW if in_rows else _AFTER_A_NUMBER):
            if packed:
                time.sleep(0)  # gives up the interpreter's lock
            rows = _rows_decoder.decode(piece) if in_rows else [_row_decoder.decode(piece)]
            if not rows:
                return None
            if not rows[0] and not width:
                if in_rows and len(text) > MANY_BYTES:  # to take millions of such rows for an array takes seconds
                    raise InvalidFields.at(name, 0, msg="row 0 has no values")
                return None
            width = width or len(rows[0])
            for row in rows:
                if in_rows and len(row) != width:
                    _refuse_ragged(row, width, name, begun())
                packed += struct.pack(f"{len(row)}d", *row)
    except msgspec.ValidationError as error:  # what comes before it was right
        raise _not_numbers(error, name, begun()) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if (refusal := _not_finite(error, piece, name, begun())) is not None:
            raise refusal from None
        return None
    array = np.frombuffer(packed, np.float64)
    return array.reshape(-1, width) if in_rows else array


def _pieces(text: memoryview, end: re.Pattern[bytes]) -> Iterator[bytes]:
    """An array's text as those of shorter arrays, which end where the pattern's comma stood."""
    start, stop = 1, len(text) - 1
    while start <= stop:
        found, looked = None, start
        while found is None and (looked := looked + PIECE_BYTES) < stop:  # one look at it all would keep the lock
            if looked > start + PIECE_BYTES:
                time.sleep(0)
            found = end.search(text, looked, min(looked + PIECE_BYTES, stop))
        comma = stop if found is None else found.start(1)
        yield b"".join((b"[", text[start:comma], b"]"))
        start = comma + 1


def _array(raw: msgspec.Raw, name: str) -> np.ndarray:
    """An array as numbers or as text."""
    if bytes(memoryview(raw)[:1]) == b"{":
        return _encoded(raw, name).array(name)
    return numbers(raw, name)


def _encoded(raw: msgspec.Raw, name: str) -> _Encoded:
    try:
        return msgspec.json.decode(raw, type=_Encoded)
    except msgspec.ValidationError as error:
        field = re.search(r"`\$\.(\w+)", str(error))
        told = f'{error}; an array as text is {{"base64": "…", "shape": [rows, columns], "dtype": "float32"}}'
        raise InvalidFields.at(name, *([field[1]] if field else []), msg=told) from None
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the text of {name} is not UTF-8: {error}") from None


def _wanted(message: str) -> str:
    """What msgspec found wrong, in our words."""
    if message.startswith("Number out of range"):
        return "the number is past the range of float64"
    expected = re.search(r"Expected `(\w+)`, got `(\w+)`", message)
    if expected is None:
        return message
    want = {"float": "a number", "array": "an array of numbers"}.get(expected[1], expected[1])
    rows = (
        "; rows of numbers are wanted, such as [[0.5, 1.2], [0, 3]]"
        if expected.groups() == ("float", "array")
        else ""
    )
    return f"expected {want}, got {expected[2]}{rows}"


def _not_numbers(error: msgspec.ValidationError, name: str, begun: int) -> InvalidFields:
    """What a decoder met that is no number, in an array of which it was given what follows `begun` rows."""
    indices = [int(index) for index in _PATH.findall(str(error))]
    if indices:
        indices[0] += begun
    return InvalidFields.at(name, *indices, msg=_wanted(str(error)))


def _refuse_ragged(row: list[float], width: int, name: str, index: int) -> None:
    if len(row) != width:
        raise InvalidFields.at(name, index, msg=f"row {index} has {len(row)} values, but row 0 has {width}")


def refuse_repeated_keys(body: bytes | memoryview | Buffer, array: msgspec.Raw | None) -> None:
    """Raise MalformedBody where any object in the body has a key twice. The array is cut out first, so that what is
    left to look through is small."""
    if array is None:
        envelope = bytes(body)
    else:
        envelope = without(body, array)
        if bytes(memoryview(array)[:1]) == b"{":
            _refuse_repeated_keys_of_text(array)
    try:
        _object_reader.decode(envelope.decode())
    except RecursionError:
        raise MalformedBody("the body is nested too deep") from None
    except ValueError as error:  # text that is not UTF-8, which the first decoder did not look into
        raise MalformedBody(f"the body is not valid JSON: {error}") from None


def without(body: bytes | memoryview | Buffer, array: msgspec.Raw) -> bytes:
    """The body, with 0 in the place of an array that was decoded from it."""
    start = _address(array) - _address(body)
    return bytes(body[:start]) + b"0" + bytes(body[start + len(memoryview(array)) :])


def _refuse_repeated_keys_of_text(array: msgspec.Raw) -> None:
    """Of an array as text, whose bytes are cut out in their turn."""
    try:
        text = _object_decoder.decode(array).get("base64")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # what is wrong shows when it is read
    beside = len(memoryview(array)) - (0 if text is None else len(memoryview(text)))
    if beside <= MAX_BESIDE_BYTES:  # with more it has fields of others' as well, which shows then, too
        refuse_repeated_keys(memoryview(array), text)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise MalformedBody(f"the key {first_repeated(name for name, _ in pairs)[:60]!r} stands in the body twice")
    return unique


def first_repeated(names: Iterable[str]) -> str:
    """The first of those that there are several of; counted all at once, for there may be a million names."""
    return next(name for name, count in Counter(names).items() if count > 1)


_object_reader = json.JSONDecoder(object_pairs_hook=_unique)


def _address(buffer: bytes | memoryview | Buffer | msgspec.Raw) -> int:
    """Where in memory it begins. A Raw is part of what it was decoded from."""
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def malformed(error: Exception, text: bytes | Buffer, array_field: str) -> MalformedBody | InvalidFields:
    """What is wrong with text that does not parse. NaN and Infinity are wrong values rather than wrong JSON
    to whoever sent them, so they are told with their row and column."""
    if isinstance(error, RecursionError):
        return MalformedBody("the body is nested too deep")
    return _not_finite(error, bytes(text), array_field) or MalformedBody(f"the body is not valid JSON: {error}")


def _not_finite(error: Exception, text: bytes, array_field: str, begun: int = 0) -> InvalidFields | None:
    """What a decoder met, where that is NaN or an infinity, in text of the array or the body, after `begun` rows."""
    at = _BYTE.search(str(error))
    found = None if at is None else _not_finite_at(text, int(at[1]))
    if found is None:
        return None
    start, token = found
    field, *indices = _position(text[:start], array_field)
    if indices:
        indices[0] = int(indices[0]) + begun
    return InvalidFields.at(field, *indices, msg=f"{token} is not a finite number")


def _not_finite_at(body: bytes, offset: int) -> tuple[int, str] | None:
    """The token at this byte, where it is NaN or an infinity."""
    for start in (offset - 1, offset):  # the minus of -Infinity is read before the error
        word = _NOT_A_NUMBER.match(body, max(start, 0))
        if word is not None:
            return word.start(), word[0].decode()
    return None


def _position(before: bytes, array_field: str) -> Location:
    """Where in the body a number stands, told by what comes before it."""
    key = _KEY.search(before)
    if key is not None:
        return (key[1].decode(errors="replace"),)
    column = before.count(b",", before.rfind(b"["))
    rows = _ROWS.search(before)
    if rows is None:
        return (array_field, column)
    return (array_field, before.count(b"[", rows.start()) - 2, column)
