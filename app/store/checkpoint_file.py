"""The file of a checkpoint: a fit's state in a safetensors file that tells what it is of and whether it is whole.

The tensors come one after the other, and the last, ``sha256``, is the digest of all the bytes before it: the header
with what is told of the fit, and the tensors. So the file is written in one pass, and one that is cut short, or of
which a bit has flipped, is never taken for a state. Nothing here needs torch: ``dictserve check`` reads these too.
"""

import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from app.store.disk import NoRegularFile, open_regular

FORMAT = 1
DIGEST = "sha256"
DIGEST_BYTES = 32
PIECE_BYTES = 4 * 1024 * 1024  # hashed and copied in some milliseconds: a slice of the worker's loop
ALIGNMENT = 64  # as torch has it: products of factors that lie otherwise may round otherwise
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class CheckpointUnusable(Exception):
    """The file is not a whole checkpoint, or one of another fit; the message says what is wrong with it."""


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint says of itself, in its header.

    Attributes:
        of: the fit's data and parameters: a state serves a fit of the very same alone.
        numbers: those of the state.
        seconds: that the fit had taken, without what was lost to interruptions.
    """

    format: int
    job: str
    of: dict[str, Any]
    numbers: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Rows:
    """A tensor that is read a few rows at a time, wherever it lies."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[slice], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass
class Checkpoint:
    """A whole one, read. The arrays are the reader's own."""

    metadata: Metadata
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


# -- writing ----------------------------------------------------------------------------------------------


def _header(metadata: Metadata, tensors: Mapping[str, Rows]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"checkpoint": msgspec.json.encode(metadata).decode()}}
    offset = 0
    for name, rows in tensors.items():
        entries[name] = _entry(rows.dtype, rows.shape, offset, rows.nbytes)
        offset += rows.nbytes
    entries[DIGEST] = _entry("U8", (DIGEST_BYTES,), offset, DIGEST_BYTES)
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entry(dtype: str, shape: tuple[int, ...], offset: int, nbytes: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": (offset, offset + nbytes)}


def size(metadata: Metadata, tensors: Mapping[str, Rows]) -> int:
    """Bytes of the file."""
    return len(_header(metadata, tensors)) + sum(rows.nbytes for rows in tensors.values()) + DIGEST_BYTES


def write(file: IO[bytes], metadata: Metadata, tensors: Mapping[str, Rows], stopped: Callable[[], bool]) -> None:
    """Write it all, or as far as it was when ``stopped`` said so. Neither hashing nor writing holds Python's lock."""
    digest = hashlib.sha256()

    def put(piece: bytes | memoryview) -> None:
        digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[file.write(view) :]  # an unbuffered file may take less than all

    put(_header(metadata, tensors))
    for rows in tensors.values():
        for piece in pieces(rows.shape, DTYPES[rows.dtype].itemsize):
            if stopped():
                return
            put(np.ascontiguousarray(rows.read(piece)).data.cast("B"))
    file.write(digest.digest())


def pieces(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    """Rows that are a piece together, at least one."""
    rows = max(1, PIECE_BYTES // (math.prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


# -- reading ----------------------------------------------------------------------------------------------


def read_steps(path: Path) -> Generator[None, None, Checkpoint]:
    """A checkpoint, in bounded slices, once its digest was found to hold.

    Raises:
        CheckpointUnusable: it is damaged, or of another format.
        OSError: of other kinds, above all FileNotFoundError.
    """
    try:
        yield from _verify_steps(path)
        with safe_open(path, "np") as file:
            checkpoint = Checkpoint(_metadata_of(file.metadata()))
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name == DIGEST:
                    continue
                source = file.get_slice(name)
                shape, dtype = tuple(source.get_shape()), DTYPES[source.get_dtype()]
                array = _aligned(shape, dtype)
                for rows in pieces(shape, dtype.itemsize):
                    array[rows] = source[rows]
                    yield
                checkpoint.arrays[name] = array
    except NoRegularFile as error:
        raise CheckpointUnusable(str(error)) from None
    except (SafetensorError, KeyError) as error:
        raise CheckpointUnusable(f"it is no checkpoint of format {FORMAT}: {error}") from None
    return checkpoint


def _verify_steps(path: Path) -> Generator[None, None, None]:
    """Raises as ``read_steps`` does where the digest does not hold."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0, opener=open_regular) as file:
        left = os.fstat(file.fileno()).st_size - DIGEST_BYTES
        while left > 0:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                break
            digest.update(piece)
            left -= len(piece)
            yield
        if left != 0 or file.read(DIGEST_BYTES) != digest.digest():
            raise CheckpointUnusable("it is not what was written (its SHA-256 differs)")


def iteration_of(path: Path) -> int:
    """How far the fit of a checkpoint is, by what that says of itself, whole or not; -1 of what is none."""
    try:
        with safe_open(path, "np") as file:
            return int(_metadata_of(file.metadata()).numbers["iteration"])
    except (OSError, SafetensorError, KeyError, CheckpointUnusable):
        return -1


def _metadata_of(raw: Mapping[str, str] | None) -> Metadata:
    try:
        metadata = msgspec.json.decode((raw or {})["checkpoint"], type=Metadata)
    except msgspec.DecodeError as error:
        raise CheckpointUnusable(f"what it tells of itself cannot be read: {error}") from None
    if metadata.format != FORMAT:
        raise CheckpointUnusable(f"it is of format {metadata.format}; this service reads format {FORMAT}")
    return metadata


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + nbytes].view(dtype).reshape(shape)
