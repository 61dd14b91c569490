"""What a replica's work costs, and whether two replicas do what that tells.

Costs are processor seconds of the HTTP process, its worker and the clients, read from /proc under closed loops. Rows
are planted: each uses some concepts of a random dictionary. A request costs the HTTP process a + b·bytes (in and
out), and the worker w for itself and c(k)·d^y·L0^z·exp(u·L0/d) for each row: least squares of relative errors, c(k)
a power of k from each measured number of concepts to the next. Then two replicas on one store, beside their clients,
get requests of which none went into the constants.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.cases import Bench
from benchmarks.data import overcomplete
from benchmarks.figures import Cell, Figure, Result, Table
from benchmarks.service.client import closed_loop, exchange, get
from benchmarks.service.servers import Server, our_server, running
from benchmarks.service.ways import NPY, OURS

SECONDS = 2.0
LIMIT_SECONDS = 60
CLIENTS = 4  # of each replica
BATCH = 256
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
REPLICAS = 1_000
LINE_BYTES = 10e9 / 8  # a second, of 10 Gbit/s


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: as many rows, each with so many active concepts of a dictionary of k concepts."""

    nb_concepts: int
    n_features: int
    active: int
    rows: int

    @property
    def dictionary(self) -> str:
        return f"random-{self.nb_concepts}-{self.n_features}"

    def __str__(self) -> str:
        return f"k={self.nb_concepts}, d={self.n_features}, {self.rows} row{'s' * (self.rows > 1)}"


@dataclass(frozen=True)
class Cost:
    """Of a request of one kind, in processor seconds.

    Attributes:
        l0: codes of a row that are not zero, on average.
        bytes: of the request and its answer.
        count: requests that were answered.
        per_second: such requests that were answered.
    """

    kind: Kind
    l0: float
    bytes: int
    count: int
    per_second: float
    http: float
    worker: float
    clients: float


@dataclass(frozen=True)
class Model:
    """The constants: `http` (a, b), `request` (w), `row` (log c of each of the `concepts`, then y, z, u)."""

    http: np.ndarray
    request: float
    concepts: tuple[int, ...]
    row: np.ndarray

    @classmethod
    def of(cls, single: Cost, batches: Sequence[Cost]) -> "Model":
        every = [single, *batches]
        http = _fitted([np.array([1.0, cost.bytes]) / cost.http for cost in every], np.ones(len(every)), every)
        logs = np.log([cost.worker / cost.kind.rows for cost in batches])
        concepts = tuple(sorted({cost.kind.nb_concepts for cost in batches}))
        row = _fitted([_terms(concepts, cost.kind, cost.l0) for cost in batches], logs, batches)
        alone = cls(http, 0.0, concepts, row)
        return replace(alone, request=max(0.0, single.worker - alone.worker_seconds(single.kind, single.l0)))

    def http_seconds(self, bytes: int) -> float:
        return float(self.http @ [1.0, bytes])

    def worker_seconds(self, kind: Kind, l0: float) -> float:
        return self.request + kind.rows * float(np.exp(_terms(self.concepts, kind, l0) @ self.row))


def _terms(concepts: tuple[int, ...], kind: Kind, l0: float) -> np.ndarray:
    """How near it is to each of the numbers of concepts, then its features and its codes: what constants multiply."""
    k, d = np.log(kind.nb_concepts), kind.n_features
    near = [np.interp(k, np.log(concepts), one) for one in np.eye(len(concepts))]
    return np.array([*near, np.log(d), np.log(l0), l0 / d])


def _fitted(terms: list[np.ndarray], values: np.ndarray, costs: Sequence[Cost]) -> np.ndarray:
    """Least squares, in which a cost weighs by how many requests it comes from: of few, a tick is much."""
    weights = np.sqrt([cost.count for cost in costs])
    constants: np.ndarray = np.linalg.lstsq(np.array(terms) * weights[:, None], values * weights, rcond=None)[0]
    return constants


