"""Every request counted and timed; its id, which is told in the answer and stands in what it logs."""

import asyncio
import itertools
import logging
import re
import secrets
import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.errors import Stopping
from app.http.direct import route_of
from app.http.head import header, headers_of
from app.http.leaving import REFUSED, Gone
from app.http.problems import answer_to
from app.http.ready import WHOLE
from app.metrics import Metrics

logger = logging.getLogger("dictserve.access")

ID_HEADER = b"x-request-id"
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
BEGINNINGS = {"http.response.start", WHOLE}  # messages with a status and headers
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Observed:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._instance = secrets.token_hex(4)  # tells ids of this process from those of others
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        id = headers_of(scope).get(ID_HEADER, b"")
        if _ID.fullmatch(id) is None:
            id = f"{self._instance}{next(self._numbers):08x}".encode()
        told = {"request_id": id.decode()}
        if (trace := logs.trace_id(header(scope, b"traceparent"))) is not None:
            told["trace_id"] = trace
        logs.of_request.set(told)
        status = "gone"  # the client, before it had an answer
        is_read = scope["method"] in ("GET", "HEAD")

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] in BEGINNINGS:
                status = str(message["status"])
                message["headers"] = [*message.get("headers", ()), (ID_HEADER, id)]
                if is_read:
                    _keep_private(message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Gone:
            status = scope.get(REFUSED, status)
        except asyncio.CancelledError:
            if status != "gone":
                raise
            # by uvicorn, when a stop's grace time is over; it would answer with a 500 and log where the request was
            error = Stopping("the service stops, and this took longer than it waits; send the request again")
            await answer_to(error).response_to(Request(scope))(scope, receive, send_observed)
        finally:
            seconds = time.perf_counter() - begun
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = route_of(scope) or "none"  # the pattern: a name or id in a path is no label's value
            self._metrics.observe(method, route, status, seconds)
            if self._access_log:
                line = {"method": method, "path": scope["path"], "status": status, "ms": round(1000 * seconds, 3)}
                logger.info("request", extra=line)


def _keep_private(headers: list[tuple[bytes, bytes]]) -> None:
    """A cache that many share knows nothing of `X-API-Key`, and what is asked for again may have changed."""
    if not any(name.lower() == b"cache-control" for name, _ in headers):
        headers.append((b"cache-control", b"private, no-cache"))
    if not any(name.lower() == b"x-content-type-options" for name, _ in headers):
        headers.append((b"x-content-type-options", b"nosniff"))
