"""The service in figures, for Prometheus. Labels have few values, whatever clients send."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.balance import Load
from app.errors import JobsUnavailable, StoreUnavailable
from app.jobs.jobs import STATES
from app.services import Services
from app.supervisor import Health

Family = CounterMetricFamily | GaugeMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a row of a small dictionary to a long upload.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

FAULT = "500"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a line more for each count, of when it was first made


class Metrics:
    """What is counted as it happens, and what is read when somebody asks.

    Args:
        routes: what may be asked for: methods, and patterns of paths.
    """

    def __init__(self, services: Services, routes: Iterable[tuple[str, str]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dictserve_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "dictserve_request_seconds",
            "From a request's headers to the end of its answer, less what its client took to send and to read.",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        for method, route in routes:
            self._requests.labels(method, route, FAULT)  # from 0 on, else the first is no increase to an alert
        self._observers: dict[tuple[str, str, str], tuple[Callable[[], None], Callable[[float], None]]] = {}
        ProcessCollector(registry=self._registry)
        self._registry.register(_State(services))

    def observe(self, method: str, route: str, status: str, seconds: float) -> None:
        observers = self._observers.get((method, route, status))
        if observers is None:  # finding those of some labels takes longer than to count
            observers = self._requests.labels(method, route, status).inc, self._seconds.labels(route).observe
            self._observers[method, route, status] = observers
        count, time = observers
        count()
        time(seconds)

    def observe_unserved(self, status: str) -> None:
        """An answer to what no route was asked for: it was no request, or none that could be taken."""
        self.observe("other", "none", status, 0.0)

    def text(self) -> bytes:
        """All figures; reads the jobs' database and the workers' processes, so call it from a thread."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class _Seen:
    """A worker at the moment of asking."""

    is_ready: bool
    health: Health
    load: Load


OF_WORKERS: tuple[tuple[type[Family], str, str, Callable[[_Seen], float | None]], ...] = (
    (CounterMetricFamily, "batches", "Batches that the worker has solved.", lambda w: w.load.solved_batches),
    (CounterMetricFamily, "rows", "Rows that the worker has solved.", lambda w: w.load.solved_rows),
    (GaugeMetricFamily, "worker_rows", "Rows that are with the worker.", lambda w: w.load.rows),
    (GaugeMetricFamily, "worker_ready", "1 where the worker takes work.", lambda w: w.is_ready),
    (GaugeMetricFamily, "worker_fitting", "1 where a fit runs on it.", lambda w: w.health.is_fitting),
    (CounterMetricFamily, "worker_restarts", "Workers that had to be replaced.", lambda w: w.health.restarts),
    (
        GaugeMetricFamily,
        "worker_heartbeat_age_seconds",
        "Since the worker was heard of.",
        lambda w: w.health.heartbeat_age_seconds,
    ),
    (
        GaugeMetricFamily,
        "worker_resident_bytes",
        "Memory that the worker holds.",
        lambda w: _resident_bytes(w.health.pid),
    ),
    (
        GaugeMetricFamily,
        "device_allocated_bytes",
        "GPU memory in the worker's tensors; none on a CPU.",
        lambda w: w.health.device_allocated_bytes,
    ),
    (
        GaugeMetricFamily,
        "device_reserved_bytes",
        "GPU memory that the worker keeps.",
        lambda w: w.health.device_reserved_bytes,
    ),
    (GaugeMetricFamily, "device_total_bytes", "The GPU's memory.", lambda w: w.health.device_total_bytes),
    (
        GaugeMetricFamily,
        "cached_dictionaries",
        "Dictionaries that the worker has prepared.",
        lambda w: w.health.cached_dictionaries,
    ),
    (GaugeMetricFamily, "cached_bytes", "Bytes of them.", lambda w: w.health.cached_bytes),
)


class _State(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterable[Metric]:
        services = self._services
        batcher = services.batcher
        yield _gauge("queue_rows", "Rows that wait for a worker.", batcher.waiting_rows)
        yield _gauge("queue_bytes", "Bytes of requests and answers that wait for a worker.", batcher.waiting_bytes)
        yield _gauge("bodies_bytes", "Bytes of request bodies in memory.", services.bodies.held_bytes)
        yield _gauge("answers_bytes", "Bytes of answers, until they are read.", services.answers.held_bytes)
        yield from self._of_workers()
        yield from self._of_jobs()
        yield from self._of_the_store()

    def _of_workers(self) -> Iterable[Metric]:
        workers, loads = self._services.workers, self._services.batcher.loads
        seen = [_Seen(worker.is_ready, worker.health, load) for worker, load in zip(workers, loads, strict=False)]
        for kind, name, told, of in OF_WORKERS:
            family = kind(f"dictserve_{name}", told, labels=["device"])
            for worker in seen:
                if (value := of(worker)) is not None:  # there is none just now
                    family.add_metric([worker.health.device], value)
            yield family

    def _of_jobs(self) -> Iterable[Metric]:
        ended = CounterMetricFamily("dictserve_jobs_ended", "Jobs that this process has ended.", labels=["state"])
        for state, count in self._services.fits.ended.items():
            ended.add_metric([state], count)
        yield ended
        try:
            counts = self._services.jobs.counts()
        except JobsUnavailable:
            yield _gauge("jobs_available", "1 where the jobs' database can be read.", 0)
            return
        yield _gauge("jobs_available", "1 where the jobs' database can be read.", 1)
        writable = "1 where the jobs' database could be written when that was last tried."
        yield _gauge("jobs_writable", writable, float(self._services.fits.can_write))
        jobs = GaugeMetricFamily("dictserve_jobs", "Jobs on record.", labels=["state"])
        for state in STATES:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs

    def _of_the_store(self) -> Iterable[Metric]:
        available = "1 where the store's file system can be read, and an object store answered when last asked."
        store = self._services.store
        try:
            store.workplace.require_there()
            usage = shutil.disk_usage(store.root)
        except (StoreUnavailable, OSError):
            yield _gauge("store_available", available, 0)
            return
        yield _gauge("store_available", available, float(store.is_up))
        yield _gauge("store_free_bytes", "Room on the store's file system.", usage.free)
        yield _gauge("store_size_bytes", "Size of the store's file system.", usage.total)


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dictserve_{name}", told, value=value)


def _resident_bytes(pid: int | None) -> float | None:
    if pid is None:
        return None
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    told = next((line.split()[1] for line in lines if line.startswith("VmRSS:")), None)
    return None if told is None else 1024.0 * int(told)
