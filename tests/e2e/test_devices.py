"""A worker for each of two devices, here two halves of the CPU; and one whose device fails."""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service, until_gone
from tests.faults.asked import suspended
from tests.figures import figures
from tests.waiting import until

FITTED, HELD_OUT = split_digits()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("pair") / "models", DICTSERVE_DEVICES="cpu:0,cpu:1").start()
    service.client.put("/dictionaries/digits", content=npy(FITTED[:32])).raise_for_status()
    both_ready(service)
    yield service
    assert service.stop() == 0


def workers(service: Service) -> list[dict]:  # type: ignore[type-arg]
    told: list[dict] = service.client.get("/readyz").json()["workers"]  # type: ignore[type-arg]
    return told


def both_ready(service: Service) -> None:
    until(lambda: [worker["state"] for worker in workers(service)] == ["ready", "ready"])


def rows_of_each(service: Service) -> list[float]:
    return [value for (name, *_), value in figures(service.client).items() if name == "dictserve_rows_total"]


class Clients:
    """Four that encode again and again, and what they were answered."""

    def __init__(self, service: Service) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._encode, args=(service.url,)) for _ in range(4)]

    def _encode(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not self._stopped.wait(0.02):  # both cores are for what comes up in the place of the dead
                answer = client.post("/encode?dictionary=digits", content=npy(HELD_OUT[:20]))
                self.answers[answer.status_code, "" if answer.is_success else answer.json()["type"]] += 1

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def test_both_serve_and_the_death_of_one_is_told_to_those_on_it_alone(pair: Service) -> None:
    with Clients(pair) as clients:
        until(lambda: all(rows >= 200 for rows in rows_of_each(pair)))
        first, second = workers(pair)
        assert (first["device"], second["device"]) == ("cpu:0", "cpu:1")
        os.kill(first["pid"], signal.SIGKILL)
        until_gone(first["pid"])
        served = clients.answers[200, ""]
        until(lambda: clients.answers[200, ""] >= served + 100)
        assert workers(pair)[1]["pid"] == second["pid"]
        both_ready(pair)
        before = rows_of_each(pair)
        until(lambda: all(now > then for now, then in zip(rows_of_each(pair), before, strict=True)))
    unanswered = {told: count for told, count in clients.answers.items() if told[0] != 200}
    assert unanswered.keys() <= {(503, "worker-unavailable")}
    assert sum(unanswered.values()) <= 4  # a client has one under way
    assert [worker["restarts"] for worker in workers(pair)] == [1, 0]


def test_two_fits_run_at_once_and_one_worker_serves_through_the_death_of_the_other(pair: Service) -> None:
    both_ready(pair)
    slow = {"nb_concepts": 32, "solver": "mu", "tol": 0, "max_iter": 100_000}
    ids = [pair.fit(FITTED, name=f"slow{i}", **slow) for i in range(2)]
    for id in ids:
        pair.until(id, "running", iteration=1)
    until(lambda: [worker["is_fitting"] for worker in workers(pair)] == [True, True])
    third = pair.fit(FITTED[:100], name="short", nb_concepts=4, max_iter=5)
    assert pair.job(third)["state"] == "queued"
    first, second = workers(pair)
    with suspended(first["pid"]):  # both cores are for what comes up in the place of the dead
        before = {id: pair.job(id)["progress"]["iteration"] for id in ids}
        os.kill(second["pid"], signal.SIGKILL)
        until(lambda: sorted(pair.job(id)["attempts"] for id in ids) == [1, 2])
    (kept,) = (id for id in ids if pair.job(id)["attempts"] == 1)
    pair.until(kept, "running", iteration=before[kept] + 1)
    assert workers(pair)[0]["pid"] == first["pid"]
    for id in ids:
        assert pair.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert pair.ended(third)["state"] == "succeeded"
    both_ready(pair)


FAILING_WORKER = """
import sys
from pathlib import Path
import core
import torch
from app.worker import __main__, fitting
once = Path({once!r})
kept = fitting.Fitting._keep
encode = core.Dictionary.encode


def failing(dictionary, rows):
    if once.with_suffix(".encode").exists():
        once.with_suffix(".encode").unlink()
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    return encode(dictionary, rows)


def keeping(fit, steps, iteration):
    yield from kept(fit, steps, iteration)
    yield from fit._settled()
    if fit._kept and once.exists():
        once.unlink()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


core.Dictionary.encode, fitting.Fitting._keep = failing, keeping
sys.argv = sys.argv[2:]  # without "-m"
__main__.main()
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a file is put to have a worker's device fail, once, in a fit."""
    once, script, python = tmp_path / "once", tmp_path / "worker.py", tmp_path / "python"
    script.write_text(FAILING_WORKER.format(once=str(once)))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return once


def test_a_device_that_fails_costs_its_worker_and_nothing_else(
    tmp_path: Path, failing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(store=tmp_path / "models", devices="cpu", checkpoint_interval_seconds=0.05)
    caplog.set_level("INFO", "dictserve")
    with TestClient(create_app(settings)) as client:

        def ready() -> bool:
            return client.get("/readyz").status_code == 200

        until(ready)
        client.put("/dictionaries/digits", content=npy(FITTED[:32])).raise_for_status()
        failing.with_suffix(".encode").touch()
        refused = client.post("/encode?dictionary=digits", content=npy(HELD_OUT[:5]))
        assert (refused.status_code, refused.json()["type"]) == (503, "worker-unavailable")
        until(ready)
        assert client.post("/encode?dictionary=digits", content=npy(HELD_OUT[:5])).status_code == 200
        failing.touch()
        parameters = {"name": "a", "nb_concepts": 32, "solver": "mu", "tol": 0, "max_iter": 100}
        id = client.post("/fit", params=parameters, content=npy(FITTED)).json()["id"]
        until(lambda: client.get(f"/jobs/{id}").json()["state"] in ("succeeded", "failed"))
        job = client.get(f"/jobs/{id}").json()
        assert (job["state"], job["attempts"]) == ("succeeded", 2)
        assert 0 < job["resumed_from"] < 100
        (worker,) = client.get("/readyz").json()["workers"]
        assert worker["restarts"] == 2
        assert worker["last_end"].startswith("has left, for its device has failed: task ")
        assert worker["last_end"].endswith("CUDA error: an illegal memory access was encountered")
    assert caplog.text.count("the worker on cpu has left, for its device has failed") == 2
