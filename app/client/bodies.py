"""What a call sends: an array as npy, straight from its memory, or a file, straight from the disk.

A body is told its length before it goes out, and can be sent again: ``chunks`` begins anew each time.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Buffer: TypeAlias = bytes | memoryview

CHUNK_BYTES = 256 * 1024

MEDIA_TYPES = {
    "npy": "application/x-npy",
    "csv": "text/csv",
    "json": "application/json",
    "safetensors": "application/vnd.safetensors",
}


class Body(Protocol):
    """A request's body."""

    @property
    def content_type(self) -> str: ...

    @property
    def length(self) -> int: ...

    @property
    def on_disk(self) -> bool:
        """Whether making the next chunk waits for the disk."""

    def chunks(self) -> Iterator[Buffer]: ...


@dataclass(frozen=True)
class Held:
    """A body in memory, in pieces."""

    content_type: str
    pieces: tuple[Buffer, ...]
    on_disk: bool = False

    @property
    def length(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    def chunks(self) -> Iterator[Buffer]:
        for piece in self.pieces:
            view = memoryview(piece)
            for start in range(0, len(view), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]


@dataclass(frozen=True)
class OnDisk:
    """A file as it is now; one that grows meanwhile is sent up to the length that it had."""

    content_type: str
    path: Path
    length: int
    on_disk: bool = True

    def chunks(self) -> Iterator[Buffer]:
        left = self.length
        with self.path.open("rb") as file:
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise OSError(f"{self.path} has become shorter while it was sent")
                left -= len(chunk)
                yield chunk


def body_of(data: object) -> Body:
    """The body for what a caller has.

    Args:
        data: rows of numbers as an array, tensor (of any device), SciPy sparse matrix or lists; or the path of an
            npy, safetensors or CSV file; or a body already. A contiguous array is not copied.

    Raises:
        TypeError: it holds something other than numbers.
        ValueError: a path with another suffix, or of what is no file; or ragged lists.
        OSError: the file cannot be read.
    """
    if isinstance(data, Held | OnDisk):
        return data
    if isinstance(data, str | os.PathLike):
        return file_body(Path(data))
    return npy_body(as_array(data))


def file_body(path: Path) -> OnDisk:
    format = path.suffix.lower().removeprefix(".")
    if format not in MEDIA_TYPES or format == "json":  # JSON would have to hold the other fields too
        raise ValueError(f"{path} is not sent as a file: its suffix is to be .npy, .safetensors or .csv")
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe's length is not known, and it is read but once
        raise ValueError(f"{path} is no file on a disk: read it, and send the array")
    with path.open("rb") as file:
        return OnDisk(MEDIA_TYPES[format], path, os.fstat(file.fileno()).st_size)


def npy_body(array: Array) -> Held:
    """The array as npy: a header, then its own memory."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    flat = array.reshape(-1, order="C" if array.flags.c_contiguous else "F")
    return Held(MEDIA_TYPES["npy"], (header.getvalue(), flat.view(np.uint8).data))


def as_array(data: Any) -> Array:
    """Rows of numbers as an array; tensors and sparse matrices are known by what they can do, so that nothing of
    theirs has to be imported."""
    if isinstance(data, list | tuple) and hasattr(_first(data), "detach"):
        data = [as_array(each) for each in data]  # numpy takes no tensor with a gradient, and none of bfloat16
    if hasattr(data, "detach"):
        data = data.detach()
        if str(data.layout) != "torch.strided":
            data = data.to_dense()
        if str(data.dtype) == "torch.bfloat16":  # numpy has no such type
            data = data.float()
        data = data.cpu().numpy()
    elif hasattr(data, "toarray"):
        data = data.toarray()
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("a masked array is not sent, for the mask would be lost: fill it first, as with A.filled(0)")
    array = np.asarray(data)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"an array of {array.dtype} is not sent: rows of numbers are")
    return array


def _first(data: Any) -> Any:
    """Of what lists hold; of lists in lists, too."""
    while isinstance(data, list | tuple) and data:
        data = data[0]
    return data
