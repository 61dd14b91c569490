"""Services whose dictionaries are in an object store: the real processes, and a server that speaks S3."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from app.store.bucket import Bucket, bucket_of
from app.store.object_store import ObjectStore
from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service, until_answered
from tests.figures import figures
from tests.s3 import S3
from tests.waiting import until

FITTED, HELD_OUT = split_digits()

Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts services, each with a directory of its own."""
    services: list[Service] = []

    def start(s3: S3, url: str, **environment: str) -> Service:
        folder = tmp_path / f"service-{len(services)}"
        folder.mkdir()
        service = Service(folder / "own", **s3.environment, DICTSERVE_OBJECTS=url, **environment)
        services.append(service)
        return service.start()

    yield start
    for service in services:
        if service.is_running:
            assert service.stop() == 0
        assert "Traceback" not in service.log.read_text()


def bucket(s3: S3, url: str) -> Bucket:
    return bucket_of(ObjectStore(url, s3.options))


def codes(service: Service, dictionary: str = "digits") -> np.ndarray:
    answer = service.client.post(f"/encode?dictionary={dictionary}", content=npy(HELD_OUT[:20]))
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


@pytest.mark.slow
def test_the_whole_way_of_two_services_and_the_death_of_one(s3: S3, start: Start, tmp_path: Path) -> None:
    """Whatever one of them had is with the other, and with one of which nothing was left but the object store."""
    url = s3.new_url()
    shared = {
        "DICTSERVE_DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.sqlite3'}",
        "DICTSERVE_LEASE_SECONDS": "1",
        "DICTSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.2",
    }
    one, other = start(s3, url, **shared), start(s3, url, **shared)
    job = one.ended(one.fit(FITTED, name="digits", nb_concepts=16, max_iter=20))
    assert (job["state"], job["version"]) == ("succeeded", 1)
    before = codes(one)
    published = until_answered(other, "/dictionaries/digits", 200)
    assert published.json()["sha256"] == one.client.get("/dictionaries/digits").json()["sha256"]
    np.testing.assert_allclose(codes(other), before, atol=1e-5 * before.max())
    decoded = other.client.post("/decode?dictionary=digits@1", content=npy(before))
    assert decoded.status_code == 200
    again = other.fit(FITTED, name="again", nb_concepts=16, init="digits", max_iter=2)
    assert other.ended(again)["state"] == "succeeded"

    labelled = other.client.patch("/dictionaries/digits", json={"labels": {"a": "b"}})
    assert labelled.json()["labels"] == {"a": "b"}
    assert one.client.put("/dictionaries/digits", json={"data": [[1] * 512]}).json()["version"] == 2
    assert one.client.get("/dictionaries/digits").json()["versions"] == [1, 2]
    assert one.client.delete("/dictionaries/digits@2").status_code == 204
    assert one.client.get("/dictionaries/digits@2").status_code == 404
    assert one.client.get("/dictionaries/digits").json()["labels"] == {"a": "b"}
    objects = bucket(s3, url)
    keys = set(objects.entries())
    assert "digits/1/meta.json" in keys
    assert [key for key in keys if key.startswith(".dictserve/")] == [".dictserve/database"]

    assert other.stop() == 0
    id = one.fit(FITTED, name="slow", nb_concepts=32, tol=0, max_iter=100_000)
    waiting = one.fit(FITTED, name="waiting", nb_concepts=4, max_iter=2)
    until(lambda: objects.entries(".dictserve/checkpoints"), every=0.1)
    one.kill()
    shutil.rmtree(one.store)  # and with it its copies
    one.start()

    def resumed() -> dict | None:  # type: ignore[type-arg]
        job = one.job(id)
        assert job["state"] in ("queued", "running"), job
        return job if job["resumed_from"] is not None else None

    job = until(resumed, every=0.1)
    assert job["attempts"] == 2
    assert job["resumed_from"] > 0
    assert one.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert one.ended(waiting)["state"] == "succeeded"
    np.testing.assert_allclose(codes(one), before, atol=1e-5 * before.max())
    known = one.client.get("/dictionaries").json()["dictionaries"]
    assert [record["name"] for record in known] == ["again", "digits", "waiting"]
    assert figures(one.client)["dictserve_store_available",] == 1
    assert [key for key in objects.entries() if key.startswith(".dictserve/")] == [".dictserve/database"]
