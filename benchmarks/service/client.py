"""HTTP/1.1 over keep-alive sockets, as cheap as a client can be: it shares the cores with what it measures."""

import http.client
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from benchmarks.process import Failed, TimedOut

HOST = "127.0.0.1"
RECEIVE_BYTES = 1 << 20
MOST_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True)
class Load:
    """What a load came to.

    Attributes:
        ms: milliseconds of each request, from its first byte out to its answer's last byte in.
        seconds: from the first request's start to the last answer's end.
        client_seconds: of processor time that the clients themselves took.
    """

    ms: list[float]
    seconds: float
    client_seconds: float

    @property
    def per_second(self) -> float:
        return len(self.ms) / self.seconds

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.ms, percent))


def exchange(port: int, request: bytes, *, limit_seconds: float) -> Answer:
    """One request and its answer, on a connection of its own."""
    with socket.create_connection((HOST, port), timeout=limit_seconds) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Answer(response.status, response.headers, response.read())


def get(port: int, path: str, *, limit_seconds: float) -> Answer:
    return exchange(port, f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(), limit_seconds=limit_seconds)


def closed_loop(port: int, requests: Sequence[bytes], *, seconds: float, limit_seconds: float) -> Load:
    """As many clients as there are requests; each sends its own, waits for the answer, and sends it again.

    No request is begun once `seconds` are over; those under way are waited for, and counted.

    Raises:
        Failed: an answer is not 200, or a connection was closed.
        TimedOut: not all answers have come within `limit_seconds`.
    """
    buffer = memoryview(bytearray(RECEIVE_BYTES))
    clients = [_Client(port, request) for request in requests]
    times: list[float] = []
    with selectors.DefaultSelector() as selector:
        try:
            begun = now = time.perf_counter()
            busy = time.process_time()
            for client in clients:
                client.begin(selector)
            while selector.get_map():
                for key, events in selector.select(timeout=1.0):
                    client = key.data
                    if events & selectors.EVENT_WRITE:
                        client.send(selector)
                    if events & selectors.EVENT_READ and client.receive(buffer):
                        now = time.perf_counter()
                        times.append(1e3 * (now - client.begun))
                        if now - begun < seconds:
                            client.begin(selector)
                        else:
                            selector.unregister(client.socket)
                if time.perf_counter() - begun > limit_seconds:
                    raise TimedOut(f"over {limit_seconds:.0f} s")
        finally:
            for client in clients:
                client.socket.close()
    return Load(times, now - begun, time.process_time() - busy)


class _Client:
    """One connection and its request."""

    def __init__(self, port: int, request: bytes) -> None:
        self._request = memoryview(request)
        self.socket = socket.create_connection((HOST, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.begun = 0.0
        self._unsent = self._request[:0]
        self._head = b""
        self._missing: int | None = None  # bytes of the answer's body; None before its head is read

    def begin(self, selector: selectors.BaseSelector) -> None:
        self._unsent, self._head, self._missing = self._request, b"", None
        self.begun = time.perf_counter()
        self.send(selector)

    def send(self, selector: selectors.BaseSelector) -> None:
        """Send what there is room for, and wait for room only while something is left."""
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        known = selector.get_map().get(self.socket)
        if known is None:
            selector.register(self.socket, wanted, self)
        elif known.events != wanted:
            selector.modify(self.socket, wanted, self)

    def receive(self, buffer: memoryview) -> bool:
        """Take what has come; whether the answer is whole."""
        count = self.socket.recv_into(buffer)
        if count == 0:
            raise Failed("the server closed the connection")
        if self._missing is None:
            self._head += bytes(buffer[:count])
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if len(self._head) > MOST_HEAD_BYTES:
                    raise Failed("the answer's head has no end")
                return False
            self._missing = _body_bytes(self._head[:end], self._head[end + 4 :])
            count = len(self._head) - end - 4
        self._missing -= count
        return self._missing == 0


def _body_bytes(head: bytes, body: bytes) -> int:
    """The length of an answer's body."""
    status, *headers = head.split(b"\r\n")
    if status.split(b" ", 2)[1] != b"200":
        raise Failed(f"{status.decode()}: {body[:200].decode(errors='replace')}")
    for header in headers:
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise Failed("the answer does not say its length")
