"""An answer that lies in memory already, sent as its client reads it: large arrays are not copied into one body, and
no answer is written to the socket faster than it is taken."""

from collections.abc import Mapping

from fastapi import Response
from starlette.types import Receive, Scope, Send

from app.formats.answer import Content
from app.http.shares import share_of_answers, share_of_bodies

PIECE_BYTES = 256 * 1024
WHOLE = "dictserve.response"  # an extension of ASGI: a message that is a whole answer, which leaves in one write


class ReadyResponse(Response):
    """A body, whole or in parts, and headers in lower case: nothing is left to be looked through or converted."""

    def __init__(self, content: Content, media_type: str, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self.body = content if isinstance(content, bytes) else b""
        self._parts = () if isinstance(content, bytes) else content
        self._length = length = len(self.body) + sum(len(part) for part in self._parts)
        charset = "; charset=utf-8" if media_type.startswith("text/") else ""
        self.raw_headers = [
            *((name.encode(), value.encode("latin-1")) for name, value in headers.items()),
            (b"content-length", b"%d" % length),
            (b"content-type", f"{media_type}{charset}".encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        is_small = len(self.body) <= PIECE_BYTES and not self._parts
        if is_small and WHOLE in scope.get("extensions", ()):
            await send({"type": WHOLE, **head, "body": self.body})
            return
        share_of_answers(scope).hold(self._length, anyhow=True)
        share_of_bodies(scope).hold(0)  # nothing is left of what was asked with
        await send({"type": "http.response.start", **head})
        for part in self._parts or (memoryview(self.body),):
            for start in range(0, len(part), PIECE_BYTES):
                body = part[start : start + PIECE_BYTES]
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
