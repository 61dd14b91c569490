"""Calls that may block for long: in threads of their own, and one for all who ask for the same at once."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """What ``asyncio.to_thread`` does, whose few threads all share: calls that wait for a slow network take them all.

    Args:
        most: calls at once; those that come then wait for these. By default as many as asyncio has.
    """

    def __init__(self, name: str, most: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the call returns; raises whatever it raises."""
        in_context = partial(contextvars.copy_context().run, call, *args, **kwargs)  # log lines are of its request
        return await asyncio.get_running_loop().run_in_executor(self._threads, in_context)

    def shutdown(self) -> None:
        """Begin no more. A call under way is not waited for: who did so has left."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class OneForAll:
    """Calls by key, one of each under way at a time: who asks meanwhile has that one."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Future[None]] = {}

    def begun(self, key: Hashable, call: Callable[[], Awaitable[None]]) -> asyncio.Future[None]:
        """The call that is under way for the key, begun now if none is."""
        if key not in self._under_way:
            self._under_way[key] = asyncio.ensure_future(call())
            self._under_way[key].add_done_callback(partial(self._ended, key))
        return self._under_way[key]

    def _ended(self, key: Hashable, call: asyncio.Future[None]) -> None:
        del self._under_way[key]
        if not call.cancelled():
            call.exception()  # told to who waits for it, and it may be that nobody does any more
