"""What Ray's proxies answer where no replica does: told to them by
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=app.http.ray_proxy:middlewares``.

Of itself a proxy answers a request whose replica died on the way with 500, as if another try would fail as well. Here
that is a 503, as when a worker dies. As with a connection that breaks, what was asked for may have been done.
"""

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import AppError, Overloaded, WorkerUnavailable
from app.http.observed import ID_HEADER
from app.http.problems import answer_to

RAYS = "/-/"  # paths that Ray answers itself: whether the proxy is well, and what it knows
LOST = "the replica was lost on the way; send the request again in a moment"
BUSY = "no replica has room for the request; send it again in a moment"


def middlewares() -> list[Middleware]:
    return [Middleware(Retryable)]


class Retryable:
    """Middleware around a proxy's own app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAYS):
            await self._app(scope, receive, send)
            return
        begun = refused = False

        async def refuse(error: AppError) -> None:
            await answer_to(error).response_to(Request(scope))(scope, receive, send)

        async def send_or_refuse(message: Message) -> None:
            nonlocal begun, refused
            if message["type"] == "http.response.start":
                begun = True
                refused = message["status"] == 503 and not _has(message, b"retry-after")  # which all of ours have
                if refused:
                    await refuse(Overloaded(BUSY))
                elif _has(message, ID_HEADER):  # the replica's, by which it logs, and after it the proxy's
                    id = next(value for name, value in message["headers"] if name == ID_HEADER)
                    message["headers"] = [h for h in message["headers"] if h[0] != ID_HEADER] + [(ID_HEADER, id)]
            if not refused:
                await send(message)

        try:
            await self._app(scope, receive, send_or_refuse)
        finally:
            if not begun:
                await refuse(WorkerUnavailable(LOST))


def _has(message: Message, name: bytes) -> bool:
    return any(known == name for known, _ in message["headers"])
