"""A request and its answer on a connection of HTTP/1.1: uvicorn's, which may also be answered in one message, or be
refused before its body has come."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.http.responses import WHOLE

DRAINED_BYTES = 256 * 1024  # of a refused body that are waited for: a new connection costs about as much


class Cycle(RequestResponseCycle):
    """A request and its answer, which may also be one message."""

    is_refusal = False  # an answer before the body
    _is_of_unknown_length = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and self._precedes_body():
            self.is_refusal = True
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        if message["type"] != WHOLE:
            if self.scope["http_version"] == "1.0":
                self._send_unchunked(message)
            await super().send(message)
            self.keep_alive = self.keep_alive or self.is_refusal  # the connection closes it, not this
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[message["status"]]]
        for name, value in (*self.default_headers, *message["headers"]):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", message["body"])
        self.transport.write(b"".join(lines))
        self.response_started = self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _send_unchunked(self, message: Any) -> None:
        """HTTP/1.0 has no chunks: a body of unknown length ends with its connection."""
        if message["type"] == "http.response.start":
            self._is_of_unknown_length = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            if self._is_of_unknown_length:
                self.chunked_encoding = False
        elif self._is_of_unknown_length:
            self.expected_content_length = len(message.get("body", b""))

    def _precedes_body(self) -> bool:
        """Whether so much of the body has not come, or so little is known of it, that it is not waited for."""
        if not self.more_body:
            return False
        declared = dict(self.scope["headers"]).get(b"content-length", b"")
        return self.waiting_for_100_continue or not declared.isdigit() or int(declared) > DRAINED_BYTES
