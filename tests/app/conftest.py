"""The app with a double in the worker's place: the whole service but for the arithmetic, in milliseconds."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from app.errors import WorkerUnavailable
from app.main import create_app
from app.settings import Settings
from app.store import figures_file
from app.store.store import Store
from app.supervisor import Health, JobListener, Supervisor
from app.worker.file_rows import FileRows
from app.worker.frames import Frame, Rows
from app.worker.messages import (
    CancelFit,
    Fit,
    FitBegun,
    FitCancelled,
    FitProgress,
    FitStopped,
    Fitted,
    Key,
    StopFit,
    ToWorker,
)
from tests.waiting import until


class WorkerDouble(Supervisor):
    """Answers at once, in the event loop: codes are A·Dᵀ, a fit's dictionary is its first rows.

    ``dies_on_fits`` and ``fits_hang`` have fits end badly or not at all; ``alive`` is whether there is a worker, and
    ``checkpoint`` where a fit begins that goes on from one, with the losses before.
    """

    def __init__(self, settings: Settings, device: str = "double") -> None:
        super().__init__(settings, device)
        self.store = Store(settings.store)
        self.alive = True
        self.fits_hang = False
        self.dies_on_fits = 0
        self.checkpoint: tuple[FitBegun, list[float]] | None = None
        self.fits: list[Fit] = []
        self.software = {"dictserve": "double"}
        self._listener: JobListener | None = None

    async def start(self) -> None:
        self._ready.set()
        self._counted.set()

    async def stop(self) -> None:
        pass

    @property
    def is_ready(self) -> bool:
        return self.alive

    @property
    def is_stuck(self) -> bool:
        return False

    @property
    def health(self) -> Health:
        return Health(
            state="ready" if self.alive else "down",
            pid=1,
            device=self._device,
            heartbeat_age_seconds=0.0,
            restarts=0,
            last_end=None,
            cached_dictionaries=0,
            cached_bytes=0,
            device_allocated_bytes=3,
            device_reserved_bytes=4,
            device_total_bytes=5,
        )

    async def solve(self, key: Key, rows: Rows) -> list[np.ndarray]:
        if not self.alive:
            raise WorkerUnavailable("the worker is down")
        rows = np.concatenate(rows)
        D = self.store.load(key.name, key.version)
        if key.task == "decode":
            return [rows @ D]
        codes, converged = rows @ D.T, np.ones(len(rows), np.uint8)
        return [codes, converged, codes.max(axis=1)] if key.reconstruct else [codes, converged]

    def tell_job(self, job: str, message: ToWorker, listener: JobListener) -> None:
        assert isinstance(message, Fit)
        self.fits.append(message)
        self._listener = listener
        begun, losses = self.checkpoint or (FitBegun(job, 0, 0.0), [])
        listener(Frame(msgspec.structs.replace(begun, job=job), [np.array(losses)]))
        listener(Frame(FitProgress(job, begun.iteration + 1, message.max_iter, 2.0, 0.5, 0.1, 0.01)))
        if self.dies_on_fits:
            self.dies_on_fits -= 1
            listener(None)
            return
        if not self.fits_hang:
            shape = (message.rows, message.n_features)
            if message.online is not None:
                A = FileRows(message.online, message.n_features)[0 : message.rows]
            else:
                A = np.memmap(message.path, np.float32, "r", message.data_offset, shape)
            D = np.resize(A, (message.nb_concepts, message.n_features)).astype(np.float32)
            metrics = np.frombuffer(orjson.dumps({"relative_error": 0.5}), np.uint8)
            figures = np.frombuffer(figures_file.written({"uses": np.full(len(D), len(A))}), np.uint8)
            listener(Frame(Fitted(job, 0.01), [D, metrics, np.array([*losses, 2.0]), figures]))

    def tell(self, message: ToWorker) -> None:
        assert isinstance(message, CancelFit | StopFit)
        if self._listener is not None:
            ended = FitCancelled if isinstance(message, CancelFit) else FitStopped
            self._listener(Frame(ended(message.job)))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=tmp_path / "models", progress_interval_seconds=0.01)


@pytest.fixture
def worker(settings: Settings) -> WorkerDouble:
    return WorkerDouble(settings)


@pytest.fixture
def client(settings: Settings, worker: WorkerDouble) -> Iterator[TestClient]:
    with TestClient(create_app(settings, supervisor=worker), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def store(settings: Settings, client: TestClient) -> Store:
    """The store of the running service."""
    return Store(settings.store)


D = np.array([[1, 0, 0, 2], [0, 1, 1, 0]], np.float32)  # two concepts, four features


@pytest.fixture
def digits(store: Store) -> str:
    """A published dictionary's name; it holds ``D``."""
    publish(store, "digits", D)
    return "digits"


def publish(store: Store, name: str, weights: np.ndarray, job: str | None = None) -> int:
    return store.publish(
        name,
        weights,
        parameters={"nb_concepts": len(weights)},
        data={"rows": 1},
        metrics={"relative_error": 0.1},
        seconds=1.0,
        software={},
        job=job,
    ).version


def ended(client: TestClient, id: str) -> dict[str, object]:
    """The job's record, once it has ended."""

    def its_end() -> dict[str, object] | None:
        job: dict[str, object] = client.get(f"/jobs/{id}").json()
        return None if job["state"] in ("queued", "running") else job

    return until(its_end, every=0.01)
