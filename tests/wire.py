"""Requests and answers of HTTP/1.1 as they go over the wire, whole or not."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass


def head(method: str, target: str, length: int, **headers: str) -> bytes:
    """Of a request with so many bytes of body; underscores in the names of headers stand for hyphens."""
    told = {"Host": "x", "Content-Length": str(length)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def request(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole one."""
    return head(method, target, len(body), **headers) + body


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # by their names in lower case
    body: bytes


def read(text: bytes) -> Answer:
    """An answer, or one's head."""
    told, _, body = text.partition(b"\r\n\r\n")
    first, *lines = told.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split(" ", 2)[1]), headers, body)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the other side closes it."""
    return b"".join(iter(lambda: connection.recv(65536), b""))
