"""Processes killed and stopped, memory that runs out, clocks that jump, and two services on one store."""

import io
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from app.jobs import jobs
from app.jobs.database import Database
from app.jobs.jobs import Jobs
from app.jobs.leases import leases
from app.store.store import Store
from app.worker.launch import channel
from demo.service import npy
from tests.e2e.conftest import Service, has_ended, until_gone
from tests.faults.asked import FITTED, ROWS, D, encode, fit, long_fit, problem, put, require_next, suspended
from tests.figures import figures
from tests.memory import held_bytes
from tests.waiting import SOON_SECONDS, until
from tests.wire import head, request

MIB = 1024 * 1024
LARGE = np.tile(FITTED, (600, 1))  # some tenths of a second of work


def kill_worker(service: Service) -> None:
    worker = service.worker_pid
    os.kill(worker, signal.SIGKILL)
    until_gone(worker)


def test_the_worker_killed_while_idle(service: Service) -> None:
    kill_worker(service)
    answer = encode(service)
    if answer.status_code != 200:
        problem(answer, 503, "worker-unavailable")
    assert service.client.get("/livez").status_code == 200
    assert service.client.get("/dictionaries").status_code == 200
    require_next(service)


def test_the_worker_killed_in_the_midst_of_encodes(service: Service) -> None:
    with ThreadPoolExecutor(6) as pool:
        os.kill(service.worker_pid, signal.SIGSTOP)  # so that it has answered none of them when it dies
        answers = [pool.submit(encode, service, "d", LARGE) for _ in range(6)]
        until(lambda: figures(service.client)["dictserve_queue_rows",] > 0)
        kill_worker(service)
        statuses = [answer.result() for answer in answers]
    refused = [answer for answer in statuses if answer.status_code != 200]
    assert refused
    for answer in refused:
        problem(answer, 503, "worker-unavailable")
    require_next(service)


def test_the_worker_killed_in_the_midst_of_a_fit(service: Service) -> None:
    id = long_fit(service, max_iter=200)
    kill_worker(service)
    job = service.ended(id)
    assert (job["state"], job["attempts"], job["resumed_from"]) == (
        "succeeded",
        2,
        None,
    )  # too short for a checkpoint
    require_next(service)


@pytest.mark.slow
def test_the_worker_killed_again_and_again(service: Service) -> None:
    """Encodes meanwhile are 200 or a 503 that says when; a fit that was not begun is run in the end."""
    stop, answers = threading.Event(), []

    def send() -> None:
        while not stop.is_set():
            answers.append(encode(service))
            time.sleep(0.05)

    sender = threading.Thread(target=send)
    sender.start()
    for _ in range(2):
        service.wait_ready(20)
        kill_worker(service)
    id = fit(service, name="new")
    stop.set()
    sender.join()
    for answer in answers:
        if answer.status_code != 200:
            problem(answer, 503, "worker-unavailable")
    assert service.ended(id)["state"] == "succeeded"
    require_next(service)


@pytest.mark.slow
def test_sigterm_under_load_cuts_nothing_off(service: Service) -> None:
    """Encodes that wait and uploads half way are answered whole; the fit goes back into the queue; exit code 0."""
    id = long_fit(service)
    worker, body = service.worker_pid, npy(LARGE[:20_000])
    whole, half = request("POST", "/encode?dictionary=d", body), len(body) // 2
    uploads = [socket.create_connection(("127.0.0.1", service.port), timeout=30) for _ in range(3)]
    for upload in uploads:
        upload.sendall(whole[:-half])
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(encode, service, "d", LARGE) for _ in range(3)]
        time.sleep(0.5)
        begun = time.monotonic()
        service.process.terminate()  # type: ignore[union-attr] - of a service that runs
        time.sleep(0.3)
        for upload in uploads:
            upload.sendall(whole[-half:])
        for answer in answers:
            codes = answer.result()
            assert codes.status_code == 200, codes.text
            assert np.load(io.BytesIO(codes.content)).shape == (len(LARGE), 4)
    for upload in uploads:
        with upload:
            answered = b"".join(iter(lambda upload=upload: upload.recv(1 << 20), b""))
        assert answered.startswith(b"HTTP/1.1 200"), answered[:200]
        assert np.load(io.BytesIO(answered.partition(b"\r\n\r\n")[2])).shape == (20_000, 4)
    assert service.stop(30) == 0
    assert time.monotonic() - begun < 30
    until_gone(worker)
    kept = service.checkpoint(id)
    service.start()
    service.until(id, "running", iteration=kept + 1)
    assert service.job(id)["resumed_from"] == kept
    service.client.delete(f"/jobs/{id}")
    require_next(service)


