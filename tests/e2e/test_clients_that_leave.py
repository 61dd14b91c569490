"""Clients that leave in the middle, over real sockets, leave nothing behind."""

import contextlib
import io
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest

from app.store.store import Store
from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.load.held import MOST_OF_POOLS, held, settled
from tests.figures import figures
from tests.waiting import SOON_SECONDS, until
from tests.wire import head, request

A = np.ones((1000, 100), np.float32)


def send_and_leave(port: int, path: str, body: bytes, share: float, *, reset: bool = False) -> None:
    """Send a share of a request and close, in order or with a reset, which also throws away what is on its way."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(head("POST", path, len(body)) + body[: int(len(body) * share)])


def gone(service: Service, route: str, method: str = "POST") -> float:
    """Requests whose clients had left."""
    return figures(service.client).get(("dictserve_requests_total", method, route.partition("?")[0], "gone"), 0)


@pytest.mark.parametrize("path", ["/encode?dictionary=a", "/fit?name=a&nb_concepts=2"])
def test_cut_off_uploads(shared: Service, path: str) -> None:
    before = gone(shared, path)
    for _ in range(20):
        send_and_leave(shared.port, path, npy(A), 0.5)
    until(lambda: gone(shared, path) == before + 20)
    assert shared.client.get("/livez").status_code == 200
    assert list(Store(shared.store).workplace.activations.iterdir()) == []
    assert "Traceback" not in shared.log.read_text()


def test_followers_of_a_job_that_leave(shared: Service) -> None:
    """Each is told the job's progress once, and goes; the job goes on, and nothing of them is left."""
    fitted, _ = split_digits()
    id = shared.fit(fitted, name="followed", nb_concepts=64, solver="mu", tol=0, max_iter=100_000)
    shared.until(id, "running", iteration=1)
    pids = [shared.pid, shared.worker_pid]
    before = [held(pid) | MOST_OF_POOLS for pid in pids]
    for i in range(60):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
            if i % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(request("GET", f"/jobs/{id}/events"))
            assert connection.recv(12) == b"HTTP/1.1 200"
    for now, then in zip(settled(pids, before), before, strict=True):
        assert all(now[what] <= then[what] for what in then), (now, then)
    assert shared.job(id)["state"] == "running"
    assert shared.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert "Traceback" not in shared.log.read_text()


def test_clients_that_wait_for_a_job_and_leave(shared: Service) -> None:
    """Nobody waits for them until their time is up: whoever asks again would leave one more each time."""
    fitted, _ = split_digits()
    id = shared.fit(fitted, name="awaited", nb_concepts=64, solver="mu", tol=0, max_iter=100_000)
    before = gone(shared, "/jobs/{id}", "GET")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", shared.port)) as connection:
            connection.sendall(request("GET", f"/jobs/{id}", prefer="wait=600"))
    until(lambda: gone(shared, "/jobs/{id}", "GET") == before + 20, seconds=SOON_SECONDS)
    assert shared.client.post(f"/jobs/{id}/cancel").json()["state"] == "cancelled"
    assert "Traceback" not in shared.log.read_text()


def comparing(service: Service) -> list[int]:
    """Processes of comparisons."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # gone meanwhile
            words = path.read_bytes().split(b"\0")
            if b"app.worker.matching" in words and str(service.pid).encode() in words:
                found.append(int(path.parent.name))
    return found


def test_clients_of_comparisons_that_leave(shared: Service) -> None:
    """Each takes its process with it, and the next has its turn at once."""
    D = np.random.default_rng(0).random((2000, 30), np.float32)
    for name in ("left", "right"):
        assert shared.client.put(f"/dictionaries/{name}", content=npy(D)).status_code == 201
    compare = request("GET", "/dictionaries/left/compare/right")
    connections = [socket.create_connection(("127.0.0.1", shared.port)) for _ in range(5)]
    for connection in connections:
        connection.sendall(compare)
    until(lambda: len(comparing(shared)) == 1)
    for connection in connections:
        connection.close()
    told = shared.client.get("/dictionaries/left/compare/right", timeout=60).json()
    assert told["stability"] == 1
    until(lambda: comparing(shared) == [])
    for name in ("left", "right"):
        assert shared.client.delete(f"/dictionaries/{name}").status_code == 204
    assert "Traceback" not in shared.log.read_text()


@pytest.mark.slow
def test_a_thousand_aborted_requests(shared: Service) -> None:
    fitted, rows = split_digits()
    assert shared.ended(shared.fit(fitted, name="digits", nb_concepts=16))["state"] == "succeeded"
    d = rows.shape[1]
    small, large = npy(rows[:1]), npy(np.tile(rows, (4, 1)))
    encode = "/encode?dictionary=digits"
    ways = [
        (encode, small, 1.0),  # gone before its answer
        (encode, large, 1.0),
        (encode, large, 0.5),  # gone within its body
        ("/decode?dictionary=digits", npy(np.ones((2000, 16), np.float32)), 1.0),
        ("/fit?name=gone&nb_concepts=4", npy(np.ones((2000, d), np.float32)), 0.7),
        (f"{encode}&sparse=true", large, 1.0),
    ]
    for path, body, _ in ways[:4]:  # threads and caches that are there to stay
        assert shared.client.post(path, content=body).status_code == 200

    codes = np.load(io.BytesIO(shared.client.post(encode, content=large).content))[: len(rows)]
    pids = [shared.pid, shared.worker_pid]
    before = [held(pid) | MOST_OF_POOLS for pid in pids]
    for i in range(1000):
        path, body, share = ways[i % len(ways)]
        send_and_leave(shared.port, path, body, share, reset=i % 2 == 0)

    for now, then in zip(settled(pids, before), before, strict=True):
        assert all(now[what] <= then[what] for what in then), (now, then)
    np.testing.assert_array_equal(
        np.load(io.BytesIO(shared.client.post(encode, content=large).content))[: len(rows)], codes
    )
    assert list(Store(shared.store).workplace.activations.iterdir()) == []
    assert not [name for name in os.listdir("/dev/shm") if "dictserve" in name]  # noqa: S108 - only looked at
    assert "Traceback" not in shared.log.read_text()
