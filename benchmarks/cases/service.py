"""Encodes over HTTP on loopback, beside other servers with the same core behind them, and beside no HTTP at all.

Every client is a closed loop: it sends a request that was made in advance, waits for the answer, and sends it again.
All clients are one process, which shares the cores with the server. Servers take turns, and those not asked are
stopped. Ratios and differences are medians of those of each round. Where the other server reads another format than
ours, the ratio is also one of formats: the figure names both. Plain FastAPI computes in the process that answers,
with no queue, no limits, and no worker whose death it would survive.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.cases import Bench
from benchmarks.data import DataSet
from benchmarks.figures import Cell, Figure, Result, Table
from benchmarks.process import Absent, Failed, TimedOut
from benchmarks.service.client import Load, closed_loop, exchange
from benchmarks.service.servers import Server, all_servers, running
from benchmarks.service.ways import (
    FASTAPI_LISTS,
    FASTAPI_NPY,
    LITSERVE_BATCHING_LISTS,
    LITSERVE_LISTS,
    MLSERVER_BATCHING_OIP,
    MLSERVER_OIP,
    NPY,
    OURS_JSON,
    OURS_OIP,
    WAYS,
    Way,
)

ROUND_SECONDS = 0.7
LIMIT_SECONDS = 60
OF_LITSERVE = LITSERVE_LISTS, LITSERVE_BATCHING_LISTS  # of which the faster counts
OF_MLSERVER = MLSERVER_OIP, MLSERVER_BATCHING_OIP


@dataclass(frozen=True)
class Pattern:
    """How many clients ask at once, for how many rows each."""

    clients: int
    rows: int

    def __str__(self) -> str:
        clients = f"{self.clients} client{'s' * (self.clients > 1)}"
        return f"{clients}, {self.rows} row{'s' * (self.rows > 1)} each"

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """What each client sends: a row of its own, or where there are more the same rows."""
        if self.rows == 1:
            return [rows[i : i + 1] for i in range(self.clients)]
        return [rows[: self.rows]] * self.clients


ONE, MANY, LARGE = Pattern(1, 1), Pattern(64, 1), Pattern(8, 256)


@dataclass
class Measured:
    """Loads of a way, one a round, or why there are none; and the largest difference of its codes from the core's,
    over the largest code."""

    loads: list[Load] = field(default_factory=list)
    missing: str | None = None
    difference: float = 0.0


@dataclass
class Compared:
    """What every way came to under a pattern, and milliseconds of the same encode in process, one a round."""

    pattern: Pattern
    ways: dict[Way, Measured]
    in_process_ms: list[float] = field(default_factory=list)

    def per_round(self, way: Way, of: Callable[[Load, float], float]) -> float | None:
        """Median over the rounds of something of a load and the milliseconds in process."""
        loads = self.ways[way].loads
        return median(map(of, loads, self.in_process_ms)) if loads else None

    def times(self, way: Way, *others: Way) -> float | None:
        """How many times the fastest other's throughput a way has."""
        rates = [[load.per_second for load in self.ways[each].loads] for each in (way, *others)]
        ours, *theirs = rates
        known = [rate for rate in theirs if rate]
        if not ours or not known:
            return None
        return median(mine / max(each) for mine, *each in zip(ours, *known, strict=True))


def run(bench: Bench) -> Result:
    data = {"digits": bench.data.digits} | ({} if bench.quick else {"wide": bench.data.wide})
    paths = {name: Path(bench.dictionary(of)) for name, of in data.items()}
    result = Result()
    with running(all_servers(), bench.data.folder, paths) as servers:
        for server in servers.values():
            bench.say(f"{server.name}: {server.told}")
        for name, of in data.items():
            _compare(bench, servers, name, of, result)
    result.made = {"libraries": {server.distribution: server.told for server in servers.values()}}
    return result


def _compare(bench: Bench, servers: dict[str, Server], name: str, data: DataSet, result: Result) -> None:
    told = [_load_all(bench, servers, name, data, pattern) for pattern in (ONE, MANY, LARGE)]
    title = f"{name}, k={data.nb_concepts}, {data.fresh.shape[1]} features"
    result.figures += [
        *_figures(title, *told),
        Figure(
            f"{title}: largest difference of any server's code from the core's, over the largest code",
            max(measured.difference for compared in told for measured in compared.ways.values()),
            at_most=1e-5,
        ),
    ]
    columns = ["server", "format", "p50 (ms)", "p99 (ms)", "rows/s", "clients' share of a core (%)"]
    result.tables += [Table(f"{title}: {compared.pattern}", columns, _rows(compared)) for compared in told]