def run(bench: Bench) -> Result:
    concepts, features, actives = (
        ((32,), (24, 32), (3, 6)) if bench.quick else ((256, 1024, 2048, 4096), (256, 768), (8, 32))
    )
    batches = [Kind(k, d, active, BATCH) for k in concepts for d in features for active in actives]
    single = Kind(concepts[0], features[0], actives[0], 1)
    k, d = (40, 28) if bench.quick else (2048, 512)
    asked = [Kind(k, d, actives[0], rows) for rows in (8, 64)] + [Kind(k, d, actives[1], 64)]
    with running([our_server()], bench.data.folder, dictionaries(bench, [*batches, *asked])) as servers:
        (first,) = servers.values()
        with first.awake():
            load_seconds = _load_seconds(bench, first, batches[-1])
            measured = [measure(bench, [first], kind) for kind in batches]
            model = Model.of(measure(bench, [first], single), measured)
            with _another(bench) as second:
                both = [measure(bench, [first, second], kind) for kind in asked]
        told = {first.distribution: first.told}
    cores = len(os.sched_getaffinity(0))
    ratios = [cost.per_second / _predicted(model, cost, cores) for cost in both]
    rows = [cost.worker / model.worker_seconds(cost.kind, cost.l0) for cost in measured]
    widest = [cost for cost in measured if cost.kind.n_features == features[-1]]
    a, b = model.http
    *logs, y, z, u = model.row
    of_concepts = zip(model.concepts, np.exp(logs), strict=True)
    return Result(
        [
            Figure("two replicas: farthest from the requests/s that the model tells",
                   100 * max(abs(ratio - 1) for ratio in ratios), "%", at_most=25),
            Figure("a row's cost: farthest from the model's", max(max(rows), 1 / min(rows)), "×"),
            Figure("a: HTTP process, a request", 1e6 * a, " µs"),
            Figure("b: HTTP process, a megabyte", 1e12 * b, " µs"),
            Figure("w: worker, a request of one row beside others", 1e6 * model.request, " µs"),
            *(Figure(f"c({k}): worker, a row", 1e9 * c, " ns",
                     note=f"times d^{y:.2f} · L0^{z:.2f} · exp({u:.2f}·L0/d)") for k, c in of_concepts),
            Figure(f"a dictionary of {batches[-1].nb_concepts}×{batches[-1].n_features} read into a worker",
                   1e3 * load_seconds, " ms"),
        ],
        [_costs(model, measured), _check(model, both, cores), _carried(model, widest)],
        {"libraries": told},
    )  # fmt: skip


def dictionaries(bench: Bench, kinds: Sequence[Kind]) -> dict[str, Path]:
    """Of all kinds, by name: npy files."""
    return {kind.dictionary: Path(data_of(bench, kind)[0]) for kind in kinds}


def data_of(bench: Bench, kind: Kind) -> tuple[Path, np.ndarray]:
    """A dictionary's file, and rows of the kind."""
    folder = bench.data.folder / f"capacity-{kind.n_features}-{kind.active}"
    folder.mkdir(exist_ok=True)
    data = overcomplete(folder, kind.n_features, kind.nb_concepts, active=kind.active)
    assert data.dictionary_path is not None
    return data.dictionary_path, np.resize(data.fresh, (kind.rows, kind.n_features))


def measure(bench: Bench, servers: Sequence[Server], kind: Kind) -> Cost:
    """A load of this kind on each server, all at once."""
    _, rows = data_of(bench, kind)
    requests = {server: NPY.request(server.port, kind.dictionary, rows) for server in servers}
    for server, request in requests.items():
        answer = exchange(server.port, request, limit_seconds=LIMIT_SECONDS)
    assert NPY.codes is not None
    l0 = np.count_nonzero(NPY.codes(answer)) / kind.rows
    seconds = 0.02 if bench.quick else SECONDS
    before, own = [_processor_seconds(server) for server in servers], time.process_time()
    with ThreadPoolExecutor(len(servers)) as pool:
        loads = list(
            pool.map(
                lambda server: closed_loop(
                    server.port, [requests[server]] * CLIENTS, seconds=seconds, limit_seconds=LIMIT_SECONDS
                ),
                servers,
            )
        )
    clients = time.process_time() - own
    spent = np.sum([np.subtract(_processor_seconds(s), b) for s, b in zip(servers, before, strict=True)], axis=0)
    count = sum(len(load.ms) for load in loads)
    spent = np.maximum(spent, TICK_SECONDS / 2)  # the kernel counts in ticks
    bench.say(
        f"{kind}, L0 {l0:.0f}, {len(servers)} replicas: {sum(load.per_second for load in loads):.0f} requests/s"
    )
    return Cost(
        kind,
        l0,
        len(requests[servers[0]]) + len(answer.body),
        count,
        sum(load.per_second for load in loads),
        float(spent[0]) / count,
        float(spent[1]) / count,
        clients / count,
    )


