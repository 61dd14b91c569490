"""Every request counted and timed; its id, which is told in the answer and stands in what it logs."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from app.direct import ROUTE
from app.logs import trace_id
from app.metrics import Metrics

logger = logging.getLogger("dictserve.access")

ID_HEADER = "X-Request-ID"
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Observed:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get(ID_HEADER, "")
        id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        clear_contextvars()
        bind_contextvars(request_id=id)
        if (trace := trace_id(headers.get("traceparent", ""))) is not None:
            bind_contextvars(trace_id=trace)
        status = "gone"  # the client, before it had an answer

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            seconds = time.perf_counter() - begun
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.observe(method, _route(scope), status, seconds)
            if self._access_log:
                told = {"method": method, "path": scope["path"], "status": status, "ms": round(1000 * seconds, 3)}
                logger.info("request", extra=told)


def _route(scope: Scope) -> str:
    """The route's pattern: a name or id in a path is no label's value."""
    return str(scope.get(ROUTE) or getattr(scope.get("route"), "path", "none"))
