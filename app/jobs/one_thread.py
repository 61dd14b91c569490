"""Calls that may block, one after another in a thread of their own, as long as they come through."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.errors import JobsUnavailable

STUCK_SECONDS = 2.0  # a call that takes longer holds up no others: they are refused

P = ParamSpec("P")
T = TypeVar("T")


class OneThread:
    """Writes to the jobs' database. While one of them waits for a lock that somebody else has, those behind it would
    wait for its whole time and then for their own: they are refused at once instead."""

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
