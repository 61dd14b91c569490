"""The store, asked by the event loop without waiting for it, and again while it does not answer or has no room."""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from app.errors import StoreUnavailable
from app.jobs.records import RETRY_SECONDS
from app.outage import Outage

REACH_SECONDS = 600.0  # in which a fit waits for a store that cannot be used, before it fails

P = ParamSpec("P")
T = TypeVar("T")


async def reach(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a thread what needs the store; a fit is not lost for a store that is away. A stop waits for the call:
    who takes the job up next must find its dictionary."""
    deadline = time.monotonic() + REACH_SECONDS
    outage = Outage("a fit waits for the store")
    while True:
        calling = asyncio.create_task(asyncio.to_thread(call, *args, **kwargs))
        try:
            reached = await asyncio.shield(calling)
        except asyncio.CancelledError:
            await asyncio.wait({calling})
            raise
        except StoreUnavailable as error:
            if time.monotonic() > deadline:
                raise
            outage.goes_on(error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            outage.is_over()
            return reached
