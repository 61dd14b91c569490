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
from app.http.disconnects import REFUSED, Gone
from app.http.headers import header, headers_of
from app.http.problems import answer_to
from app.http.responses import WHOLE
from app.metrics import Metrics

logger = logging.getLogger("dictserve.access")

ID_HEADER = b"x-request-id"
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_OF_SCOPE = "dictserve.request_id"
_INSTANCE = secrets.token_hex(4)  # tells ids of this process from those of others
_numbers = itertools.count(1)
INSTEAD = "dictserve.instead"  # key of an ASGI scope: an app that answers in the service's place
PRIVATE = b"private, no-cache"
BEGINNINGS = {"http.response.start", WHOLE}  # messages with a status and headers
COUNTED_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


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
        id = id_of(scope)
        logs.of_request.set(_log_fields(scope))
        status = "gone"  # the client, before it had an answer
        is_read = scope["method"] in ("GET", "HEAD")
        has_come = False  # all of the body
        of_client = 0.0  # seconds that it took to send its body and to read its answer

        async def receive_observed() -> Message:
            nonlocal has_come, of_client
            if has_come:
                return await receive()
            asked = time.perf_counter()
            message = await receive()
            of_client += time.perf_counter() - asked
            has_come = not message.get("more_body", False)
            return message

        async def send_observed(message: Message) -> None:
            nonlocal status, of_client
            if message["type"] in BEGINNINGS:
                status = str(message["status"])
                message["headers"] = [*message.get("headers", ()), (ID_HEADER, id)]
                if is_read:
                    _keep_private(message["headers"])
            written = time.perf_counter()
            await send(message)
            of_client += time.perf_counter() - written

        try:
            await scope.get(INSTEAD, self._app)(scope, receive_observed, send_observed)
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
            route = route_of(scope) or "none"  # the pattern: a name or id in a path is no label's value
            self._metrics.observe(_method(scope), route, status, seconds - of_client)
            if self._access_log:
                _log(scope, status, seconds, of_client)


def id_of(scope: Scope) -> bytes:
    """The request's own id, or the one that it is given."""
    id: bytes | None = scope.get(_OF_SCOPE)
    if id is None:
        id = headers_of(scope).get(ID_HEADER, b"")
        if _ID.fullmatch(id) is None:
            id = f"{_INSTANCE}{next(_numbers):08x}".encode()
        scope[_OF_SCOPE] = id
    return id


def log_unserved(scope: Scope, status: str, seconds: float) -> None:
    """The line of a request that no app was asked, on its behalf: all of its time was the client's."""
    before = logs.of_request.set(_log_fields(scope))
    _log(scope, status, seconds, seconds)
    logs.of_request.reset(before)


def _log_fields(scope: Scope) -> dict[str, str]:
    fields = {"request_id": id_of(scope).decode()}
    if (trace := logs.trace_id(header(scope, b"traceparent"))) is not None:
        fields["trace_id"] = trace
    return fields


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in COUNTED_METHODS else "other"


def _log(scope: Scope, status: str, seconds: float, of_client: float) -> None:
    line = {
        "method": _method(scope),
        "path": scope["path"],
        "status": status,
        "ms": round(1000 * seconds, 3),
        "client_ms": round(1000 * of_client, 3),
    }
    logger.info("request", extra=line)


def _keep_private(headers: list[tuple[bytes, bytes]]) -> None:
    """A cache that many share knows nothing of `X-API-Key`, and what is asked for again may have changed."""
    told = {name.lower(): value for name, value in headers}
    if told.get(b"cache-control", b"no-cache") == b"no-cache":  # which FastAPI says of events
        headers[:] = [(name, value) for name, value in headers if name.lower() != b"cache-control"]
        headers.append((b"cache-control", PRIVATE))
    if b"x-content-type-options" not in told:
        headers.append((b"x-content-type-options", b"nosniff"))
