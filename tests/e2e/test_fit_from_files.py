"""A fit from files by the real service: the same dictionary as from an upload, in little memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Service
from tests.memory import held_bytes

ROWS, FEATURES, SHARDS = 60_000, 256, 4  # 61 MB in float32, 123 MB on the disk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    D = rng.random((8, FEATURES))
    for shard in range(SHARDS):
        Z = rng.exponential(size=(ROWS // SHARDS, 8)) * (rng.random((ROWS // SHARDS, 8)) < 0.3)
        np.save(data / f"{shard}.npy", Z @ D)
    return data


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Service]:
    store = tmp_path_factory.mktemp("files") / "models"
    service = Service(store, DICTSERVE_DATA_DIR=str(data)).start()
    yield service
    assert service.stop() == 0


def test_files_and_an_upload_give_the_same_dictionary_and_little_is_held(service: Service, data: Path) -> None:
    parameters = {"nb_concepts": 8, "max_iter": 5}
    peak = held_bytes("VmHWM", service.pid)
    answer = service.client.post("/fit", json={"name": "files", "files": ["*.npy"], **parameters})
    assert answer.status_code == 202, answer.text
    assert service.ended(answer.json()["id"])["state"] == "succeeded"
    assert held_bytes("VmHWM", service.pid) - peak < 100 * 1024 * 1024  # a few slices, not the data

    A = np.vstack([np.load(data / f"{shard}.npy") for shard in range(SHARDS)])
    service.ended(service.fit(A, name="upload", **parameters))
    told = {name: service.client.get(f"/dictionaries/{name}").json() for name in ("files", "upload")}
    assert told["files"]["sha256"] == told["upload"]["sha256"]
    assert told["files"]["data"]["sha256"] == told["upload"]["data"]["sha256"]
    assert list((service.store / ".dictserve" / "activations").iterdir()) == []


def test_a_warm_start_goes_on_from_its_dictionary(service: Service) -> None:
    request = {"nb_concepts": 8, "files": ["*.npy"], "max_iter": 3}
    wait = {"prefer": "wait=60"}
    cold = service.client.post("/fit", json={"name": "cold", **request}, headers=wait).json()
    warm = service.client.post("/fit", json={"name": "warm", "init": "cold", **request}, headers=wait).json()
    assert (cold["state"], warm["state"]) == ("succeeded", "succeeded"), (cold, warm)
    assert warm["parameters"]["init"] == "cold@1"
    assert warm["progress"]["loss"] < cold["progress"]["loss"]
