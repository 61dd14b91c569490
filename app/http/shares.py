"""Each request's shares of the memory for bodies, taken back once its answer has been read, or its client is gone."""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.memory_budget import MemoryBudget, Share

SHARES = "dictserve.shares"  # of an ASGI scope


class Shares:
    """Middleware that gives each request its shares: of the bodies, and of the answers."""

    def __init__(self, app: ASGIApp, bodies: MemoryBudget, answers: MemoryBudget) -> None:
        self._app = app
        self._bodies = bodies
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shares = scope[SHARES] = Share(self._bodies), Share(self._answers)
        try:
            await self._app(scope, receive, send)
        finally:
            for share in shares:
                share.end()


def share_of_bodies(scope: Scope) -> Share:
    share: Share = scope[SHARES][0]
    return share


def share_of_answers(scope: Scope) -> Share:
    share: Share = scope[SHARES][1]
    return share
