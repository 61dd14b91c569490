"""Bodies of the Open Inference Protocol (KServe v2), with Triton's binary tensor extension.

    | JSON, as long as the header Inference-Header-Content-Length says | the tensors' bytes, end to end |

Without that header the body is JSON alone. Bytes are little-endian and in C order.
Protocol: https://github.com/kserve/open-inference-protocol
Extension: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import orjson
from msgspec import Meta, Raw, Struct

from app.errors import FieldError, InvalidFields, MalformedBody
from app.formats import json_format
from app.formats.answer import Content
from app.formats.bfloat16 import widened
from app.worker.messages import Task

LENGTH_HEADER = "Inference-Header-Content-Length"
_LENGTH = re.compile(r"[0-9]{1,15}", re.ASCII)

DATATYPES = {
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BF16": "<u2",  # its bits
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
}

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`")
_PATH = re.compile(r"\w+")  # the parts of msgspec's «$.inputs[0].shape»

EXAMPLE_INPUTS = [{"name": "activations", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 1.5, 0.25, 0.0]}]

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Id = Annotated[str, Meta(max_length=1024)]  # it is answered as it came


class _Strict(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Parameters(_Strict, frozen=True):
    """Of a request. Those after the blank line are what clients send to servers that keep sequences or priorities;
    they change nothing here, where each request stands alone."""

    task: Task = "encode"
    clip: bool = False
    binary_data_output: bool = False

    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    priority: int = 0
    timeout: int | None = None


class InputParameters(_Strict, frozen=True):
    binary_data_size: Count | None = None


class Input(_Strict, frozen=True):
    name: str
    shape: Annotated[list[Size], Meta(min_length=1, max_length=2)]
    datatype: str
    parameters: InputParameters | None = None
    data: Annotated[Raw, Meta(description="The numbers, in one run or in rows.")] = msgspec.field(default_factory=Raw)


class OutputParameters(_Strict, frozen=True):
    binary_data: bool | None = None


class RequestedOutput(_Strict, frozen=True):
    name: str
    parameters: OutputParameters | None = None


class InferenceRequest(_Strict, frozen=True):
    """The JSON of a request."""

    inputs: Annotated[list[Input], Meta(description="Exactly one.", examples=[EXAMPLE_INPUTS])]
    outputs: list[RequestedOutput] | None = None
    id: Id | None = None
    model_name: str | None = None
    parameters: Parameters | None = None

    @property
    def options(self) -> Parameters:
        return self.parameters or Parameters()


class _OutlinedInput(Struct):
    data: Raw = msgspec.field(default_factory=Raw)


class _Outline(Struct):
    """Where the numbers of a request are; the rest is passed over, and costs no objects however much it is."""

    inputs: tuple[_OutlinedInput] = (_OutlinedInput(),)


Told = TypeVar("Told")

DATA = ("inputs", 0, "data")  # where the numbers of a request are


def json_length(told: str | None) -> int | None:
    """What the header ``Inference-Header-Content-Length`` says; None where it is absent."""
    if told is None:
        return None
    if _LENGTH.fullmatch(told) is None:
        raise MalformedBody(f"{LENGTH_HEADER} {told[:40]!r} is not a number of bytes")
    return int(told)


def decoded(text: bytes, struct: type[Told]) -> Told:
    """JSON as one of the protocol's objects.

    Raises:
        MalformedBody, InvalidFields: it is no JSON; it has other fields, or wrong values.
    """
    try:
        return msgspec.json.decode(text, type=struct)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        told = json_format.malformed(error, text, DATA[-1])
        raise (of_input(told) if isinstance(told, InvalidFields) else told) from None


def of_input(error: InvalidFields) -> InvalidFields:
    """What is wrong with `data`, told of that of the request's input."""
    placed = [FieldError((*DATA, *e.loc[1:]), e.msg) if e.loc[:1] == DATA[-1:] else e for e in error.errors]
    return InvalidFields(placed, error.count)


def read(body: memoryview, json_bytes: int | None) -> tuple[InferenceRequest, np.ndarray]:
    """What a request's JSON says, and its one input: a view of the body where it came as bytes, not yet validated.

    Args:
        json_bytes: the length of the body's JSON; None where it is all of the body.

    Raises:
        MalformedBody: the body is not what its header and its JSON say of it.
        InvalidFields: the JSON has wrong values.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise MalformedBody(f"{LENGTH_HEADER} is {json_bytes}, but the body has {len(body)} bytes")
    text = bytes(body[:json_bytes])
    json_format.refuse_many_keys(text)
    data = decoded(text, _Outline).inputs[0].data
    envelope = json_format.without(text, data) if _is_there(data) else text
    if len(envelope) > json_format.MAX_BESIDE_BYTES:
        raise _much_beside(text, data, len(envelope))
    request = decoded(envelope, InferenceRequest)
    json_format.refuse_repeated_keys(envelope, None)
    return request, _array(request.inputs[0], data, body[len(text) :])


def write(
    told: Mapping[str, object], arrays: Mapping[str, np.ndarray], binary: Collection[str]
) -> tuple[Content, int]:
    """The body of an answer, and how many bytes of it are JSON.

    Args:
        told: members of the answer beside its outputs.
        arrays: float32 or bool, by the outputs' names.
        binary: the outputs that are to follow the JSON as bytes.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = list(_json_in_pieces(told, arrays, binary))
    length = sum(map(len, text))
    tensors = [array.data.cast("B") for name, array in arrays.items() if name in binary]
    if length + sum(map(len, tensors)) <= json_format.PIECE_BYTES:
        return b"".join([*text, *tensors]), length
    return tuple(memoryview(part) for part in [*text, *tensors]), length


