"""More than is solved: every answer of a closed loop of clients that take no refusal for one, and the memory held.

Each client sends the next request as soon as it has an answer, and so does one that was told to come back in a
second: more is refused than is solved, for as long as it lasts.
"""

import asyncio
import io
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import uvloop

from benchmarks.figures import Figure, Result, Table
from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.load.clients import Answer, Connection, request
from tests.faults.load.held import resident_bytes

CLIENTS = 200
FEW = 8  # who ask for what can be solved, for comparison
SECONDS = 60.0
ROWS = 64
QUEUE_ROWS = 2048  # of the service: a sixth of what the clients ask for at once
SETTINGS = {"DICTSERVE_QUEUE_ROWS": str(QUEUE_ROWS)}
LOOK_SECONDS = 0.25  # between two looks at the memory
MOST_GROWTH = 5.0  # percent, from the third quarter of the time to the last
MIB = 1024 * 1024

_RNG = np.random.default_rng(0)
D = _RNG.random((64, 512), np.float32)
A = _RNG.random((ROWS, 64), np.float32) @ D
ENCODE = request("POST", "/encode?dictionary=d", npy(A))


@dataclass
class Told:
    """What the clients were told."""

    ms: list[float] = field(default_factory=list)  # of each that was admitted
    refused: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def note(self, answer: Answer, expected: np.ndarray, ms: float) -> None:
        if answer.status == 200:
            self.ms.append(ms)
            if not np.allclose(codes_of(answer), expected, atol=1e-5):
                self.wrong["other codes"] += 1
        elif answer.status == 503 and int(answer.headers.get("retry-after", "0")) > 0:
            self.refused += 1
        else:
            self.wrong[f"status {answer.status}"] += 1


def codes_of(answer: Answer) -> np.ndarray:
    return np.load(io.BytesIO(answer.body), allow_pickle=False)  # type: ignore[no-any-return]


@dataclass
class Memory:
    """What each process held, look by look."""

    pids: list[int]
    looks: list[list[int]] = field(default_factory=list)

    async def watch(self) -> None:
        while True:
            self.looks.append([resident_bytes(pid) for pid in self.pids])
            await asyncio.sleep(LOOK_SECONDS)

    def growth(self, process: int) -> float:
        """Percent, from the third quarter of the looks to the last: of medians."""
        held = [look[process] for look in self.looks]
        quarter = len(held) // 4
        return 100 * (float(np.median(held[-quarter:]) / np.median(held[-2 * quarter : -quarter])) - 1)

    def most(self, process: int) -> int:
        return max(look[process] for look in self.looks)


async def closed_loop(port: int, clients: int, seconds: float, expected: np.ndarray) -> Told:
    told = Told()
    end = time.perf_counter() + seconds

    async def client() -> None:
        async with Connection(port) as connection:
            while (begun := time.perf_counter()) < end:
                try:
                    answer = await connection.ask(ENCODE)
                except Exception as error:  # whatever it is: it is no answer
                    told.wrong[type(error).__name__] += 1
                else:
                    told.note(answer, expected, 1e3 * (time.perf_counter() - begun))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return told


def run(service: Service, clients: int = CLIENTS, seconds: float = SECONDS) -> Result:
    """The service is to run with SETTINGS."""
    service.client.put("/dictionaries/d", content=npy(D)).raise_for_status()
    memory = Memory([service.pid, service.worker_pid])

    async def measure() -> tuple[Told, Told]:
        async with Connection(service.port) as connection:
            expected = codes_of(await connection.ask(ENCODE))
        few = await closed_loop(service.port, FEW, seconds / 6, expected)
        watch = asyncio.ensure_future(memory.watch())
        many = await closed_loop(service.port, clients, seconds, expected)
        watch.cancel()
        return few, many

    few, many = uvloop.run(measure())
    rates = {"few": len(few.ms) * ROWS / (seconds / 6), "many": len(many.ms) * ROWS / seconds}
    return Result(
        [
            Figure(
                f"answers to {clients} clients that are neither right codes nor a 503 with Retry-After",
                many.wrong.total() + few.wrong.total(),
                at_most=0,
                note=", ".join(f"{count} {what}" for what, count in (many.wrong + few.wrong).items()),
            ),
            Figure("requests refused", many.refused, at_least=1, note=f"{len(many.ms)} admitted"),
            *(
                Figure(
                    f"memory of the {name}, last quarter of the time over the third",
                    memory.growth(process),
                    "%",
                    at_most=MOST_GROWTH,
                    note=f"at most {memory.most(process) / MIB:.0f} MiB",
                )
                for process, name in enumerate(("HTTP process", "worker"))
            ),
            Figure("rows/s solved, of those solved for 8 clients", 100 * rates["many"] / rates["few"], "%"),
        ],
        [
            Table(
                f"encodes of {ROWS} rows that were admitted",
                ["clients", "rows/s", "p50 (ms)", "p99 (ms)", "longest (ms)", "refused a second"],
                [
                    [FEW, rates["few"], *(float(np.percentile(few.ms, q)) for q in (50, 99, 100)), few.refused],
                    [
                        clients,
                        rates["many"],
                        *(float(np.percentile(many.ms, q)) for q in (50, 99, 100)),
                        many.refused / seconds,
                    ],
                ],
            )
        ],
    )