def test_no_worker_outlives_its_service(service: Service) -> None:
    """Not even in the midst of a fit and an encode. The fit had no checkpoint, and begins again."""
    worker, id = service.worker_pid, long_fit(service)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(request("POST", "/encode?dictionary=d", npy(LARGE)))
    service.kill()
    until_gone(worker)
    service.start()
    service.until(id, "running", iteration=1, attempts=2)
    assert service.job(id)["resumed_from"] is None
    service.client.delete(f"/jobs/{id}")
    require_next(service)


def test_a_worker_that_stands_still_is_killed_with_its_service(service: Service) -> None:
    """By the kernel: of itself it would not see that nobody is there any more."""
    worker = service.worker_pid
    os.kill(worker, signal.SIGSTOP)
    service.kill()
    try:
        until(lambda: has_ended(worker), seconds=SOON_SECONDS)
    finally:
        if not has_ended(worker):
            os.kill(worker, signal.SIGKILL)
    service.start()
    require_next(service)


def test_a_worker_that_begins_after_its_service_has_died_ends_at_once() -> None:
    """Before anything is loaded: by then nobody is its parent any more whose death the kernel would tell."""
    ours, theirs = channel()
    with ours, theirs:
        command = [sys.executable, "-m", "app.worker", str(theirs.fileno()), str(os.getppid())]  # no child of that
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr == "the service was gone before its process had begun\n"


@pytest.fixture
def wide(service: Service) -> Iterator[tuple[Service, np.ndarray]]:
    """A service whose worker may take no more than 30 MiB beyond what it has, and rows that are more."""
    rows = np.random.default_rng(0).random((600, 20_000), np.float32)
    service.client.put("/dictionaries/wide", content=npy(rows[:4])).raise_for_status()
    assert encode(service, "wide", rows[:1]).status_code == 200
    pid = service.worker_pid
    used = held_bytes("VmSize", pid)
    resource.prlimit(pid, resource.RLIMIT_AS, (used + 30 * MIB, resource.RLIM_INFINITY))
    yield service, rows
    with suppress(ProcessLookupError):  # it may have died of that
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_an_encode_that_the_worker_has_no_memory_for(wide: tuple[Service, np.ndarray]) -> None:
    """Rows that cannot even be mapped; the worker goes on with others."""
    service, rows = wide
    worker = service.worker_pid
    assert "send fewer rows" in problem(encode(service, "wide", rows), 507, "device-out-of-memory")
    require_next(service)
    assert service.worker_pid == worker


def test_a_fit_that_the_worker_has_no_memory_for(wide: tuple[Service, np.ndarray]) -> None:
    """It is told so, or the worker dies of it and another comes, which has no such limit and ends the fit."""
    service, rows = wide
    job = service.ended(service.fit(rows, name="large", nb_concepts=4, max_iter=2))
    assert job["state"] == "succeeded" or job["error"]["type"] == "device-out-of-memory", job["error"]
    require_next(service)