def _json_in_pieces(
    told: Mapping[str, object], arrays: Mapping[str, np.ndarray], binary: Collection[str]
) -> Iterator[bytes | memoryview]:
    yield orjson.dumps({**told, "outputs": []})[:-2]
    for index, (name, array) in enumerate(arrays.items()):
        output: dict[str, object] = {
            "name": name,
            "datatype": "BOOL" if array.dtype == np.bool_ else "FP32",
            "shape": array.shape,
        }
        if index:
            yield b","
        if name in binary:
            yield orjson.dumps(output | {"parameters": {"binary_data_size": array.nbytes}})
            continue
        yield orjson.dumps(output)[:-1] + b',"data":'
        yield from json_format.array_in_pieces(array.reshape(-1))
        yield b"}"
    yield b"]}"


def _much_beside(text: bytes, data: Raw, beside: int) -> InvalidFields | MalformedBody:
    sizes = {name: len(memoryview(value)) for name, value in decoded(text, dict[str, Raw]).items()}
    if "inputs" in sizes:
        sizes["inputs"] -= len(memoryview(data))
    try:
        json_format.refuse_much_beside(sizes, DATA[-1])
    except InvalidFields as error:
        return error
    return MalformedBody(f"the JSON has {beside} bytes beside its data, of blanks or of keys that stand there twice")


def _is_there(data: Raw) -> bool:
    return len(memoryview(data)) > 0


def _array(told: Input, data: Raw, binary: memoryview) -> np.ndarray:
    datatype = DATATYPES.get(told.datatype)
    if datatype is None:
        known = ", ".join(DATATYPES)
        raise InvalidFields.at("inputs", 0, "datatype", msg=f"{told.datatype[:20]!r} is not read; {known} are")
    dtype = np.dtype(datatype)
    size = told.parameters.binary_data_size if told.parameters else None
    if size is None:
        if len(binary):
            raise MalformedBody(f"{len(binary)} bytes follow the JSON, but the input has no binary_data_size")
        if not _is_there(data):
            raise InvalidFields.at("inputs", 0, "data", msg="required, or bytes after the JSON and binary_data_size")
        return _numbers(told, data, dtype)
    if _is_there(data):
        raise InvalidFields.at("inputs", 0, "data", msg="an input has either data or binary_data_size")
    wanted = math.prod(told.shape) * dtype.itemsize
    if size != wanted:
        raise MalformedBody(
            f"shape {told.shape} of {told.datatype} takes {wanted} bytes, but binary_data_size is {size}"
        )
    if len(binary) != size:
        raise MalformedBody(
            f"binary_data_size is {size}, but {len(binary)} bytes follow the JSON (its length is in {LENGTH_HEADER})"
        )
    array = np.frombuffer(binary, dtype).reshape(told.shape)
    return widened(array) if told.datatype == "BF16" else array


def _numbers(told: Input, data: Raw, dtype: np.dtype[np.generic]) -> np.ndarray:
    """The numbers in the JSON: in one run, whatever the shape, or in rows as the shape has them."""
    try:
        array = json_format.numbers(data, DATA[-1])
    except InvalidFields as error:
        raise of_input(error) from None
    if array.size != math.prod(told.shape) or (array.ndim == 2 and list(array.shape) != told.shape):
        raise InvalidFields.at(*DATA, msg=f"its shape is {list(array.shape)}, which does not make {told.shape}")
    if dtype.kind in "iu" and told.datatype != "BF16":
        _require_whole(array, told.datatype)
    return array.reshape(told.shape)


def _require_whole(array: np.ndarray, datatype: str) -> None:
    """Raises InvalidFields where a number is not of an integer's datatype. The largest of 64 bits is, as float64 has
    it, one more than the datatype has: it cannot be told from that."""
    limits = np.iinfo(DATATYPES[datatype])
    fits = (array >= float(limits.min)) & (array <= float(limits.max)) & (array == np.trunc(array))
    if not fits.all():
        at = np.unravel_index(fits.argmin(), array.shape)
        number = repr(float(array[at])).removesuffix(".0")
        raise InvalidFields.at(*DATA, *map(int, at), msg=f"{number} is no {datatype}")


def _invalid(error: msgspec.ValidationError) -> InvalidFields:
    """msgspec's error, with the place that it names."""
    message, at, path = str(error).rpartition(" - at `$")
    if not at:
        message, path = path, ""
    loc = [int(part) if part.isdigit() else part for part in _PATH.findall(path)]
    unknown, missing = _UNKNOWN_FIELD.fullmatch(message), _MISSING_FIELD.fullmatch(message)
    if unknown is not None:
        return InvalidFields.at(*loc, unknown[1][:60], msg="unknown field")
    if missing is not None:
        return InvalidFields.at(*loc, missing[1], msg="required")
    return InvalidFields.at(*loc, msg=message)
