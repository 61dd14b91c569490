"""HEAD, wherever GET is: the same answer, cut off before its body.

What answers the GET is not asked whether it can do without a body, and does not go on once its headers are there: a
stream of events, which may go on for hours, ends with them.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Middleware that has the app answer a HEAD as a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get: Scope = {**scope, "method": "GET", "extensions": {}}  # without that of answers that are one message
        begun: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def begin(message: Message) -> None:
            if message["type"] == "http.response.start" and not begun.done():
                begun.set_result(message)

        answering = asyncio.ensure_future(self._app(as_get, receive, begin))
        either: set[asyncio.Future[Any]] = {answering, begun}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if begun.done():
                scope["route"] = as_get.get("route")  # what it is counted under
                await send(begun.result())
                await send({"type": "http.response.body", "body": b""})
        finally:
            answering.cancel()
            await asyncio.wait({answering})
        if not answering.cancelled():
            answering.result()  # or what went wrong
