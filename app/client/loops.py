"""The connections of an `AsyncClient`. They belong to the event loop in which they were made, so each has its own: of
one that has ended, as `asyncio.run` ends its own, they are of no use to the next.

Each call has a connection to itself. httpcore's pool loses one for good whose call is cancelled at the wrong moment,
as by a timeout; what one call alone has is thrown away with what was left of it.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from app.client.config import KEEP_ALIVE_SECONDS, MAX_CONNECTIONS, Closable, made


class OfLoop(Closable):
    """What calls in one event loop share.

    Args:
        options: of httpx's clients.

    Attributes:
        turns: of as many calls as there may be connections. Those that follow a job take none.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._options = options
        self._used: set[httpx.AsyncClient] = set()
        self._idle: deque[tuple[float, httpx.AsyncClient]] = deque()  # with the time since when, the latest last
        self._expires = False  # whether it will be looked for those that have been idle for long
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """One of httpx's, for one call at a time. What is left after an error is not used again.

        Raises:
            ClientClosed: after `aclose`, or where that comes before the call has ended.
        """
        self.refuse_closed()
        client = self._idle.pop()[1] if self._idle else made(httpx.AsyncClient, self._options, 1, 1)
        self._used.add(client)
        try:
            with self.under_way():
                yield client
        except BaseException:
            self._close(client)
            raise
        else:
            self._keep(client)
        finally:
            self._used.discard(client)

    async def aclose(self) -> None:
        self._is_closed = True
        for client in [*self._used, *(client for _, client in self._idle)]:
            self._close(client)
        self._idle.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    def _keep(self, client: httpx.AsyncClient) -> None:
        if self._is_closed:
            return
        self._idle.append((time.monotonic(), client))
        if not self._expires:
            self._expire()

    def _expire(self) -> None:
        """Close those that have been idle for too long, now and later."""
        while self._idle and self._idle[0][0] <= time.monotonic() - KEEP_ALIVE_SECONDS:
            self._close(self._idle.popleft()[1])
        self._expires = bool(self._idle)
        if self._expires:
            asyncio.get_running_loop().call_later(KEEP_ALIVE_SECONDS, self._expire)

    def _close(self, client: httpx.AsyncClient) -> None:
        """In a task of its own, which who cancels the call does not cancel."""
        closing = asyncio.create_task(client.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class Loops(Closable):
    """What calls share, of each event loop.

    Args:
        options: of httpx's clients. A transport among them is closed with this.

    Raises:
        ValueError: proxies that the environment names cannot be used.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._transport: httpx.AsyncBaseTransport | None = options["transport"]
        lent = None if self._transport is None else _Lent(self._transport)
        self._options = {**options, "transport": lent}
        # Of this process, and of its parents.
        self._of_loops: dict[tuple[int, asyncio.AbstractEventLoop], OfLoop] = {}
        made(httpx.AsyncClient, self._options, 1, 1)  # the proxies are looked at now

    def here(self) -> OfLoop:
        """Of the loop that runs.

        Raises:
            ClientClosed: after `aclose`.
        """
        self.refuse_closed()
        here = pid, _ = os.getpid(), asyncio.get_running_loop()
        if here not in self._of_loops:
            for other in list(self._of_loops):
                if other[0] == pid and other[1].is_closed():  # and cannot close its connections: they end with this
                    self._of_loops.pop(other, None)  # another thread may have done so
            self._of_loops[here] = OfLoop(self._options)
        return self._of_loops[here]

    async def aclose(self) -> None:
        """Close what this loop has, and have other loops that run close theirs."""
        self._is_closed = True
        here = asyncio.get_running_loop()
        for pid, loop in list(self._of_loops):
            if pid != os.getpid() or (of_loop := self._of_loops.pop((pid, loop), None)) is None:
                continue
            if loop is here:
                await of_loop.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(of_loop.aclose(), loop)
        if self._transport is not None:
            await self._transport.aclose()


class _Lent(httpx.AsyncBaseTransport):
    """A transport that outlives those of httpx's clients that use it."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)
