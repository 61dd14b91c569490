"""What a fit needs of disks and networks, asked by the event loop without waiting for it, and again while it does not
answer or has no room."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from app.errors import AppError, StoreAway, StoreUnavailable
from app.jobs.database_threads import RETRY_SECONDS
from app.outage import Outage
from app.threads import Threads

REACH_SECONDS = 600.0  # in which a fit waits for a store or data that cannot be used, before it fails
AWAY_SECONDS = 3.0  # in which one that has not begun waits for an object store that does not answer here

P = ParamSpec("P")
T = TypeVar("T")


class Cancelled(Exception):
    """The fit that waited is to end."""


class Patience:
    """How long one fit waits for something that is away.

    Args:
        stopped: set where the fit is to end.
        away_seconds: a shorter limit, for an object store that does not answer.
    """

    def __init__(self, what: str, stopped: threading.Event | None = None, away_seconds: float | None = None) -> None:
        self._stopped = stopped
        self._away_seconds = away_seconds
        self._since: float | None = None
        self._outage = Outage(f"a fit waits for {what}")

    async def wait(self, error: AppError) -> None:
        """Some time, in which it may come back. Raises the error where it has been away for long, and Cancelled."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        most = self._away_seconds if isinstance(error, StoreAway) else None
        if now - self._since > (REACH_SECONDS if most is None else most):
            raise error
        self._outage.note(error)
        await asyncio.sleep(RETRY_SECONDS)
        if self._stopped is not None and self._stopped.is_set():
            raise Cancelled

    def reset(self) -> None:
        """What was away is there: its time begins anew."""
        self._since = None
        self._outage.end()


async def reach(threads: Threads, patience: Patience, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a thread what needs the store; a fit is not lost for a store that is away. A stop waits for the call:
    who takes the job up next must find its dictionary."""
    while True:
        calling = asyncio.create_task(threads(call, *args, **kwargs))
        try:
            reached = await asyncio.shield(calling)
        except asyncio.CancelledError:
            await asyncio.wait({calling})
            raise
        except StoreUnavailable as error:
            await patience.wait(error)
        else:
            patience.reset()
            return reached
