"""The app as Ray Serve's replicas call it: what these do otherwise than a server of HTTP is made up for."""

import asyncio

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from app.http.disconnects import LEAVING, Leaving
from app.services import Services


class ReplicaApp:
    """
    - Bodies are sent as bytes: Ray cannot pass on the memory of an array.
    - Serve cancels whatever is done for a client that has left. The app is told that it has, as our own server tells
      it, and comes to its end in order: a cancel anywhere might leave an upload behind, and would look like a stop.
    - A route prefix is taken off the path, by which tokens are asked for, and put before the places that are told.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._answering: set[asyncio.Task[None]] = set()  # which nobody else holds once their clients have left
        self.services: Services = app.state.services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix: str = scope.get("root_path", "")
        leaving, left = Leaving(), asyncio.Event()

        async def receive_until_left() -> Message:
            receiving, waiting = asyncio.ensure_future(receive()), asyncio.ensure_future(left.wait())
            try:
                await asyncio.wait({receiving, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if receiving.done() and not receiving.cancelled() and receiving.exception() is None:
                    return receiving.result()
                return {"type": "http.disconnect"}  # whatever Ray's error is, no more comes of the client
            finally:
                receiving.cancel()
                waiting.cancel()

        async def send_passable(message: Message) -> None:
            if "body" in message:
                message["body"] = bytes(message["body"])
            if prefix and "headers" in message:
                message["headers"] = [_placed(prefix.encode(), *header) for header in message["headers"]]
            if not leaving.has_left:
                await send(message)

        path = scope["path"].removeprefix(prefix) or "/"
        scope = {**scope, "path": path, "root_path": "", LEAVING: leaving}
        answering = asyncio.create_task(self._app(scope, receive_until_left, send_passable))
        self._answering.add(answering)
        answering.add_done_callback(self._forget)
        try:
            await asyncio.shield(answering)
        except asyncio.CancelledError:
            leaving.leave()
            left.set()
            raise

    def _forget(self, answering: asyncio.Task[None]) -> None:
        self._answering.discard(answering)
        if not answering.cancelled():
            answering.exception()  # which is logged where it was raised; else asyncio tells of it once more


def _placed(prefix: bytes, name: bytes, value: bytes) -> tuple[bytes, bytes]:
    is_place = name == b"location" and value.startswith(b"/")
    return name, prefix + value if is_place else value
