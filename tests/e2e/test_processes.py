"""What must hold when processes are killed, stopped and started again."""

import contextlib
import io
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.jobs.runner import MAX_SERVICE_DEATHS
from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service, until_gone
from tests.faults.asked import long_fit
from tests.waiting import until
from tests.wire import head

FITTED, HELD_OUT = split_digits()
ITERATIONS = 400  # of a long fit: seconds, more than it takes to see three times that it goes on and to end it


def codes(service: Service, dictionary: str = "digits") -> np.ndarray:
    answer = service.client.post("/encode", params={"dictionary": dictionary}, content=npy(HELD_OUT[:50]))
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


def begin_digits(service: Service) -> str:
    """A fit that takes a moment."""
    return service.fit(FITTED, name="digits", nb_concepts=16, max_iter=10)


def fit_digits(service: Service) -> None:
    assert service.ended(begin_digits(service))["state"] == "succeeded"


def leftovers(store: Path) -> list[str]:
    private = store / ".dictserve"
    folders = ("activations", "checkpoints", "staging")
    return [path.name for folder in folders for path in (private / folder).iterdir()]


def weights(service: Service, name: str) -> np.ndarray:
    return np.load(io.BytesIO(service.client.get(f"/dictionaries/{name}/weights").raise_for_status().content))


def test_a_fit_goes_on_whatever_is_killed_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    """The worker killed, the service stopped in order, both killed; its progress never falls behind a checkpoint. A
    fit that was queued is run, and a dictionary encodes as before."""
    service = Service(tmp_path / "models", DICTSERVE_CHECKPOINT_INTERVAL_SECONDS="0.05").start()
    fit_digits(service)
    before = codes(service, "digits@1")
    id = long_fit(service, max_iter=ITERATIONS)
    checkpoints = service.store / ".dictserve" / "checkpoints"

    def kept() -> None:
        """Wait for a checkpoint of this attempt's."""
        before = {path.stat().st_ino for path in checkpoints.iterdir()}
        until(lambda: {path.stat().st_ino for path in checkpoints.glob("*")} != before, every=0.01)

    def goes_on(attempt: int) -> int:
        """Where it goes on from, once it does."""

        def told() -> dict | None:  # type: ignore[type-arg]
            job = service.job(id)
            if job["attempts"] == attempt and job["resumed_from"] not in (None, *resumed):
                return job
            assert job["state"] in ("queued", "running"), job
            assert job["progress"]["iteration"] >= max(resumed, default=0)
            return None

        job = until(told, every=0.02)
        assert job["progress"]["iteration"] >= job["resumed_from"]
        return int(job["resumed_from"])

    resumed: list[int] = []
    kept()
    os.kill(service.worker_pid, signal.SIGKILL)
    resumed.append(goes_on(2))
    kept()
    worker = service.worker_pid
    os.kill(worker, signal.SIGTERM)  # as where every process is told
    assert service.stop() == 0
    until_gone(worker)
    service.start()
    resumed.append(goes_on(3))
    queued, worker = begin_digits(service), service.worker_pid
    kept()
    service.kill()
    until_gone(worker)
    service.start()
    np.testing.assert_allclose(codes(service, "digits@1"), before, atol=1e-5 * before.max())
    resumed.append(goes_on(4))
    job, next_job = service.ended(id), service.ended(queued)
    assert (next_job["state"], next_job["attempts"]) == ("succeeded", 1)
    assert len(list((service.store / ".dictserve" / "owners").iterdir())) == 1
    assert "Traceback" not in service.log.read_text()
    assert (job["state"], job["attempts"], job["resumed_from"]) == ("succeeded", 4, resumed[-1])
    assert 0 < resumed[0] < resumed[1] < resumed[2] < ITERATIONS
    assert [iteration for iteration, _ in job["loss_history"]] == sorted({i for i, _ in job["loss_history"]})
    assert leftovers(service.store) == []

    whole = service.ended(long_fit(service, name="whole", max_iter=ITERATIONS))
    assert job["loss_history"] == whole["loss_history"]
    np.testing.assert_array_equal(weights(service, "long"), weights(service, "whole"))
    assert service.stop() == 0


