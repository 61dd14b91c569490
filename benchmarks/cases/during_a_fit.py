"""What a large fit and requests do to each other: one-row encodes while it runs, and the fit while nobody asks.

The fit as a job is compared with the same fit in process: the seconds that both took to the iterations that both
reached. They take turns, and only one runs at a time.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

from benchmarks.cases import Bench
from benchmarks.data import DataSet
from benchmarks.figures import Cell, Figure, Result, Table
from benchmarks.service.client import Load, closed_loop, exchange
from benchmarks.service.servers import Server, our_server, running
from benchmarks.service.ways import NPY

FIT_SECONDS = 6.0
ASK_SECONDS = 3.0
LIMIT_SECONDS = 60
ENDLESS = {"tol": 0, "max_iter": 100_000}  # until it is cancelled


def run(bench: Bench) -> Result:
    small, large = bench.data.digits, bench.data.large
    at_rest: list[Load] = []
    busy: list[Load] = []
    cancels: list[float] = []
    slower: list[float] = []
    with running([our_server()], bench.data.folder, {"digits": Path(bench.dictionary(small))}) as servers:
        (server,) = servers.values()
        row = NPY.request(server.port, "digits", small.fresh[:1])
        for _ in range(bench.repeats):
            with server.awake(), httpx.Client(base_url=server.url, timeout=LIMIT_SECONDS) as client:
                at_rest.append(_ask(bench, server, row))
                with _job(client, large, cancels) as job:
                    of_job = _iterations_of_job(client, job, _fit_seconds(bench))
                    busy.append(_ask(bench, server, row))
            slower.append(_slower(of_job, _iterations_in_process(bench, large, max(of_job))))
            bench.say(f"{large}: the job {slower[-1]:.1f}% slower; one row {busy[-1].percentile(99):.1f} ms at p99")
        with server.awake(), httpx.Client(base_url=server.url, timeout=LIMIT_SECONDS) as client:
            replaced = _replacement_seconds(client, server, row)
    rest_p99, busy_p99 = (median(load.percentile(99) for load in loads) for loads in (at_rest, busy))
    rows: list[list[Cell]] = [
        [when, *(median(load.percentile(percent) for load in loads) for percent in (50, 99))]
        for when, loads in [("at rest", at_rest), ("while the fit runs", busy)]
    ]
    return Result(
        [
            Figure(
                f"one row encoded while a fit of {large} runs: p99 above 3 × its p99 at rest",
                busy_p99 - 3 * rest_p99,
                " ms",
                at_most=30,
                note=f"{busy_p99:.3g} ms, at rest {rest_p99:.3g} ms",
            ),
            Figure(f"the fit of {large} as a job, slower than in process", median(slower), "%", at_most=15),
            Figure(f"the fit of {large} cancelled", median(cancels), " ms"),
            Figure("from the worker's death to the next encode", replaced, " s"),
        ],
        [Table(f"one row of {small}, one client; the fit is of {large}", ["encode", "p50 (ms)", "p99 (ms)"], rows)],
        {"libraries": {server.distribution: server.told}},
    )


def _fit_seconds(bench: Bench) -> float:
    return 0.5 if bench.quick else FIT_SECONDS


def _iterations_in_process(bench: Bench, data: DataSet, iterations: int) -> list[float]:
    """Seconds at which each of so many iterations of the fit had ended."""
    told = bench.ours.ask(
        "trace",
        A=str(data.path),
        nb_concepts=data.nb_concepts,
        max_seconds=LIMIT_SECONDS,
        limit_seconds=2 * LIMIT_SECONDS,
        **ENDLESS | {"max_iter": iterations},
    )
    seconds: list[float] = told["seconds"]
    return seconds


@contextmanager
def _job(client: httpx.Client, data: DataSet, cancels: list[float]) -> Iterator[str]:
    """The fit as a job, which is cancelled in the end; milliseconds of that are appended."""
    parameters = {"name": "large", "nb_concepts": data.nb_concepts, **ENDLESS}
    answer = client.post("/fit", params=parameters, content=data.path.read_bytes())
    answer.raise_for_status()
    location = answer.headers["location"]
    yield location
    begun = time.perf_counter()
    state = client.delete(location).json()["state"]
    cancels.append(1e3 * (time.perf_counter() - begun))
    assert state == "cancelled", state


def _iterations_of_job(client: httpx.Client, job: str, seconds: float) -> dict[int, float]:
    """The fit's seconds when each iteration that was told had ended, followed for so many seconds."""
    told: dict[int, float] = {}
    with client.stream("GET", f"{job}/events") as events:
        for line in events.iter_lines():
            if line.startswith("data:"):
                progress = json.loads(line.removeprefix("data:"))
                told.setdefault(progress["iteration"], progress["seconds"])
                if progress["seconds"] >= seconds:
                    return told
    raise AssertionError(f"the events of {job} ended")


def _slower(job: dict[int, float], in_process: list[float]) -> float:
    """By how many percent the job was: the median over the later half of the iterations.

    The job's progress comes a few times a second, so its seconds are up to 0.25 s too long.
    """
    both = [iteration for iteration in sorted(job) if 1 <= iteration <= len(in_process)]
    later = both[len(both) // 2 :]
    return 100 * (median(job[iteration] / in_process[iteration - 1] for iteration in later) - 1)


def _ask(bench: Bench, server: Server, row: bytes) -> Load:
    seconds = 0.05 if bench.quick else ASK_SECONDS
    return closed_loop(server.port, [row], seconds=seconds, limit_seconds=LIMIT_SECONDS)


def _replacement_seconds(client: httpx.Client, server: Server, row: bytes) -> float:
    """From the worker's death to the first encode that is answered."""
    os.kill(client.get("/readyz").json()["workers"][0]["pid"], signal.SIGKILL)
    begun = time.perf_counter()
    while exchange(server.port, row, limit_seconds=LIMIT_SECONDS).status != 200:
        time.sleep(0.01)
    return time.perf_counter() - begun
