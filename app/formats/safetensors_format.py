"""safetensors bodies: one tensor named like the array's field (or the only one there is), any float or integer dtype.

The library would copy the body; here its header is read, as strictly, and the array is a view of the body.
Format: https://github.com/huggingface/safetensors
"""

import math

import msgspec
import numpy as np
import safetensors.numpy

from app.errors import MalformedBody
from app.formats.answer import Answer
from app.formats.bfloat16 import widened
from app.formats.buffer import MAX_DIMENSIONS, Buffer, Size, shaped
from app.formats.json_format import refuse_repeated_keys

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
READ_HEADER_BYTES = 4 * 1024 * 1024  # of some thirty thousand tensors, where one is wanted

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
}


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]  # in what follows the header


_header_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_tensor_decoder = msgspec.json.Decoder(_Tensor)
_metadata_decoder = msgspec.json.Decoder(dict[str, str])


def begins(head: bytes) -> bool:
    """Whether a body that begins so is one: eight bytes of a sane header length, then the header's JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER_BYTES


def read(body: Buffer, array_field: str) -> dict[str, np.ndarray]:
    """The array, as a view of the body (a widened copy of bfloat16), by the field's name.

    Raises:
        MalformedBody: it is no safetensors file, holds no such tensor, or one of another kind.
    """
    length = int.from_bytes(body[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(body) - 8):
        raise MalformedBody(
            f"this is not a safetensors body: its header claims {length} bytes, of {len(body)} in all"
        )
    if length > READ_HEADER_BYTES:
        raise MalformedBody(f"the safetensors header has {length} bytes; at most {READ_HEADER_BYTES} are read")
    tensors = _tensors(bytes(body[8 : 8 + length]))
    _refuse_gaps(tensors, len(body) - 8 - length)
    if array_field in tensors:
        tensor = tensors[array_field]
    elif len(tensors) == 1:
        (tensor,) = tensors.values()
    else:
        names = ", ".join(repr(name[:30]) for name in sorted(tensors)[:5]) or "none"
        raise MalformedBody(f"the safetensors body needs a tensor named {array_field!r}; it has {names}")
    if tensor.dtype not in _DTYPES:
        raise MalformedBody(f"tensors of dtype {tensor.dtype[:20]} are not read; floats and integers are")
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise MalformedBody(f"the tensor has {len(tensor.shape)} dimensions; two are wanted (rows, columns)")
    dtype, count = np.dtype(_DTYPES[tensor.dtype]), math.prod(tensor.shape)
    start, stop = tensor.data_offsets
    if count * dtype.itemsize != stop - start:
        told = f"shape {tensor.shape} of {tensor.dtype} takes {count * dtype.itemsize} bytes, not {stop - start}"
        raise MalformedBody(f"this is not a safetensors body: {told}")
    array = shaped(np.frombuffer(memoryview(body)[8 + length + start :][: stop - start], dtype), tensor.shape)
    return {array_field: widened(array) if tensor.dtype == "BF16" else array}


def _tensors(header: bytes) -> dict[str, _Tensor]:
    try:
        told = _header_decoder.decode(header)
        _metadata_decoder.decode(told.pop("__metadata__", b"{}"))
        tensors = {name: _tensor_decoder.decode(tensor) for name, tensor in told.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"this is not a safetensors body: its header: {str(error)[:200]}") from None
    refuse_repeated_keys(header, None)
    return tensors


def _refuse_gaps(tensors: dict[str, _Tensor], data_bytes: int) -> None:
    """The tensors must follow each other and fill what follows the header."""
    end = 0
    for start, stop in sorted(tensor.data_offsets for tensor in tensors.values()):
        if start != end or stop < start:
            raise MalformedBody(f"this is not a safetensors body: at byte {end} of its data there is no one tensor")
        end = stop
    if end != data_bytes:
        raise MalformedBody(f"this is not a safetensors body: its tensors have {end} bytes, but {data_bytes} follow")


def write(answer: Answer) -> bytes:
    """All arrays by name, the scalars as metadata."""
    arrays = {name: np.ascontiguousarray(array) for name, array in answer.arrays.items()}
    return safetensors.numpy.save(arrays, metadata=answer.as_text())
