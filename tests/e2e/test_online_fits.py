"""An online fit of files by the real service: killed and gone on with, in memory that does not grow with them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Service
from tests.memory import held_bytes

ROWS, FEATURES, SHARDS = 30_000, 512, 4  # 61 MB in float32 each, of float32
FIT = {"nb_concepts": 8, "files": ["*.npy"], "tol": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    D = rng.random((16, FEATURES), np.float32)  # more than a fit can tell of, so that there is a loss
    for shard in range(SHARDS):
        np.save(data / f"{shard}.npy", rng.standard_exponential((ROWS, 16), np.float32) @ D)
    return data


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Service]:
    service = Service(
        tmp_path_factory.mktemp("online") / "models",
        DICTSERVE_DATA_DIR=str(data),
        DICTSERVE_ONLINE_FIT_BYTES="1000000",
        DICTSERVE_CHECKPOINT_INTERVAL_SECONDS="0.05",
    ).start()
    yield service
    assert service.stop() == 0


def begun(service: Service, **parameters: object) -> str:
    answer = service.client.post("/fit", json={**FIT, **parameters})
    assert answer.status_code == 202, answer.text
    id: str = answer.json()["id"]
    return id


@pytest.mark.slow
def test_the_memory_of_the_worker_is_flat(service: Service) -> None:
    """Of 184 MB more the worker holds a few batches; what any fit needs (torch's own, too) it has taken before, give
    or take what the allocator keeps (9 to 76 MB were seen)."""
    service.ended(begun(service, name="one", files=["0.npy"], epochs=1))
    peak = held_bytes("VmHWM", service.worker_pid)
    job = service.ended(begun(service, name="all", epochs=1))
    assert job["state"] == "succeeded", job
    assert held_bytes("VmHWM", service.worker_pid) - peak < 128 * 1024 * 1024


@pytest.mark.slow
def test_a_worker_that_is_killed_goes_on_from_its_checkpoint(service: Service) -> None:
    files = ["0.npy", "1.npy"]
    id = begun(service, name="killed", files=files, epochs=2)
    service.until(id, "running", iteration=10)
    service.until_kept(id)
    os.kill(service.worker_pid, signal.SIGKILL)
    job = service.ended(id)
    assert (job["state"], job["attempts"]) == ("succeeded", 2), job
    assert job["resumed_from"] > 0
    assert job["progress"]["iteration"] == job["progress"]["max_iter"]
    whole = service.ended(begun(service, name="whole", files=files, epochs=2))
    assert whole["resumed_from"] is None
    told = {name: service.client.get(f"/dictionaries/{name}").json() for name in ("killed", "whole")}
    assert told["killed"]["metrics"]["relative_error"] == pytest.approx(
        told["whole"]["metrics"]["relative_error"], rel=1e-3, abs=1e-5
    )
    assert told["killed"]["parameters"]["online"] is True
    assert told["killed"]["metrics"]["metrics_rows"] == ROWS * len(files)
