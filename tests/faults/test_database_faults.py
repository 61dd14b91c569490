"""The jobs' database locked by another process, or corrupt: a 503 that says why; the dictionaries still serve."""

import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.asked import FITTED, encode, fit, fits, long_fit, problem, put, refusal, require_next, served_here
from tests.waiting import until


def database(service: Service) -> Path:
    return service.store / ".dictserve" / "jobs.sqlite3"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another writer has the database."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def dictionaries_serve(service: Service) -> None:
    begun = time.monotonic()
    assert encode(service).status_code == 200
    assert service.client.get("/dictionaries/d").status_code == 200
    assert put(service).status_code == 201
    assert time.monotonic() - begun < 4.5


@pytest.mark.slow
def test_a_locked_database(service: Service) -> None:
    """Ten fits at once: those behind the first do not wait for its time and then for their own, readers for none."""
    ended = fit(service, name="before")
    service.ended(ended)
    logged = len(service.log.read_text())

    def refused(_: int) -> str:
        return problem(
            service.client.post("/fit?name=locked&nb_concepts=2", content=npy(FITTED)), 503, "jobs-unavailable"
        )

    with ThreadPoolExecutor(10) as threads, locked(database(service)):
        begun = time.monotonic()
        answers = threads.map(refused, range(10))
        time.sleep(0.3)
        reading = time.monotonic()
        assert service.client.get(f"/jobs/{ended}").status_code == 200  # who writes holds up no reader
        assert service.client.get("/jobs").status_code == 200
        assert time.monotonic() - reading < 4.5
        told = list(answers)
        assert time.monotonic() - begun < 25  # SQLite waits 5 s for the lock, ten times behind each other 50
        dictionaries_serve(service)
        assert all("locked" in text or "an earlier write still waits" in text for text in told), told
        # the first to write waits for the lock: one of the fits, or the service itself, for its lease, which it logs
        until(lambda: any("locked" in text for text in (*told, service.log.read_text()[logged:])))
        assert any("an earlier write still waits" in text for text in told), told
    assert list((service.store / ".dictserve" / "activations").iterdir()) == []
    assert service.ended(fit(service, name="locked"))["version"] == 1
    require_next(service)


@pytest.mark.slow
def test_a_database_that_is_locked_while_a_fit_ends(service: Service) -> None:
    """What was learned is not lost: it is published once it can be written that no cancel came before."""
    id = long_fit(service, max_iter=300)
    with locked(database(service)):
        until(lambda: "a job's record cannot be written" in service.log.read_text(), every=0.1)
        dictionaries_serve(service)
        assert not (service.store / "long").exists()
    job = service.ended(id)
    assert (job["state"], job["version"], job["attempts"]) == ("succeeded", 1, 1), job
    require_next(service)


def garbled(path: Path) -> None:
    """Everything there is is overwritten, the log of what was written last too."""
    for file in path.parent.glob(path.name + "*"):
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.write(b"garbage " * (size // 8))


def replaced(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damaged_past_its_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000)


def test_a_record_that_cannot_be_read(service: Service) -> None:
    """One row that is no job: told, and nothing else ends with it."""
    id = fit(service, name="before")
    service.ended(id)
    with sqlite3.connect(database(service)) as connection:
        connection.execute("UPDATE jobs SET progress = '{' WHERE id = ?", [id])
    problem(service.client.get(f"/jobs/{id}"), 500, "job-damaged")
    dictionaries_serve(service)
    new = fit(service, name="new")
    assert service.ended(new)["state"] == "succeeded"
    listed = service.client.get("/jobs?limit=2").json()["jobs"]
    assert [(job["id"], job["error"] and job["error"]["type"]) for job in listed] == [
        (new, None),
        (id, "job-damaged"),
    ]
    assert service.client.delete(f"/jobs/{id}").status_code == 204
    require_next(service)


def test_a_database_whose_file_is_gone_takes_no_more_jobs(service: Service) -> None:
    """They would be written to a file that nobody finds again; nor into one that takes its place, until a start."""
    path = database(service)

    def none_is_taken(said: str) -> None:
        for _ in range(2):
            answer = service.client.post("/fit?name=a&nb_concepts=2", content=npy(FITTED))
            told = problem(answer, 503, "jobs-unavailable")
            assert said in told
            assert "start the service again" in told
        assert encode(service).status_code == 200

    gone = path.rename(path.with_name("gone"))
    none_is_taken("its file is gone")
    path.write_bytes(gone.read_bytes())
    none_is_taken("it is another file")
    assert service.stop() == 0
    with served_here(service.store) as client:
        assert fits(client)


@pytest.mark.slow
def test_a_start_on_a_corrupt_database_says_why_in_a_line(shared: Service) -> None:
    """And makes a new one where what was corrupt has been removed. The last test here: no service is left running."""
    assert shared.stop() == 0  # if it runs
    path = database(shared)
    whole = path.read_bytes()
    for corrupt in (garbled, damaged_past_its_header):
        corrupt(path)
        assert "the jobs' database cannot be used" in refusal(shared.store)
        path.write_bytes(whole)
    replaced(path)
    run = subprocess.run(shared.command, capture_output=True, text=True, timeout=30)
    assert run.returncode != 0
    assert "the jobs' database cannot be used" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    path.rmdir()
    with served_here(shared.store) as client:
        assert fits(client)
