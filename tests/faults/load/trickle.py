"""Slow clients: what hundreds of connections that send a byte a second cost one that does not.

Half of them dawdle over a request's headers, half over its body. The service closes each with a 408 once its time is
up, and it opens another at once.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import uvloop

from benchmarks.figures import Figure, Result, Table
from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.load.clients import HOST, Connection, take
from tests.wire import request

SLOW = 500
REST_SECONDS = 10.0  # measured without them, before and again after
HELD_SECONDS = 40.0  # with them: longer than a body may take (transfer_seconds), so that every kind is closed
PAUSE_SECONDS = 1.0  # between two bytes
MOST_TIMES_SLOWER = 3.0
RESET = 0  # in the place of a status: a byte was under way when the service closed, so that its answer was lost

_RNG = np.random.default_rng(0)
D = _RNG.random((64, 512), np.float32)
ENCODE = request("POST", "/encode?dictionary=d", npy(_RNG.random((1, 512), np.float32)))
HEADERS = request("POST", "/encode?dictionary=d", X_Padding="x" * 4096)
BODY = request("POST", "/encode?dictionary=d", npy(_RNG.random((2, 512), np.float32)))
HEAD_OF_BODY = BODY.index(b"\r\n\r\n") + 4


@dataclass
class Slow:
    """The slow connections together."""

    pause_seconds: float
    open: int = 0
    fewest_open: int = 0
    closed: Counter[int] = field(default_factory=Counter)  # by the status that each was told

    async def dawdle(self, port: int, first_after: float, sent: bytes, at_once: int) -> None:
        """Send a byte at a time, after some at once, until the service closes the connection; and again."""
        await asyncio.sleep(first_after)
        while True:
            reader, writer = await asyncio.open_connection(HOST, port)
            self.open += 1
            answer = asyncio.ensure_future(take(reader))
            try:
                writer.write(sent[:at_once])
                for byte in sent[at_once:]:
                    writer.write(bytes([byte]))
                    await asyncio.wait({answer}, timeout=self.pause_seconds)
                    if answer.done():
                        break
                self.closed[(await answer).status] += 1
            except (asyncio.IncompleteReadError, OSError):
                self.closed[RESET] += 1
            finally:
                self.open -= 1
                answer.cancel()
                writer.close()

    @asynccontextmanager
    async def held(self, port: int, count: int) -> AsyncIterator[None]:
        """Within, so many are open."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self.dawdle(port, self.pause_seconds * i / count, *((HEADERS, 0), (BODY, HEAD_OF_BODY))[i % 2])
                )
                for i in range(count)
            ]
            async with asyncio.timeout(10 + self.pause_seconds):
                while self.open < count:  # noqa: ASYNC110 - for a second
                    await asyncio.sleep(0.05)
            watch = group.create_task(self._watch())
            try:
                yield
            finally:
                for task in [*tasks, watch]:
                    task.cancel()

    async def _watch(self) -> None:
        self.fewest_open = self.open
        while True:
            await asyncio.sleep(0.1)
            self.fewest_open = min(self.fewest_open, self.open)


async def encode(port: int, seconds: float) -> list[float]:
    """Milliseconds of each encode of one row by one client, one after another."""
    times = []
    end = time.perf_counter() + seconds
    async with Connection(port) as connection:
        while (begun := time.perf_counter()) < end:
            answer = await connection.ask(ENCODE)
            times.append(1e3 * (time.perf_counter() - begun))
            assert answer.status == 200, answer
    return times


def run(
    service: Service,
    slow: int = SLOW,
    rest_seconds: float = REST_SECONDS,
    held_seconds: float = HELD_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
) -> Result:
    service.client.put("/dictionaries/d", content=npy(D)).raise_for_status()

    async def measure() -> tuple[list[float], list[float], Slow]:
        held = Slow(pause_seconds)
        await encode(service.port, 1.0)
        alone = await encode(service.port, rest_seconds)
        async with held.held(service.port, slow):
            beside = await encode(service.port, held_seconds)
        alone += await encode(service.port, rest_seconds)
        return alone, beside, held

    alone, beside, held = uvloop.run(measure())
    p99 = {name: float(np.percentile(times, 99)) for name, times in (("alone", alone), ("beside", beside))}
    return Result(
        [
            Figure(
                f"one row encoded beside {slow} connections of a byte a second: its p99 over that without them",
                p99["beside"] / p99["alone"],
                "×",
                at_most=MOST_TIMES_SLOWER,
                note=f"{p99['beside']:.3g} ms, alone {p99['alone']:.3g} ms",
            ),
            Figure(
                "the fewest of them open at a time", held.fewest_open, note="those closed together come back together"
            ),
            Figure(
                "of them answered otherwise than with a 408",
                held.closed.total() - held.closed[408] - held.closed[RESET],
                at_most=0,
                note=f"{held.closed[408]} with a 408, {held.closed[RESET]} by a reset that overtook it",
            ),
        ],
        [
            Table(
                "one client, encodes of one row",
                ["", "encodes", "p50 (ms)", "p99 (ms)", "longest (ms)"],
                [
                    [name, len(times), *(float(np.percentile(times, q)) for q in (50, 99, 100))]
                    for name, times in (("alone", alone), (f"beside {slow} slow ones", beside))
                ],
            )
        ],
    )