def _processor_seconds(server: Server) -> tuple[float, float]:
    """Of the HTTP process, and of its worker."""
    workers = json.loads(get(server.port, "/readyz", limit_seconds=LIMIT_SECONDS).body)["workers"]
    return _spent(server.pid), sum(_spent(worker["pid"]) for worker in workers)


def _spent(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return TICK_SECONDS * (int(fields[11]) + int(fields[12]))


def _load_seconds(bench: Bench, server: Server, kind: Kind) -> float:
    """How much longer the first encode takes, which the worker reads the dictionary for."""
    _, rows = data_of(bench, kind)
    request = NPY.request(server.port, kind.dictionary, rows[:1])
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        exchange(server.port, request, limit_seconds=LIMIT_SECONDS)
        times.append(time.perf_counter() - begun)
    return times[0] - min(times[1:])


@contextmanager
def _another(bench: Bench) -> Iterator[Server]:
    """One more replica on the same store."""
    with running([our_server()], bench.data.folder, {}) as servers, servers[OURS].awake():
        yield servers[OURS]


def _predicted(model: Model, cost: Cost, cores: int) -> float:
    """Requests/s of cores that do nothing else, the clients' own cost being what it was."""
    seconds = model.http_seconds(cost.bytes) + model.worker_seconds(cost.kind, cost.l0) + cost.clients
    return cores / seconds


def _costs(model: Model, costs: Sequence[Cost]) -> Table:
    columns = ["requests", "L0", "HTTP process (µs)", "model", "worker, a row (µs)", "model"]
    rows: list[list[Cell]] = [
        [
            str(cost.kind),
            cost.l0,
            1e6 * cost.http,
            1e6 * model.http_seconds(cost.bytes),
            1e6 * cost.worker / cost.kind.rows,
            1e6 * model.worker_seconds(cost.kind, cost.l0) / cost.kind.rows,
        ]
        for cost in costs
    ]
    return Table("One replica: processor time of a request", columns, rows)


def _check(model: Model, costs: Sequence[Cost], cores: int) -> Table:
    columns = ["requests", "L0", "requests/s", "model", "cores busy", "clients' share (%)"]
    rows: list[list[Cell]] = []
    for cost in costs:
        spent = cost.http + cost.worker + cost.clients
        predicted = _predicted(model, cost, cores)
        rows.append(
            [str(cost.kind), cost.l0, cost.per_second, predicted, spent * cost.per_second, 100 * cost.clients / spent]
        )
    return Table(f"Two replicas and their clients on {cores} cores", columns, rows)


def _carried(model: Model, costs: Sequence[Cost]) -> Table:
    """Replicas with one core for HTTP and one for the worker, which work at the same time."""
    columns = ["requests", "L0", "bound by", "rows/s, a replica", f"rows/s, {REPLICAS:,} replicas",
               "network (GB/s)", "replicas that fill 10 Gbit/s"]  # fmt: skip
    rows: list[list[Cell]] = []
    for cost in costs:
        for count in (1, 64):
            kind = replace(cost.kind, rows=count)
            bytes = 4 * count * (kind.nb_concepts + kind.n_features)
            http, worker = model.http_seconds(bytes), model.worker_seconds(kind, cost.l0)
            rate = 1 / max(http, worker)
            bound = "HTTP process" if http > worker else "worker"
            traffic = rate * bytes
            rows.append(
                [str(kind), cost.l0, bound, rate * count, REPLICAS * rate * count, REPLICAS * traffic / 1e9,
                 LINE_BYTES / traffic]
            )  # fmt: skip
    return Table(f"Carried to {REPLICAS:,} replicas of two such cores each, dense answers", columns, rows)