HANG_SECONDS = 8  # that a worker may be silent


@pytest.fixture(scope="module")
def watchful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that soon tells that its worker is silent, and soon replaces it."""
    told = {"DICTSERVE_WORKER_STALE_SECONDS": "2", "DICTSERVE_WORKER_HANG_SECONDS": str(HANG_SECONDS)}
    service = Service(tmp_path_factory.mktemp("watchful") / "models", **told).start()
    yield service
    assert service.stop() == 0


def test_a_container_that_was_paused_goes_on(watchful: Service) -> None:
    """For longer than a worker may be silent: it could not be heard."""
    worker, process = watchful.worker_pid, watchful.process
    assert process is not None
    for pid in (process.pid, worker):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(HANG_SECONDS + 2)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.5)  # in which the service runs alone
    os.kill(worker, signal.SIGCONT)
    watchful.wait_ready()
    fit_digits(watchful)
    assert watchful.worker_pid == worker


def test_a_worker_that_is_stuck_has_no_queue(watchful: Service) -> None:
    """Until it is replaced, others are told at once, as by the probe."""
    fit_digits(watchful)
    worker, client = watchful.worker_pid, watchful.client
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(16) as pool:
        encodes = [pool.submit(client.post, "/encode?dictionary=digits", content=npy(HELD_OUT[:2])) for _ in range(4)]
        until(lambda: client.get("/readyz").status_code != 200)
        time.sleep(0.5)
        refused = 0
        while not any(encode.done() for encode in encodes):
            answer = client.post("/encode?dictionary=digits", content=npy(HELD_OUT[:2]))
            if any(encode.done() for encode in encodes):
                break  # a service that was held up itself counts that as no silence, and had this one wait with them
            assert (answer.status_code, answer.json()["type"]) == (503, "worker-unavailable")
            refused += 1
            time.sleep(0.2)
        assert {encode.result().status_code for encode in encodes} <= {200, 503}
    assert refused > 1
    watchful.wait_ready()
    codes(watchful)
    assert watchful.worker_pid != worker


def test_a_fit_that_costs_two_workers_their_lives_is_given_up(shared: Service) -> None:
    """The service stays, and each worker that has died is replaced."""
    fit_digits(shared)
    before, workers = codes(shared), []
    id = long_fit(shared)
    for attempt in (1, 2):
        shared.until(id, "running", iteration=1, attempts=attempt)
        workers.append(shared.worker_pid)
        os.kill(workers[-1], signal.SIGKILL)
    refused = shared.client.post("/encode?dictionary=digits", content=npy(HELD_OUT[:1]))
    if refused.status_code != 200:  # unless it was fast enough
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
    job = shared.ended(id)
    assert (job["state"], job["error"]["type"]) == ("failed", "fit-abandoned")
    assert shared.wait_ready() < 30
    assert shared.worker_pid not in workers
    np.testing.assert_allclose(codes(shared), before, atol=1e-5 * before.max())
    fit_digits(shared)
    assert shared.process is not None
    assert shared.process.poll() is None


def test_a_fit_that_services_die_of_again_and_again_is_given_up(mortal: Service) -> None:
    """As one does that has its whole container ended for want of memory."""
    id = long_fit(mortal)
    mortal.until(id, "running", iteration=1)
    mortal.kill()
    with contextlib.closing(sqlite3.connect(mortal.store / ".dictserve" / "jobs.sqlite3")) as jobs, jobs:
        jobs.execute("UPDATE jobs SET service_deaths = ?", [MAX_SERVICE_DEATHS - 1])
    mortal.start()
    job = mortal.ended(id)
    assert (job["state"], job["error"]["type"]) == ("failed", "fit-abandoned")
    assert f"the service died {MAX_SERVICE_DEATHS} times" in job["error"]["detail"]
    fit_digits(mortal)
    assert leftovers(mortal.store) == []


@pytest.fixture
def no_nohup() -> Iterator[None]:
    """Processes that are started heed SIGHUP, though these tests' may not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_it_is_ended_in_order(no_nohup: None, mortal: Service) -> None:
    """While it waits for a request, by a second Ctrl-C; and by what its whole group is sent where a terminal is
    closed."""
    id = long_fit(mortal)
    before = 0
    for attempt, sent in enumerate(([signal.SIGINT, signal.SIGINT], [signal.SIGHUP]), start=1):
        mortal.until(id, "running", iteration=before + 1)
        assert mortal.job(id)["attempts"] == attempt
        worker = mortal.worker_pid
        with half_a_request(mortal) if len(sent) > 1 else contextlib.nullcontext():
            for number in sent:
                for pid in (worker, mortal.pid):
                    os.kill(pid, number)
                time.sleep(0.5)
            assert mortal.process is not None
            assert mortal.process.wait(25) == 0  # of the 30 s that a request is given
        until_gone(worker)
        assert "Traceback" not in mortal.log.read_text()
        before = mortal.checkpoint(id)
        mortal.start()
    mortal.until(id, "running", iteration=before + 1)
    assert (mortal.job(id)["attempts"], mortal.job(id)["resumed_from"]) == (3, before)
    assert mortal.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"


