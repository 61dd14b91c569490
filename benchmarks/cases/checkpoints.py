"""What checkpoints cost: one-row encodes while a large fit writes one a second, or as often as it may, and the fit.

Two services that differ in this setting alone take turns with the same fit and the same requests.
"""

import time
from pathlib import Path
from statistics import median

import httpx

from benchmarks.cases import Bench
from benchmarks.data import DataSet
from benchmarks.figures import Cell, Figure, Result, Table
from benchmarks.service.client import Load, closed_loop
from benchmarks.service.servers import Server, our_server, running
from benchmarks.service.ways import NPY

ASK_SECONDS = 10.0
LIMIT_SECONDS = 120


def run(bench: Bench) -> Result:
    small, large = bench.data.digits, bench.data.large
    loads: dict[str, list[Load]] = {"none": [], "every second": []}
    seconds: dict[str, list[float]] = {when: [] for when in loads}
    nbytes = written = 0
    for _ in range(bench.repeats):
        for when, interval in (("none", 0.0), ("every second", 0.1 if bench.quick else 1.0)):
            environment = {"DICTSERVE_CHECKPOINT_INTERVAL_SECONDS": str(interval)}
            dictionaries = {"digits": Path(bench.dictionary(small))}
            with running([our_server(environment)], bench.data.folder, dictionaries) as servers:
                (server,) = servers.values()
                with server.awake(), httpx.Client(base_url=server.url, timeout=LIMIT_SECONDS) as client:
                    row = NPY.request(server.port, "digits", small.fresh[:1])
                    load, of_iteration, sizes = _ask_during_a_fit(bench, server, client, large, row)
            loads[when].append(load)
            seconds[when].append(of_iteration)
            nbytes, written = max([nbytes, *sizes]), written + len(sizes)
            bench.say(f"checkpoints {when}: one row {load.percentile(99):.1f} ms at p99, {len(sizes)} of them")
    p99 = {when: median(load.percentile(99) for load in of_it) for when, of_it in loads.items()}
    slower = 100 * (median(seconds["every second"]) / median(seconds["none"]) - 1)
    rows: list[list[Cell]] = [
        [
            when,
            *(median(load.percentile(percent) for load in of_it) for percent in (50, 99, 99.9)),
            1e3 * median(seconds[when]),
        ]
        for when, of_it in loads.items()
    ]
    return Result(
        [
            Figure(
                f"one row encoded while a fit of {large} writes checkpoints: p99 above that without",
                p99["every second"] - p99["none"],
                " ms",
                at_most=10,
                note=f"{p99['every second']:.3g} ms, without {p99['none']:.3g} ms",
            ),
            Figure("the fit's iterations, slower with checkpoints", slower, "%", at_most=10),
            Figure("a checkpoint", nbytes / 1e6, " MB", note=f"{written} were seen"),
        ],
        [
            Table(
                f"one row of {small}, one client; the fit is of {large}",
                ["checkpoints", "p50 (ms)", "p99 (ms)", "p99.9 (ms)", "an iteration (ms)"],
                rows,
            )
        ],
        {"libraries": {server.distribution: server.told}},
    )


def _ask_during_a_fit(
    bench: Bench, server: Server, client: httpx.Client, data: DataSet, row: bytes
) -> tuple[Load, float, list[int]]:
    """One-row requests, seconds of an iteration meanwhile, and the sizes of the checkpoints that were seen."""
    parameters = {"name": "large", "nb_concepts": data.nb_concepts, "tol": 0, "max_iter": 100_000}
    answer = client.post("/fit", params=parameters, content=data.path.read_bytes())
    answer.raise_for_status()
    location = answer.headers["location"]
    end = time.monotonic() + LIMIT_SECONDS
    while (before := client.get(location).json()["progress"])["iteration"] < 1:
        if time.monotonic() > end:
            raise TimeoutError("the fit has not come to its first iteration")
        time.sleep(0.05)
    left = 0.5 if bench.quick else ASK_SECONDS
    loads, seen = [], {}
    while left > 0:  # in short runs, between which the store is looked at
        loads.append(closed_loop(server.port, [row], seconds=0.25, limit_seconds=LIMIT_SECONDS))
        left -= loads[-1].seconds
        for path in (bench.data.folder / "models" / ".dictserve" / "checkpoints").iterdir():
            told = path.stat()
            seen[told.st_ino, told.st_mtime_ns] = told.st_size
    after = client.get(location).json()["progress"]
    assert client.delete(location).json()["state"] == "cancelled"
    load = Load(
        [ms for load in loads for ms in load.ms],
        sum(load.seconds for load in loads),
        sum(load.client_seconds for load in loads),
    )
    iterations = after["iteration"] - before["iteration"]
    return load, (after["seconds"] - before["seconds"]) / max(1, iterations), list(seen.values())
