"""NumPy's npy format, versions 1 to 3, read strictly and without trust.

``numpy.load`` may allocate by what a header claims, before it looks at the body, and unpickles object arrays.
Here the header is a bounded literal, the dtype one of a few, and the size must match the body's to the byte.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import ast
import io
import math
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from app.errors import MalformedBody
from app.formats.answer import Answer, Content
from app.formats.buffer import MAX_DIMENSIONS, Buffer, shaped

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096
COPIED_BYTES = 1024 * 1024  # of an answer's array that is put into one body with its header
PREFIX_BYTES = 12  # magic, version and the longer of the two header lengths
MOST_BITS = 128  # of a size: of any array's, and of those that are told to be more than there is
HEAD_BYTES = PREFIX_BYTES + MAX_HEADER_BYTES  # have whatever there may be before an array

# float16/32/64 and the integers, of either byte order; `|` (no order) is for single bytes.
_DTYPE = re.compile(r"[<>=]?(f[248]|[iu][248])|[<>=|]?[iu]1")


@dataclass(frozen=True)
class Header:
    dtype: np.dtype[np.generic]
    fortran_order: bool
    shape: tuple[int, ...]
    data_offset: int  # bytes before the array's own

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(head: bytes) -> Header:
    """The header, from a body's beginning that holds it whole."""
    if not head.startswith(MAGIC):
        raise MalformedBody("this is not an npy body: it does not begin with \\x93NUMPY")
    if len(head) < PREFIX_BYTES:
        raise MalformedBody(f"this npy body ends inside its header, after {len(head)} bytes")
    major = head[6]
    if major not in (1, 2, 3):
        raise MalformedBody(f"npy format version {major} is not known; versions 1, 2 and 3 are")
    start = 10 if major == 1 else 12
    length = int.from_bytes(head[8:start], "little")
    if length > MAX_HEADER_BYTES:
        raise MalformedBody(f"the npy header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    end = start + length
    if len(head) < end:
        raise MalformedBody(f"this npy body ends inside its header: {len(head)} of {end} bytes")
    return _header(head[start:end], "utf-8" if major == 3 else "latin-1", end)


# Python's tokenizer, of `1or`, on the service's stderr; what comes of such a header is told to whoever sent it.
warnings.filterwarnings("ignore", r"invalid \w+ literal")


@lru_cache(maxsize=64)  # a client's bodies have much the same header, and a literal takes 20 µs
def _header(text: bytes, encoding: str, end: int) -> Header:
    try:
        fields = ast.literal_eval(text.decode(encoding).strip())
    except (ValueError, SyntaxError, UnicodeDecodeError, MemoryError, RecursionError):
        raise MalformedBody("the npy header is not a Python literal") from None
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise MalformedBody("the npy header must have exactly the keys descr, fortran_order and shape")
    return Header(
        dtype=_dtype(fields["descr"]),
        fortran_order=_boolean(fields["fortran_order"]),
        shape=_shape(fields["shape"]),
        data_offset=end,
    )


def read(body: Buffer, array_field: str) -> dict[str, np.ndarray]:
    """The array, as a view of the body, by the field's name."""
    header = parse_header(bytes(body[:HEAD_BYTES]))
    return {array_field: _view(header, memoryview(body))}


def _view(header: Header, body: memoryview) -> np.ndarray:
    """The array of a whole body with this header, as a view of the body."""
    got = len(body) - header.data_offset
    if got != header.data_bytes:
        raise MalformedBody(
            f"the npy header tells of shape {header.shape} and dtype {header.dtype.str!r}, "
            f"{header.data_bytes} bytes, but {got} follow it"
        )
    flat = np.frombuffer(body, header.dtype, offset=header.data_offset)
    return shaped(flat, header.shape, "F" if header.fortran_order else "C")


def write(answer: Answer) -> Content:
    """The one array; the scalars are in the headers. A large one is not copied: its header and itself."""
    array = np.ascontiguousarray(answer.main)
    header = _header_of(array.dtype, array.shape)
    if array.nbytes > COPIED_BYTES:
        return memoryview(header), array.data.cast("B")
    return b"".join((header, array.data))  # once copied, where a buffer that grows would copy it twice


@lru_cache(maxsize=64)
def _header_of(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """The header of an array in C order."""
    header = io.BytesIO()
    told = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, told)
    return header.getvalue()


def _shown(value: object) -> str:
    try:
        return str(value)[:60]
    except ValueError:  # a number of thousands of digits
        return "…"


def _dtype(descr: object) -> np.dtype[np.generic]:
    if not isinstance(descr, str) or _DTYPE.fullmatch(descr) is None:
        raise MalformedBody(
            f"npy dtype {str(descr)[:60]!r} is not read; float16, float32, float64 and integers are (`<f4` is best)"
        )
    return np.dtype(descr)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise MalformedBody("fortran_order in the npy header must be True or False")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise MalformedBody(f"shape {_shown(value)!r} in the npy header is not a tuple of sizes")
    if any(n.bit_length() > MOST_BITS for n in value):  # by hexadecimal digits; too many to be told in others
        raise MalformedBody("shape in the npy header tells of more than any array has")
    if len(value) > MAX_DIMENSIONS:
        raise MalformedBody(f"the npy array has {len(value)} dimensions; two are wanted (rows, columns)")
    return value
