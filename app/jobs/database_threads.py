"""The jobs' database, asked by the event loop without waiting for it: reads and writes in threads of their own, and
no write behind one that is stuck."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.errors import JobsUnavailable
from app.outage import Outage

RETRY_SECONDS = 1.0
STUCK_SECONDS = 2.0  # a write that takes longer holds up no others: they are refused

P = ParamSpec("P")
T = TypeVar("T")


class DatabaseThreads:
    """Calls of ``app.jobs.jobs``, and of what lies on the disk beside it."""

    def __init__(self) -> None:
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self.write = WriteThread("jobs-write")  # apart: one that waits for a lock holds up no reader

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


class WriteThread:
    """Writes one after another, as long as they come through. While one of them waits for a lock that somebody else
    has, those behind it would wait for its whole time and then for their own: they are refused at once instead."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._begun: float | None = None  # when the call that is under way began
        self._last_stuck = 0.0  # when the last one that took too long ended

    async def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the call returns.

        Raises:
            JobsUnavailable: an earlier call is stuck.
            Whatever the call raises.
        """
        asked, under_way = time.monotonic(), self._begun
        if under_way is not None and asked - under_way > STUCK_SECONDS:
            raise _stuck()

        def run() -> T:
            self._begun = begun = time.monotonic()
            try:
                if self._last_stuck > asked:
                    raise _stuck()
                return call(*args, **kwargs)
            finally:
                ended = time.monotonic()
                if ended - begun > STUCK_SECONDS:
                    self._last_stuck = ended
                self._begun = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def shutdown(self) -> None:
        self._thread.shutdown()


def _stuck() -> JobsUnavailable:
    return JobsUnavailable("the jobs' database cannot be written just now: an earlier write still waits for it")
