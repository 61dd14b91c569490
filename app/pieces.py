"""An answer that lies in memory already, sent as its client reads it: large arrays are not copied into one body."""

from collections.abc import Mapping, Sequence

from fastapi import Response
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 256 * 1024


class PiecesResponse(Response):
    """A body in several parts."""

    def __init__(self, parts: Sequence[memoryview], headers: Mapping[str, str], media_type: str) -> None:
        length = sum(len(part) for part in parts)
        super().__init__(None, headers=dict(headers) | {"Content-Length": str(length)}, media_type=media_type)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts:
            for start in range(0, len(part), PIECE_BYTES):
                body = part[start : start + PIECE_BYTES]
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
