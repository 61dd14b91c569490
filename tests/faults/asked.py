"""What the faults' tests ask of a service: the small good request that must be served after each of them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.errors import AppError
from app.main import create_app
from app.settings import Settings
from demo.service import npy
from tests.app.conftest import WorkerDouble
from tests.e2e.conftest import Service

D = np.eye(4, 6, dtype=np.float32) + 0.1
ROWS = np.ones((3, 6), np.float32)
NOISE = np.random.default_rng(1).random((2000, 256), np.float32)
FITTED = np.random.default_rng(0).random((200, 6), np.float32)


def put(service: Service, name: str = "d", scale: float = 1.0) -> httpx.Response:
    return service.client.put(f"/dictionaries/{name}", content=npy(scale * D))


def encode(service: Service, reference: str = "d", rows: np.ndarray = ROWS) -> httpx.Response:
    return service.client.post("/encode", params={"dictionary": reference}, content=npy(rows))


def problem(answer: httpx.Response, status: int, type: str) -> str:
    """The detail of an answer that must be this problem; a 503 must say when to come back."""
    assert (answer.status_code, answer.json()["type"]) == (status, type), answer.text
    if status == 503:
        assert int(answer.headers["retry-after"]) > 0
    detail: str = answer.json()["detail"]
    return detail


@contextmanager
def served_here(store: Path, **told: Any) -> Iterator[TestClient]:
    """What a start on this store would serve, with these settings; no process is started, which costs seconds."""
    settings = Settings(store=store, **told)
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        yield client


def fits(client: TestClient) -> bool:
    """Whether a fit is taken and comes to its end."""
    job = client.post("/fit?name=a&nb_concepts=2", content=npy(FITTED), headers={"prefer": "wait=20"}).json()
    return bool(job.get("state") == "succeeded")


def refusal(store: Path) -> str:
    """The line in which a start on this store would say that it cannot be; no process is started for it."""
    services = create_app(Settings(store=store)).state.services
    with pytest.raises(AppError) as error:
        services.open()
    services.database.close()
    services.store.workplace.close()
    (line,) = str(error.value).splitlines()
    return line


def require_next(service: Service, reference: str = "d") -> None:
    """The service is ready, at once or when its worker is back, and a good request is served."""
    service.wait_ready()
    answer = encode(service, reference)
    assert answer.status_code == 200, answer.text


def fit(service: Service, **parameters: object) -> str:
    return service.fit(FITTED, **{"nb_concepts": 3, "max_iter": 20} | parameters)


def long_fit(service: Service, **parameters: object) -> str:
    """A fit that does not settle soon, on small data; when this returns it runs."""
    id = service.fit(
        NOISE, **{"name": "long", "nb_concepts": 32, "solver": "mu", "tol": 0, "max_iter": 100_000} | parameters
    )
    service.until(id, "running", iteration=1)
    return id


@contextmanager
def suspended(*pids: int) -> Iterator[None]:
    """Processes stand still: of a worker a fit is under way all the same, and takes no core from what comes
    meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
