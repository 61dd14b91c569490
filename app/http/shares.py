"""Each request's share of the memory for bodies, taken back once it is answered, or gone."""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.room import Room, Share

SHARE = "dictserve.share"  # of an ASGI scope


class Shares:
    """Middleware that gives each request its share."""

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        share = scope[SHARE] = Share(self._room)
        try:
            await self._app(scope, receive, send)
        finally:
            share.hold(0)


def share_of(scope: Scope) -> Share:
    share: Share = scope[SHARE]
    return share
