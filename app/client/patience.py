"""Waits for bytes that all end by one deadline.

httpx bounds each wait alone: a byte now and then, of a header or of nothing at all, would keep a call for ever.
Asyncio can end a call from outside; a thread can only wait for less long each time.
"""

import socket
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

LONGEST_SECONDS = 1e9  # for "without end": sockets take no infinity
CONNECTED = (".connect_tcp.complete", ".start_tls.complete")


class Left(float):
    """Seconds that were left when this was made, for httpx to pass on; ``now`` tells what is left now, or raises."""

    now: Callable[[], float]

    def __new__(cls, now: Callable[[], float]) -> Self:
        left = super().__new__(cls, now())
        left.now = now
        return left


class Sockets:
    """The sockets of a client's connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._is_shut = False

    def trace(self, event: str, told: Mapping[str, Any]) -> None:
        """httpcore's ``trace``: has each new connection look at what is left before each wait.

        What is left comes with the call, so a connection may be used by one call after another.
        """
        if not event.endswith(CONNECTED):
            return
        stream = told["return_value"]
        _in_time(stream)
        with self._lock:
            self._made.add(stream.get_extra_info("socket"))
        if self._is_shut:
            self.shut_down()

    def shut_down(self) -> None:
        """Wake the threads that wait for their bytes, from now on."""
        self._is_shut = True
        with self._lock:
            for each in self._made:
                with suppress(OSError):  # closed, or shut down by the other side
                    socket.socket.shutdown(each, socket.SHUT_RDWR)  # TLS's own would let plain text through


def _in_time(stream: Any) -> None:
    read, write = stream.read, stream.write

    def read_in_time(max_bytes: int, timeout: float | None = None) -> Any:
        return read(max_bytes, timeout=_left(timeout))

    def write_in_time(buffer: bytes, timeout: float | None = None) -> None:
        write(buffer, timeout=_left(timeout))

    stream.read, stream.write = read_in_time, write_in_time


def _left(timeout: float | None) -> float | None:
    return timeout.now() if isinstance(timeout, Left) else timeout
