"""More than is solved: every answer to a closed loop of clients, and the memory held meanwhile.

Each client sends the next request as soon as it has an answer, and so does one that was told to come back in a
second: more is refused than is solved, for as long as it lasts. Then as many clients do as they are told.
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
from tests.faults.load.clients import Connection
from tests.memory import held_bytes
from tests.wire import Answer, request

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
            self.looks.append([held_bytes("VmRSS", pid) for pid in self.pids])
            await asyncio.sleep(LOOK_SECONDS)

    def growth(self, process: int) -> float:
        """Percent, from the third quarter of the looks to the last: of medians."""
        held = [look[process] for look in self.looks]
        quarter = len(held) // 4
        return 100 * (float(np.median(held[-quarter:]) / np.median(held[-2 * quarter : -quarter])) - 1)

    def most(self, process: int) -> int:
        return max(look[process] for look in self.looks)


async def closed_loop(port: int, clients: int, seconds: float, expected: np.ndarray, *, obey: bool = True) -> Told:
    """What clients are told that each ask again and again; after a refusal at once, or when they are told to."""
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
                    if obey and answer.status == 503:
                        await asyncio.sleep(int(answer.headers.get("retry-after", "0")))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return told


def run(service: Service, clients: int = CLIENTS, seconds: float = SECONDS) -> Result:
    """The service is to run with SETTINGS."""
    service.client.put("/dictionaries/d", content=npy(D)).raise_for_status()
    memory = Memory([service.pid, service.worker_pid])

    async def measure() -> dict[str, tuple[float, Told]]:
        async with Connection(service.port) as connection:
            expected = codes_of(await connection.ask(ENCODE))
        short = seconds / 6
        few = await closed_loop(service.port, FEW, short, expected)
        watch = asyncio.ensure_future(memory.watch())
        many = await closed_loop(service.port, clients, seconds, expected, obey=False)
        watch.cancel()
        await asyncio.sleep(1)
        obedient = await closed_loop(service.port, clients, short, expected)
        return {
            f"{FEW}": (short, few),
            f"{clients}, at once again": (seconds, many),
            f"{clients}, as they are told": (short, obedient),
        }

    told = uvloop.run(measure())
    rates = {name: len(of.ms) * ROWS / lasted for name, (lasted, of) in told.items()}
    few, many, obedient = rates
    wrong = sum((of.wrong for _, of in told.values()), Counter())
    refused = told[many][1].refused
    return Result(
        [
            Figure(
                f"answers to {clients} clients that are neither right codes nor a 503 with Retry-After",
                wrong.total(),
                at_most=0,
                note=", ".join(f"{count} {what}" for what, count in wrong.items()),
            ),
            Figure("requests refused", refused, at_least=1, note=f"{len(told[many][1].ms)} admitted"),
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
            *(
                Figure(f"rows/s solved for {name}, of those for {FEW} clients", 100 * rates[name] / rates[few], "%")
                for name in (many, obedient)
            ),
        ],
        [
            Table(
                f"encodes of {ROWS} rows that were admitted",
                ["clients", "rows/s", "p50 (ms)", "p99 (ms)", "longest (ms)", "refused a second"],
                [
                    [name, rates[name], *(float(np.percentile(of.ms, q)) for q in (50, 99, 100)), of.refused / lasted]
                    for name, (lasted, of) in told.items()
                ],
            )
        ],
    )
