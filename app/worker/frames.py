"""Frames between the service and its worker: one message and its arrays.

The channel is a Unix SOCK_SEQPACKET pair: it keeps the frames apart, so that none is ever half read. Small arrays
travel in the frame itself. Large ones are written to an anonymous file in memory (memfd) whose descriptor is
passed along: nothing is copied through the socket, and the kernel frees the memory when both sides have let go of
it, whatever killed them. Nothing is pickled.

    | header length (4 bytes) | header (msgpack) | the inline arrays, end to end |

A header too long for a packet (an online fit names its files) goes by the first descriptor; its length is 0 then.
"""

import math
import mmap
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from app.worker.messages import FromWorker, Message, ToWorker

INLINE_BYTES = 64 * 1024  # of all arrays of a frame together; what is larger goes by descriptor
MAX_HEADER_BYTES = 32 * 1024  # of a header in the frame
MAX_FRAME_BYTES = 2 * INLINE_BYTES  # well under the kernel's limit on a packet (about 200 KiB)
MAX_ARRAYS = 4

Rows = np.ndarray | Sequence[np.ndarray]  # an array, or its rows in several: they travel as one


class _ArrayHeader(msgspec.Struct, array_like=True):
    dtype: str
    shape: tuple[int, ...]
    inline: bool


class _Header(msgspec.Struct, array_like=True):
    message: FromWorker | ToWorker
    arrays: list[_ArrayHeader]


@dataclass
class Frame:
    message: Message
    arrays: list[np.ndarray] = field(default_factory=list)


class Closed(Exception):
    """The other side has closed the channel, or is gone."""


class Unmapped(MemoryError):
    """There is no memory to map a frame's arrays; ``message`` is what came with them."""

    def __init__(self, message: Message, error: Exception) -> None:
        super().__init__(f"what was sent cannot be mapped: {error}")
        self.message = message


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)


class Packed:
    """A frame ready to be sent. The descriptors in it are closed by ``close``, sent or not."""

    def __init__(self, message: Message, arrays: Sequence[Rows] = ()) -> None:
        stacks = [[array] if isinstance(array, np.ndarray) else array for array in arrays]
        inline = sum(part.nbytes for parts in stacks for part in parts) <= INLINE_BYTES
        headers = [_ArrayHeader(parts[0].dtype.str, _shape(parts), inline) for parts in stacks]
        header = _encoder.encode([message, headers])
        self.parts: list[bytes] = [len(header).to_bytes(4, "little"), header]
        self.descriptors: list[int] = []
        try:
            if len(header) > MAX_HEADER_BYTES:
                self.parts = [bytes(4)]
                self.descriptors.append(_memory_file([np.frombuffer(header, np.uint8)]))
            for parts in stacks:
                if inline:
                    self.parts.append(b"".join([np.ascontiguousarray(part).data for part in parts]))
                else:
                    self.descriptors.append(_memory_file(parts))
        except BaseException:
            self.close()
            raise

    def send(self, to: socket.socket) -> None:
        """Send it; BlockingIOError where a non-blocking socket has no room, Closed where nobody is there."""
        try:
            socket.send_fds(to, self.parts, self.descriptors)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


def send(to: socket.socket, message: Message, *arrays: np.ndarray) -> None:
    """Pack and send on a blocking socket."""
    packed = Packed(message, arrays)
    try:
        packed.send(to)
    finally:
        packed.close()


def receive(source: socket.socket) -> Frame:
    """The next frame. Its arrays are the receiver's own: small ones copied out, large ones mapped copy-on-write.

    Raises:
        Closed: the other side is gone.
        BlockingIOError: nothing is there (non-blocking sockets only).
        Unmapped: there is no memory for its arrays.
    """
    try:
        packet, descriptors, _, _ = socket.recv_fds(source, MAX_FRAME_BYTES, 1 + MAX_ARRAYS)
    except ConnectionResetError:
        raise Closed from None
    try:
        if not packet:
            raise Closed
        return _unpack(packet, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)  # what was mapped stays mapped


def _unpack(packet: bytes, descriptors: list[int]) -> Frame:
    remaining = iter(descriptors)
    length = int.from_bytes(packet[:4], "little")
    if length:
        header = _decoder.decode(packet[4 : 4 + length])
    else:
        with mmap.mmap(next(remaining), 0, access=mmap.ACCESS_READ) as memory:
            header = _decoder.decode(memory)
    offset = 4 + length
    arrays = []
    for told in header.arrays:
        dtype = np.dtype(told.dtype)
        count = math.prod(told.shape)
        if told.inline:
            array = np.frombuffer(packet, dtype, count, offset).copy()  # aligned, whatever the offset
            offset += array.nbytes
        else:
            try:
                memory = mmap.mmap(next(remaining), count * dtype.itemsize, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise Unmapped(header.message, error) from None
            array = np.frombuffer(memory, dtype, count)
        arrays.append(array.reshape(told.shape))
    return Frame(header.message, arrays)


def _shape(parts: Sequence[np.ndarray]) -> tuple[int, ...]:
    return sum(map(len, parts)), *parts[0].shape[1:]


def _memory_file(parts: Sequence[np.ndarray]) -> int:
    descriptor = os.memfd_create("dictserve-array", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", INLINE_BYTES, closefd=False) as file:  # the buffer gathers small parts
            for part in parts:
                file.write(np.ascontiguousarray(part).data)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