def _load_all(bench: Bench, servers: dict[str, Server], name: str, data: DataSet, pattern: Pattern) -> Compared:
    """Every way checked once, and then loaded in rounds."""
    rows = np.resize(data.fresh, (max(256, len(data.fresh)), data.fresh.shape[1]))  # repeated where there are few
    parts = pattern.parts(rows)
    compared = Compared(pattern, {way: Measured() for way in WAYS})
    requests = {way: [way.request(servers[way.server].port, name, part) for part in parts] for way in compared.ways}
    expected = _encode(bench, data, parts[0], compared.in_process_ms)
    compared.in_process_ms.clear()  # that one was to warm up
    for way, measured in compared.ways.items():
        server = servers[way.server]
        try:
            if way in (LITSERVE_BATCHING_LISTS, MLSERVER_BATCHING_OIP) and pattern.rows > 1:
                raise Absent("such requests are batches of their own")
            with server.awake():
                measured.difference = _difference(way, server.port, requests[way][0], expected)
        except (Absent, Failed, OSError) as reason:
            measured.missing = str(reason)
    for _ in range(bench.repeats):
        _encode(bench, data, parts[0], compared.in_process_ms)
        for way, measured in compared.ways.items():
            if measured.missing is None:
                try:
                    measured.loads.append(_load(bench, servers[way.server], requests[way]))
                except (Failed, TimedOut, OSError) as reason:
                    measured.missing, measured.loads = str(reason), []
    told = [
        f"{w.server} {w.format} {m.missing or f'{m.loads[0].per_second:.0f}/s'}" for w, m in compared.ways.items()
    ]
    bench.say(f"{name}, {pattern}: {', '.join(told)}")
    return compared


def _encode(bench: Bench, data: DataSet, rows: np.ndarray, ms: list[float]) -> np.ndarray:
    """Codes of these rows in process, and the median time of as many such encodes as there is time for."""
    path, codes = (str(bench.data.folder / f"service-{what}.npy") for what in ("rows", "codes"))
    np.save(path, rows)
    request = {"A": path, "D": bench.dictionary(data), "rows": len(rows), "settings": {}, "codes": codes}
    told = bench.ours.ask("encode", seconds=_seconds(bench), limit_seconds=LIMIT_SECONDS, **request)
    ms.append(median(told["ms"]))
    return np.load(codes)  # type: ignore[no-any-return]


def _difference(way: Way, port: int, request: bytes, expected: np.ndarray) -> float:
    """Largest difference of a code from those expected, over the largest of these; 0 of an answer without codes."""
    answer = exchange(port, request, limit_seconds=LIMIT_SECONDS)
    if answer.status == 404:
        raise Absent("this version has no such route")
    if answer.status != 200:
        raise Failed(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")
    if way.codes is None:
        return 0.0
    return float(np.abs(way.codes(answer) - expected).max() / expected.max())


def _load(bench: Bench, server: Server, requests: list[bytes]) -> Load:
    with server.awake():
        exchange(server.port, requests[0], limit_seconds=LIMIT_SECONDS)  # it has woken up
        return closed_loop(server.port, requests, seconds=_seconds(bench), limit_seconds=LIMIT_SECONDS)


def _seconds(bench: Bench) -> float:
    return 0.02 if bench.quick else ROUND_SECONDS


def _figures(title: str, one: Compared, many: Compared, large: Compared) -> list[Figure]:
    return [
        Figure(
            f"{title}: {one.pattern}: npy, p50 above the encode in process",
            one.per_round(NPY, lambda load, in_process: load.percentile(50) - in_process),
            " ms",
            at_most=1,
            note=f"in process {median(one.in_process_ms):.3g} ms",
        ),
        *(
            Figure(f"{title}: {compared.pattern}: {way.format}, rows/s over {whom}", value, "×", at_least=goal)
            for compared, way, whom, value, goal in [
                (many, NPY, "plain FastAPI's npy", many.times(NPY, FASTAPI_NPY), None),
                (many, NPY, "plain FastAPI's lists", many.times(NPY, FASTAPI_LISTS), 2),
                (many, OURS_JSON, "plain FastAPI's lists", many.times(OURS_JSON, FASTAPI_LISTS), 2),
                (many, NPY, "LitServe's lists", many.times(NPY, *OF_LITSERVE), 10),
                (many, OURS_JSON, "LitServe's lists", many.times(OURS_JSON, *OF_LITSERVE), 10),
                (many, OURS_OIP, "MLServer's", many.times(OURS_OIP, *OF_MLSERVER), None),
                (large, NPY, "plain FastAPI's npy", large.times(NPY, FASTAPI_NPY), None),
                (large, NPY, "plain FastAPI's lists", large.times(NPY, FASTAPI_LISTS), 15),
                (large, OURS_JSON, "plain FastAPI's lists", large.times(OURS_JSON, FASTAPI_LISTS), 4),
                (large, OURS_OIP, "MLServer's", large.times(OURS_OIP, *OF_MLSERVER), None),
            ]
        ),
        Figure(
            f"{title}: {large.pattern}: npy, rows/s over those in process",
            large.per_round(NPY, lambda load, in_process: 100 * load.per_second * in_process / 1e3),
            "%",
            at_least=60,
        ),
    ]


def _rows(compared: Compared) -> list[list[Cell]]:
    rows = compared.pattern.rows
    in_process = median(compared.in_process_ms)
    table: list[list[Cell]] = [["none", "in process, one caller", in_process, None, 1e3 * rows / in_process, None]]
    for way, measured in compared.ways.items():
        if measured.missing is not None:
            table.append([way.server, way.format, f"absent: {measured.missing}", None, None, None])
            continue
        cells = [
            median(load.percentile(50) for load in measured.loads),
            median(load.percentile(99) for load in measured.loads),
            median(load.per_second * rows for load in measured.loads),
            median(100 * load.client_seconds / load.seconds for load in measured.loads),
        ]
        table.append([way.server, way.format, *cells])
    return table
