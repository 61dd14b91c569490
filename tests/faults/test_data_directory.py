"""A data directory that is away for a while, as one on a network may be: fits of its files wait, and lose nothing."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Service
from tests.faults.asked import long_fit, problem
from tests.waiting import SOON_SECONDS, until

ROWS = np.random.default_rng(0).random((4000, 32), np.float32)
ONLINE = {"name": "online", "nb_concepts": 8, "files": ["*.npy"], "epochs": 4000, "tol": 0}
STAGED = {"name": "staged", "nb_concepts": 8, "files": ["*.npy"], "max_iter": 20}
LONG = {"name": "long", "nb_concepts": 8, "files": ["*.npy"], "max_iter": 100_000, "tol": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "data"
    folder.mkdir()
    for name in ("a", "b"):
        np.save(folder / f"{name}.npy", ROWS)
    return folder


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Service]:
    told = {"DICTSERVE_DATA_DIR": str(data), "DICTSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.2"}
    service = Service(tmp_path_factory.mktemp("fits") / "models", **told).start()
    yield service
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def begun(service: Service, request: dict[str, object]) -> str:
    answer = service.client.post("/fit", json=request)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def waits(service: Service) -> int:
    """How often a fit has begun to wait; that one is over is told in the same words, without what was wrong."""
    return service.log.read_text().count("a fit waits for its files: ")


def until_waits(service: Service, times: int) -> None:
    until(lambda: waits(service) >= times)


@contextlib.contextmanager
def away(data: Path, *, leaves_empty: bool = False) -> Iterator[None]:
    """The data directory is not there, or empty as a place is where nothing is mounted."""
    elsewhere = data.rename(data.with_name("elsewhere"))
    if leaves_empty:
        data.mkdir()
    try:
        yield
    finally:
        elsewhere.rename(data)  # over an empty one


@pytest.mark.parametrize("leaves_empty", [False, True])
def test_an_online_fit_goes_on_when_it_is_back(fits: Service, data: Path, leaves_empty: bool) -> None:
    id = begun(fits, ONLINE)
    fits.until(id, "running", iteration=20)
    fits.until_kept(id)
    seen = waits(fits)
    with away(data, leaves_empty=leaves_empty):
        until_waits(fits, seen + 1)
        at = fits.job(id)["progress"]["iteration"]
        time.sleep(1.5)
        assert fits.job(id)["state"] == "running"
    fits.until(id, "running", iteration=at + 1)
    job = fits.job(id)
    assert job["attempts"] == 1
    assert job["resumed_from"] > 0
    assert fits.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"


def test_one_that_has_not_begun_waits_too_and_is_cancelled_meanwhile(fits: Service, data: Path) -> None:
    first = begun(fits, LONG)
    fits.until(first, "running", iteration=1)
    waiting, unwanted = begun(fits, STAGED), begun(fits, STAGED)
    seen = waits(fits)
    with away(data):
        assert fits.client.delete(f"/jobs/{first}").json()["state"] == "cancelled"
        until_waits(fits, seen + 1)
        assert fits.job(waiting)["state"] == "running"
        assert fits.client.delete(f"/jobs/{waiting}").json()["state"] == "cancelled"
        fits.until(unwanted, "running")
        until_waits(fits, seen + 2)
    assert fits.ended(unwanted)["state"] == "succeeded"


@pytest.mark.parametrize("waiting", [ONLINE, STAGED])
def test_others_go_before_one_that_waits(fits: Service, data: Path, waiting: dict[str, object]) -> None:
    first = begun(fits, LONG)
    fits.until(first, "running", iteration=1)
    id = begun(fits, waiting)
    seen = waits(fits)
    with away(data):
        assert fits.client.delete(f"/jobs/{first}").json()["state"] == "cancelled"
        until_waits(fits, seen + 1)
        for name in ("other", "another"):
            other = fits.ended(fits.fit(ROWS, name=name, nb_concepts=4))
            assert other["state"] == "succeeded", other
        assert fits.job(id)["state"] == "running"
        last = fits.fit(ROWS, name="last", nb_concepts=4, solver="mu", tol=0, max_iter=100_000)
        fits.until(last, "running", iteration=1)
    assert fits.client.delete(f"/jobs/{last}").json()["state"] == "cancelled"
    if waiting is ONLINE:
        fits.until(id, "running", iteration=1)
        job = fits.client.delete(f"/jobs/{id}").json()
    else:
        job = fits.ended(id)
    assert (job["state"], job["attempts"]) == ("cancelled" if waiting is ONLINE else "succeeded", 1)


def test_one_that_waits_for_its_turn_is_cancelled_meanwhile(fits: Service, data: Path) -> None:
    """Its files are there again, and another has its worker meanwhile."""
    online = begun(fits, ONLINE)
    fits.until(online, "running", iteration=20)
    seen = waits(fits)
    with away(data):
        until_waits(fits, seen + 1)
        long = long_fit(fits, name="last")
    at = fits.job(online)["progress"]["iteration"]
    time.sleep(1.5)
    assert fits.job(online)["progress"]["iteration"] == at
    assert fits.client.delete(f"/jobs/{online}").json()["state"] == "cancelled"
    assert fits.client.delete(f"/jobs/{long}").json()["state"] == "cancelled"


def test_a_stop_does_not_wait_for_it(fits: Service, data: Path) -> None:
    id = begun(fits, ONLINE)
    fits.until(id, "running", iteration=20)
    seen = waits(fits)
    with away(data, leaves_empty=True):  # a service does not start without any
        until_waits(fits, seen + 1)
        stopped = time.monotonic()
        assert fits.stop() == 0
        assert time.monotonic() - stopped < SOON_SECONDS
        fits.start()
        until_waits(fits, seen + 2)
    fits.until(id, "running", iteration=21, attempts=2)
    assert fits.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"


@pytest.mark.parametrize("leaves_empty", [False, True])
def test_a_request_meanwhile_is_told_to_come_again(fits: Service, data: Path, leaves_empty: bool) -> None:
    with away(data, leaves_empty=leaves_empty):
        answer = fits.client.post("/fit", json=STAGED)
        assert "data directory" in problem(answer, 503, "data-unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert fits.ended(begun(fits, STAGED))["state"] == "succeeded"


def test_one_that_comes_again_meanwhile_is_given_its_job(fits: Service, data: Path) -> None:
    key = {"idempotency-key": "sent again"}
    first = fits.client.post("/fit", json=STAGED, headers=key).json()["id"]
    assert fits.ended(first)["state"] == "succeeded"
    with away(data):
        again = fits.client.post("/fit", json=STAGED, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first), again.text


def test_a_file_whose_name_is_not_text_is_refused(fits: Service, data: Path) -> None:
    odd = data / b"caf\xe9.npy".decode(errors="surrogateescape")
    np.save(odd, ROWS)
    try:
        answer = fits.client.post("/fit", json=STAGED)
        assert "'caf\\udce9.npy', whose name is not UTF-8" in problem(answer, 422, "invalid-fields")
    finally:
        odd.unlink()
