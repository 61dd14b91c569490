"""Clients that leave before they are answered: nothing more is computed for them."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Scope

T = TypeVar("T")

# Keys of an ASGI scope that our protocol sets: the connection's `Leaving`, and the status with which the connection
# refused the request while it was under way.
LEAVING, REFUSED = "dictserve.leaving", "dictserve.refused"


class Gone(BaseException):
    """The client has left. Not an Exception: nobody is to make an answer of it."""


class Leaving:
    """A connection's: it has one request under way at a time."""

    __slots__ = ("_task", "has_left")

    def __init__(self) -> None:
        self.has_left = False
        self._task: asyncio.Task[object] | None = None

    def leave(self) -> None:
        """The connection is lost."""
        self.has_left = True
        if self._task is not None:
            self._task.cancel()

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """What comes of work that may be given up at any time.

        Raises:
            Gone: the client has left meanwhile, and the work was cancelled.
        """
        if self.has_left:
            if asyncio.iscoroutine(work):
                work.close()  # else Python tells that nobody awaits it
            raise Gone
        self._task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if not self.has_left or self._task is None or self._task.uncancel():  # the service stops, and others know
                raise
            raise Gone from None
        finally:
            self._task = None


def leaving_of(scope: Scope) -> Leaving | None:
    return scope.get(LEAVING)


async def unless_gone(scope: Scope, work: Awaitable[T]) -> T:
    """What comes of a request's work, which is given up once its client has left: see `Leaving.unless_gone`."""
    leaving = leaving_of(scope)
    return await (work if leaving is None else leaving.unless_gone(work))