def test_a_clock_that_jumps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back between every two jobs, and once more: ids stay unique, each job is claimed once, none is lost."""
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    database.open()
    with database.transaction() as connection:
        database.insert_new(connection, leases, owner="me", until=0.0)
    queue = Jobs(database)
    now = time.time()
    ids = []
    for hours in [*range(20), *range(20)]:
        monkeypatch.setattr(jobs.time, "time", lambda hours=hours: now - hours * 3600)
        monkeypatch.setattr(jobs, "now", lambda hours=hours: f"2020-01-{28 - hours:02}T00:00:00.000+00:00")
        job = queue.add("a", {"max_iter": 1}, {"file": f"{hours}"}, owner="me", queue_jobs=100)
        assert job is not None
        ids.append(job.id)
    assert (len({id[:12] for id in ids}), len(set(ids))) == (20, 40)
    monkeypatch.setattr(jobs.time, "time", lambda: now)
    assert len({jobs.new_id() for _ in range(10_000)}) == 10_000  # within one moment
    claimed = [record.job.id for record in iter(lambda: queue.claim("me"), None)]
    assert sorted(claimed) == sorted(ids)
    database.close()


def one_name_is_put_by_both(service: Service, other: Service) -> None:
    """Each version is made once."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: put((service, other)[i % 2], "both", scale=1 + i), range(40)))
    assert {answer.status_code for answer in made} == {201}
    versions = [answer.json()["version"] for answer in made]
    assert sorted(versions) == list(range(1, 41))
    for scale, version in enumerate(versions, start=1):
        np.testing.assert_allclose(Store(service.store).load("both", version), scale * D)
    assert encode(other, "both").status_code == 200


def one_name_is_fitted_by_both(service: Service, other: Service) -> None:
    """Each fit makes a version, and both know all of them."""
    ids = [fit(s, name="fitted") for s in (service, other) for _ in range(3)]
    assert sorted(service.ended(id)["version"] for id in ids) == [1, 2, 3, 4, 5, 6]
    for s in (service, other):
        assert s.client.get("/dictionaries/fitted").json()["versions"] == [1, 2, 3, 4, 5, 6]
        assert encode(s, "fitted@5").status_code == 200


def stopped_in_the_midst_of_requests(service: Service) -> None:
    """What takes longer than a stop waits is told so, as a problem, with `Retry-After`, and not as a fault of the
    service's own."""
    heads = (
        head("POST", "/fit?name=a&nb_concepts=1", 1000),
        head("POST", "/encode?dictionary=d", 1000),
        head("PUT", "/dictionaries/a", 1000),
        head("POST", "/v2/models/d/infer", 1000),
    )
    connections = []
    for begun in heads:
        connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        connection.sendall(begun + b"[[1,")
        connections.append(connection)
    time.sleep(0.3)
    assert service.stop() == 0
    for connection in connections:
        with connection, connection.makefile("rb") as answer:
            told = answer.read()
        assert told.startswith(b"HTTP/1.1 503 "), told
        assert b"retry-after: 5\r\n" in told.lower()
        assert b"the service stops" in told
    assert "Traceback" not in service.log.read_text()


@pytest.mark.slow
def test_two_services_leave_each_others_work_alone(service: Service) -> None:
    """One has a fit running, one queued and an upload half way while the other starts, works and stops."""
    running, queued = long_fit(service), fit(service, name="queued")
    whole = request("POST", "/fit?name=sent&nb_concepts=2", npy(LARGE))  # so much that half of it buys minutes
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as upload:
        upload.sendall(whole[:-2000])
        activations = Store(service.store).workplace.activations
        staged = until(lambda: found if len(found := set(activations.iterdir())) == 3 else None)
        with suspended(service.worker_pid):
            other = Service(service.store, DICTSERVE_SHUTDOWN_GRACE_SECONDS="1").start()
        try:
            with suspended(service.worker_pid):
                assert other.ended(queued)["state"] == "succeeded"  # it has a worker to spare
                left = set(activations.iterdir())
                assert len(staged - left) == 1
                assert encode(other, "d", ROWS).status_code == 200
                one_name_is_put_by_both(service, other)
                assert other.job(running)["state"] == "running"
            service.until(running, "running")
            assert service.job(running)["attempts"] == 1
            assert service.client.delete(f"/jobs/{running}").json()["state"] == "cancelled"
            one_name_is_fitted_by_both(service, other)
            of_each = [long_fit(service) for _ in range(2)]
            until(lambda: all(service.job(id)["state"] == "running" for id in of_each))
            stopped_in_the_midst_of_requests(other)
        finally:
            assert other.stop() == 0
        upload.sendall(whole[-2000:])
        assert upload.recv(12) == b"HTTP/1.1 202"
    jobs = [service.job(id) for id in of_each]
    assert sorted((job["state"], job["attempts"]) for job in jobs) == [("queued", 1), ("running", 1)]
    for id in of_each:
        assert service.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    require_next(service, "both")
    require_next(service)
