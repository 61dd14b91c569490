"""The jobs' database, asked by the event loop without waiting for it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.errors import JobsUnavailable
from app.one_thread import OneThread

logger = logging.getLogger("dictserve")

RETRY_SECONDS = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class Records:
    """Calls of ``app.jobs``, and of what lies on the disk beside it, in threads of their own."""

    def __init__(self) -> None:
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self.write = OneThread("jobs-write")  # apart: one that waits for a lock holds up no reader

    async def read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reads, lambda: call(*args, **kwargs))

    async def surely(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write, again and again while the database cannot be used: the end of a fit is not to be lost."""
        while True:
            try:
                return await self.write(write, *args, **kwargs)
            except JobsUnavailable as error:
                logger.error("a job's record cannot be written: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def surely_read(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return await self.read(read, *args, **kwargs)
            except JobsUnavailable as error:
                logger.error("a job's record cannot be read: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def shutdown(self) -> None:
        self._reads.shutdown()
        self.write.shutdown()
