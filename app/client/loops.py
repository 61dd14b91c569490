"""The connections of an `AsyncClient`. They belong to the event loop in which they were made, so each has its own: of
one that has ended, as `asyncio.run` ends its own, they are of no use to the next."""

import asyncio
from collections.abc import Callable

import httpx

from app.client.config import CLOSED, MAX_CONNECTIONS, Pools
from app.client.errors import ClientClosed


class OfLoop:
    """What calls in one event loop share.

    Attributes:
        turns: of as many calls as there are connections. The pool would go through all that wait for one at every
            change, which takes the loop's time by the square of their number.
    """

    def __init__(self, pools: Pools[httpx.AsyncClient]) -> None:
        self.pools = pools
        self.turns = asyncio.Semaphore(MAX_CONNECTIONS)

    async def aclose(self) -> None:
        for pool in self.pools.closed():
            await pool.aclose()


class Loops:
    """What calls share, of each event loop.

    Args:
        make: as of `Pools`.

    Raises:
        ValueError: proxies or certificates that the environment names cannot be used.
    """

    def __init__(self, make: Callable[[httpx.Limits], httpx.AsyncClient]) -> None:
        self._make = make
        self._spare: Pools[httpx.AsyncClient] | None = Pools(make)  # of the first loop; a proxy is looked at now
        self._of_loops: dict[asyncio.AbstractEventLoop, OfLoop] = {}
        self._is_closed = False

    def here(self) -> OfLoop:
        """Of the loop that runs.

        Raises:
            ClientClosed: after `aclose`.
        """
        if self._is_closed:
            raise ClientClosed(CLOSED)
        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            for other in list(self._of_loops):
                if other.is_closed():  # and cannot close its connections any more: they end with this
                    del self._of_loops[other]
            spare, self._spare = self._spare, None
            self._of_loops[loop] = OfLoop(spare or Pools(self._make))
        return self._of_loops[loop]

    async def aclose(self) -> None:
        """Close what this loop has, and have other loops that run close theirs."""
        self._is_closed = True
        here = asyncio.get_running_loop()
        while self._of_loops:
            loop, of_loop = self._of_loops.popitem()
            if loop is here:
                await of_loop.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(of_loop.aclose(), loop)