def test_it_has_ended_in_order_however_often_it_is_told(mortal: Service) -> None:
    """Also in the moment in which Python has put back what ends a process at once."""
    assert mortal.process is not None
    while mortal.process.poll() is None:
        mortal.process.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    assert mortal.process.wait() == 0
    mortal.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_is_ended_in_order_while_it_starts(no_nohup: None, tmp_path: Path, number: int) -> None:
    """By a handler of its own: the first process of a container is not ended by a signal that it has none for."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--store", str(tmp_path / "store")]
    with log.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (workers := children.read_text().split()):  # the worker is launched before what takes time is imported
        assert process.poll() is None, log.read_text()
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(25) == 0
    until_gone(int(workers[0]))
    assert "Traceback" not in log.read_text()


@contextlib.contextmanager
def half_a_request(service: Service) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head("POST", "/encode?dictionary=d", 1000) + b"12345")
        time.sleep(0.2)
        yield


def test_on_loopback_it_is_known_by_local_names_alone(shared: Service) -> None:
    for host, status in (("localhost", 200), (f"127.0.0.1:{shared.port}", 200), ("evil.example", 403)):
        assert shared.client.get("/dictionaries", headers={"Host": host}).status_code == status


def test_the_http_process_never_loads_torch(shared: Service) -> None:
    fit_digits(shared)
    codes(shared)
    libraries = {"libtorch_cpu", "llvmlite", "sklearn"}
    mapped = Path(f"/proc/{shared.pid}/maps").read_text()
    assert not [name for name in libraries if name in mapped]
    assert "libtorch_cpu" in Path(f"/proc/{shared.worker_pid}/maps").read_text()


def test_a_start_that_cannot_be_says_why_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    taken = socket.create_server(("127.0.0.1", 0))
    bad = [
        (["--store", str(tmp_path / "file" / "models")], f"store cannot be used: Not a directory ({tmp_path}/file"),
        (["--port", "99999"], "setting port"),
        (["--host", "localhost:8"], "nothing can listen on 'localhost:8'"),
        (["--port", str(taken.getsockname()[1])], "Address already in use"),
    ]
    for options, said in bad:
        command = [sys.executable, "-m", "app", "serve", "--port", "0", "--store", str(tmp_path / "m"), *options]
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert run.returncode != 0
        assert said in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    taken.close()


def test_requests_leak_no_handles(shared: Service) -> None:
    """File handles of both processes, after many, some of them wrong and some cut off."""
    fit_digits(shared)

    def handles() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (shared.pid, shared.worker_pid)]

    large = npy(HELD_OUT)  # which goes to the worker, and comes back, as a memory file
    shared.client.post("/encode?dictionary=digits", content=large).raise_for_status()
    before = handles()
    for _ in range(20):
        shared.client.post("/encode?dictionary=digits", content=large).raise_for_status()
        shared.client.post("/encode?dictionary=digits", content=large[:-4])
        with contextlib.suppress(httpx.TransportError):
            httpx.post(f"{shared.url}/encode?dictionary=digits", content=large, timeout=0.005)
    time.sleep(1)
    codes(shared)
    after = handles()
    assert all(now <= then + 2 for now, then in zip(after, before, strict=True)), (before, after)
