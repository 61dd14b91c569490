"""safetensors bodies: one tensor named like the array's field (or the only one there is), any float or integer dtype.

The library checks the header: its length, the offsets, that tensors neither overlap nor leave gaps.
Format: https://github.com/huggingface/safetensors
"""

import numpy as np
import safetensors
import safetensors.numpy

from app.errors import MalformedBody
from app.formats.answer import Answer
from app.formats.bfloat16 import widened
from app.formats.buffer import Buffer

MAX_HEADER_BYTES = 100_000_000  # the library's own limit

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


def begins(head: bytes) -> bool:
    """Whether a body that begins so is one: eight bytes of a sane header length, then the header's JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER_BYTES


def read(body: Buffer, array_field: str) -> dict[str, np.ndarray]:
    """The array, by the field's name.

    Raises:
        MalformedBody: it is no safetensors file, holds no such tensor, or one of another kind.
    """
    try:
        tensors = dict(safetensors.deserialize(bytes(body)))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise MalformedBody(f"this is not a safetensors body: {str(error)[:200]}") from None
    if array_field in tensors:
        tensor = tensors[array_field]
    elif len(tensors) == 1:
        (tensor,) = tensors.values()
    else:
        names = ", ".join(repr(name[:30]) for name in sorted(tensors)[:5]) or "none"
        raise MalformedBody(f"the safetensors body needs a tensor named {array_field!r}; it has {names}")
    dtype = _DTYPES.get(tensor["dtype"])
    if dtype is None:
        raise MalformedBody(f"tensors of dtype {tensor['dtype']} are not read; floats and integers are")
    array = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return {array_field: widened(array) if tensor["dtype"] == "BF16" else array}


def write(answer: Answer) -> bytes:
    """All arrays by name, the scalars as metadata."""
    arrays = {name: np.ascontiguousarray(array) for name, array in answer.arrays.items()}
    return safetensors.numpy.save(arrays, metadata=answer.as_text())
