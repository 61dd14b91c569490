"""Very many small requests and fits, and the memory of both processes meanwhile: what leaks shows.

Eight clients send encodes and decodes in every format, lists, reads, and requests that are refused, in turn; another
fits, one small fit after another under a few names, labels, and removes all but the latest versions and every other
job's record. The first tenth of the requests is warm-up: caches fill, pools of threads grow, allocators find their
size. Memory is the median of the looks in the last tenth over that of the second tenth.
"""

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import orjson
import safetensors.numpy
import uvloop

from benchmarks.figures import Figure, Result, Table
from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.load.clients import Connection
from tests.faults.load.held import MOST_OF_POOLS, held, left_over, settled
from tests.memory import held_bytes
from tests.wire import request

REQUESTS = 200_000
FITS = 200
CLIENTS = 8
NAMES = 5  # that are fitted, in turn
KEPT_VERSIONS = 2  # of each
LOOKS = 200  # at the memory, spread over the requests
TOLD_LOOKS = 20  # of them in the table
MOST_GROWTH = 5.0  # percent
MOST_MORE = {"descriptors": 2, "memory files": 2, "children": 0}  # than at the end of the warm-up
MIB = 1024 * 1024

_RNG = np.random.default_rng(0)
D = _RNG.random((64, 512), np.float32)
SMALL = np.eye(4, 8, dtype=np.float32) + 0.1
FITTED = _RNG.random((100, 8), np.float32)

JSON = {"Content_Type": "application/json"}
TENSOR = {"name": "activations", "shape": [2, 8], "datatype": "FP32", "data": FITTED[:2].tolist()}


def _asked() -> dict[str, tuple[bytes, int]]:
    """What is asked, in turn, and the status that each must get."""
    wide, rows = npy(_RNG.random((1, 512), np.float32)), FITTED[:3]
    codes = npy(np.ones((2, 4), np.float32))
    in_json = {"dictionary": "d", "data": rows.tolist()}

    def post(target: str, body: bytes, **headers: str) -> bytes:
        return request("POST", target, body, **headers)

    return {
        "encode npy": (post("/encode?dictionary=d", npy(rows)), 200),
        "encode a wide row": (post("/encode?dictionary=wide", wide), 200),
        "encode float64": (post("/encode?dictionary=d", npy(rows.astype(np.float64))), 200),
        "encode JSON": (post("/encode", orjson.dumps(in_json), **JSON), 200),
        "encode JSON, sparse": (post("/encode", orjson.dumps(in_json | {"top_k": 2}), **JSON), 200),
        "encode safetensors": (
            post("/encode?dictionary=d&reconstruct=true", safetensors.numpy.save({"data": rows})),
            200,
        ),
        "encode CSV": (post("/encode?dictionary=d", b"0,1,2,3,4,5,6,7\n", Content_Type="text/csv"), 200),
        "infer": (post("/v2/models/d/infer", orjson.dumps({"inputs": [TENSOR]}), **JSON), 200),
        "decode npy": (post("/decode?dictionary=d", codes), 200),
        "decode JSON": (post("/decode", orjson.dumps({"dictionary": "d", "data": [[1, 0, 0, 2]]}), **JSON), 200),
        "list of dictionaries": (request("GET", "/dictionaries"), 200),
        "list of jobs": (request("GET", "/jobs?limit=5"), 200),
        "record": (request("GET", "/dictionaries/d"), 200),
        "weights": (request("GET", "/dictionaries/d/weights"), 200),
        "model": (request("GET", "/v2/models/d"), 200),
        "readyz": (request("GET", "/readyz"), 200),
        "metrics": (request("GET", "/metrics"), 200),
        "unknown dictionary": (post("/encode?dictionary=nope", codes), 404),
        "unknown job": (request("GET", "/jobs/nope"), 404),
        "malformed JSON": (post("/encode", b'{"dictionary": "d", "data": [[1, NaN]]}', **JSON), 422),
        "truncated npy": (post("/encode?dictionary=d", npy(rows)[:-1]), 400),
        "wrong width": (post("/encode?dictionary=d", codes), 422),
    }


OFTEN = ("encode npy", "encode a wide row", "encode JSON", "decode npy")  # four times as often as the others


