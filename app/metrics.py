"""The service in figures, for Prometheus. Labels have few values, whatever clients send."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import JobsUnavailable
from app.jobs import STATES
from app.services import Services

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a row of a small dictionary to a long upload.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What is counted as it happens, and what is read when somebody asks."""

    def __init__(self, services: Services) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dictserve_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "dictserve_request_seconds",
            "From a request's headers to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
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

    def text(self) -> bytes:
        """All figures; reads the jobs' database and the worker's process, so call it from a thread."""
        return generate_latest(self._registry)


class _State(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterable[Metric]:
        services = self._services
        health, batcher = services.supervisor.health, services.batcher
        yield _gauge("queue_rows", "Rows that wait for the worker.", batcher.waiting_rows)
        yield _gauge("queue_bytes", "Bytes of requests and answers that wait for the worker.", batcher.waiting_bytes)
        yield _counter("batches", "Batches that the worker has solved.", batcher.solved_batches)
        yield _counter("rows", "Rows that the worker has solved.", batcher.solved_rows)
        yield _gauge("worker_ready", "1 where the worker takes work.", float(services.supervisor.is_ready))
        yield _counter("worker_restarts", "Workers that had to be replaced.", health.restarts)
        yield _gauge("worker_heartbeat_age_seconds", "Since the worker was heard of.", health.heartbeat_age_seconds)
        yield _gauge("worker_resident_bytes", "Memory that the worker holds.", _resident_bytes(health.pid))
        yield _gauge(
            "device_allocated_bytes",
            "GPU memory in the worker's tensors; none on a CPU.",
            health.device_allocated_bytes,
        )
        yield _gauge("device_reserved_bytes", "GPU memory that the worker keeps.", health.device_reserved_bytes)
        yield _gauge("device_total_bytes", "The GPU's memory.", health.device_total_bytes)
        yield _gauge("cached_dictionaries", "Dictionaries that the worker has prepared.", health.cached_dictionaries)
        yield _gauge("cached_bytes", "Bytes of them.", health.cached_bytes)
        yield from self._of_jobs()
        yield from self._of_the_store()

    def _of_jobs(self) -> Iterable[Metric]:
        try:
            counts = self._services.jobs.counts()
        except JobsUnavailable:
            yield _gauge("jobs_available", "1 where the jobs' database can be read.", 0)
            return
        yield _gauge("jobs_available", "1 where the jobs' database can be read.", 1)
        jobs = GaugeMetricFamily("dictserve_jobs", "Jobs on record.", labels=["state"])
        for state in STATES:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs

    def _of_the_store(self) -> Iterable[Metric]:
        try:
            usage = shutil.disk_usage(self._services.store.root)
        except OSError:
            yield _gauge("store_available", "1 where the store's file system can be read.", 0)
            return
        yield _gauge("store_available", "1 where the store's file system can be read.", 1)
        yield _gauge("store_free_bytes", "Room on the store's file system.", usage.free)
        yield _gauge("store_size_bytes", "Size of the store's file system.", usage.total)


def _gauge(name: str, told: str, value: float | None) -> Metric:
    """A gauge; one without a value where there is none just now."""
    gauge = GaugeMetricFamily(f"dictserve_{name}", told)
    if value is not None:
        gauge.add_metric([], value)
    return gauge


def _counter(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(f"dictserve_{name}", told, value=value)


def _resident_bytes(pid: int | None) -> float | None:
    if pid is None:
        return None
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    told = next((line.split()[1] for line in lines if line.startswith("VmRSS:")), None)
    return None if told is None else 1024.0 * int(told)
