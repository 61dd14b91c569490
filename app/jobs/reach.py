"""The store, asked by the event loop without waiting for it, and again while an object store does not answer."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from app.errors import StoreFull, StoreUnavailable
from app.jobs.records import RETRY_SECONDS
from app.store.store import Store

logger = logging.getLogger("dictserve")

REACH_SECONDS = 600.0  # in which a fit waits for an object store that does not answer, before it fails

P = ParamSpec("P")
T = TypeVar("T")


async def reach(store: Store, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a thread what needs the store; a fit is not lost for a network that is away. A stop waits for the call:
    who takes the job up next must find its dictionary."""
    deadline = time.monotonic() + REACH_SECONDS
    while True:
        calling = asyncio.create_task(asyncio.to_thread(call, *args, **kwargs))
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            await asyncio.wait({calling})
            raise
        except StoreUnavailable as error:
            if store.is_near or isinstance(error, StoreFull) or time.monotonic() > deadline:
                raise
            logger.error("a fit waits for the object store: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