@dataclass
class Soak:
    """One run: what is still to be asked, what was answered wrongly, and the memory meanwhile."""

    service: Service
    requests: int
    fits: int
    asked: int = 0
    fitted: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    looks: list[tuple[int, ...]] = field(default_factory=list)  # requests, and bytes of both processes
    warm: list[dict[str, int]] = field(default_factory=list)  # what both held at the end of the warm-up

    def __post_init__(self) -> None:
        self.pids = [self.service.pid, self.service.worker_pid]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fit())
            for _ in range(CLIENTS):
                group.create_task(self._ask())

    async def _ask(self) -> None:
        every = _asked()
        turn = itertools.cycle([*every, *(OFTEN * 3)])
        async with Connection(self.service.port) as connection:
            while self.asked < self.requests:
                self.asked += 1
                self._look()
                kind = next(turn)
                content, status = every[kind]
                await self._require(connection, kind, content, status)

    async def _require(self, connection: Connection, kind: str, content: bytes, status: int) -> bytes:
        """The body of the answer, which must have this status; a worse one is noted, and the load goes on."""
        try:
            answer = await connection.ask(content)
        except Exception as error:  # whatever it is: it is no answer
            self.wrong[f"{kind}: {type(error).__name__}"] += 1
            return b""
        if answer.status != status:
            self.wrong[f"{kind}: {answer.status} {answer.body[:200]!r}"] += 1
        return answer.body

    async def _fit(self) -> None:
        """The fits, spread over the requests."""
        async with Connection(self.service.port) as connection:
            for number in range(self.fits):
                while self.asked < self.requests * number / self.fits:  # noqa: ASYNC110 - a look costs nothing
                    await asyncio.sleep(0.005)
                await self._fit_once(connection, number)
                self.fitted += 1

    async def _fit_once(self, connection: Connection, number: int) -> None:
        name = f"fitted-{number % NAMES}"
        fit = request(
            "POST", f"/fit?name={name}&nb_concepts=4&max_iter=20&seed={number}", npy(FITTED), Prefer="wait=60"
        )
        job = orjson.loads(await self._require(connection, "fit", fit, 200))
        version = number // NAMES + 1
        if (job["state"], job["version"]) != ("succeeded", version):
            self.wrong[f"fit: {job}"] += 1
        labels = request("PATCH", f"/dictionaries/{name}", b'{"labels": {"a": "b"}}', **JSON)
        await self._require(connection, "label", labels, 200)
        encode = request("POST", f"/encode?dictionary={name}", npy(FITTED))
        await self._require(connection, "encode on what was fitted", encode, 200)
        if version > KEPT_VERSIONS:
            old = request("DELETE", f"/dictionaries/{name}@{version - KEPT_VERSIONS}")
            await self._require(connection, "remove a version", old, 204)
        if number % 2:
            await self._require(connection, "remove a job", request("DELETE", f"/jobs/{job['id']}"), 204)

    def _look(self) -> None:
        if self.asked % max(1, self.requests // LOOKS) == 0:
            self.looks.append((self.asked, *(held_bytes("VmRSS", pid) for pid in self.pids)))
            if len(self.looks) == LOOKS // 10:
                self.warm = [held(pid) for pid in self.pids]
            if len(self.looks) % (LOOKS // TOLD_LOOKS) == 0:
                told = ", ".join(f"{size / MIB:.1f} MiB" for size in self.looks[-1][1:])
                print(f"{self.asked} requests, {self.fitted} fits; HTTP process, worker: {told}", file=sys.stderr)

    def growth(self, process: int) -> float:
        """Percent, from the second tenth of the looks to the last."""
        sizes = [look[1 + process] for look in self.looks]
        tenth = max(1, len(sizes) // 10)
        return 100 * (float(np.median(sizes[-tenth:]) / np.median(sizes[tenth : 2 * tenth])) - 1)

    def more(self) -> Iterator[str]:
        """What either process holds more of, at the end, than at the end of the warm-up."""
        bound = [
            {what: before[what] + more for what, more in MOST_MORE.items()} | MOST_OF_POOLS for before in self.warm
        ]
        for process, before, now in zip(("HTTP process", "worker"), bound, settled(self.pids, bound), strict=True):
            yield from (f"{now[what]} {what} of the {process}" for what in now if now[what] > before[what])


def run(service: Service, requests: int = REQUESTS, fits: int = FITS) -> Result:
    service.client.put("/dictionaries/d", content=npy(SMALL)).raise_for_status()
    service.client.put("/dictionaries/wide", content=npy(D)).raise_for_status()
    soak = Soak(service, requests, fits)
    begun = time.monotonic()
    uvloop.run(soak.run())
    seconds = time.monotonic() - begun
    more, files = list(soak.more()), left_over(service)
    return Result(
        [
            Figure(
                f"of {requests} requests and {soak.fitted} fits, answers that are not what they must be",
                soak.wrong.total(),
                at_most=0,
                note="; ".join(f"{count} {what}" for what, count in soak.wrong.most_common(5)),
            ),
            *(
                Figure(f"memory of the {name} after the warm-up", soak.growth(process), "%", at_most=MOST_GROWTH)
                for process, name in enumerate(("HTTP process", "worker"))
            ),
            Figure(
                "descriptors, mapped memory, threads, processes that are left",
                len(more),
                at_most=0,
                note="; ".join(more),
            ),
            Figure("files of uploads and of versions under way that are left", len(files), at_most=0),
            Figure("requests a second", requests / seconds),
        ],
        [
            Table(
                "memory as the requests went on",
                ["requests", "HTTP process (MiB)", "worker (MiB)"],
                [
                    [asked, *(round(size / MIB, 1) for size in sizes)]
                    for asked, *sizes in soak.looks[:: max(1, LOOKS // TOLD_LOOKS)]
                ],
            )
        ],
    )
