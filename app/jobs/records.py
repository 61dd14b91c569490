"""The jobs' database, asked by the event loop without waiting for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.errors import JobsUnavailable
from app.jobs.one_thread import OneThread
from app.outage import Outage

RETRY_SECONDS = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class Records:
    """Calls of ``app.jobs.jobs``, and of what lies on the disk beside it, in threads of their own."""

    def __init__(self) -> None:
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self.write = OneThread("jobs-write")  # apart: one that waits for a lock holds up no reader

    async def read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reads, lambda: call(*args, **kwargs))

    async def surely(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write, again and again while the database cannot be used: the end of a fit is not to be lost."""
        outage = Outage("a job's record cannot be written")
        while True:
            try:
                done = await self.write(call, *args, **kwargs)
            except JobsUnavailable as error:
                outage.note(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                outage.end()
                return done

    def shutdown(self) -> None:
        self._reads.shutdown()
        self.write.shutdown()
