"""Clients that leave in the middle, over real sockets, leave nothing behind."""

import io
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from app.store import Store
from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service

A = np.ones((1000, 100), np.float32)


def send_and_leave(port: int, path: str, body: bytes, share: float, *, reset: bool = False) -> None:
    """Send a share of a request and close, in order or with a reset, which also throws away what is on its way."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        connection.sendall(body[: int(len(body) * share)])


@pytest.mark.parametrize("path", ["/encode?dictionary=a", "/fit?name=a&nb_concepts=2"])
def test_cut_off_uploads(shared: Service, path: str) -> None:
    for _ in range(20):
        send_and_leave(shared.port, path, npy(A), 0.5)
    time.sleep(0.5)
    assert shared.client.get("/livez").status_code == 200
    assert list(Store(shared.store).activations.iterdir()) == []
    assert "Traceback" not in shared.log.read_text()


def held(pid: int) -> dict[str, int]:
    """What a process holds that could leak: descriptors, shared memory that is mapped, threads, processes."""
    process = Path(f"/proc/{pid}")
    return {
        "descriptors": len(os.listdir(process / "fd")),
        "memory files": (process / "maps").read_text().count("memfd:"),
        "threads": len(os.listdir(process / "task")),
        "children": sum(len((task / "children").read_text().split()) for task in (process / "task").iterdir()),
    }


def settled(pids: list[int], at_most: list[dict[str, int]], seconds: float = 20.0) -> list[dict[str, int]]:
    """What the processes hold once it is no more than that, or else in the end."""
    deadline = time.monotonic() + seconds
    while True:
        now = [held(pid) for pid in pids]
        within = all(now[i][what] <= at_most[i][what] for i in range(len(pids)) for what in now[i])
        if within or time.monotonic() > deadline:
            return now
        time.sleep(0.2)


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
    before = [held(pid) for pid in pids]
    most_threads = 64  # a pool of the event loop's grows to its bound, and no further
    for process in before:
        process["threads"] = most_threads
    for i in range(1000):
        path, body, share = ways[i % len(ways)]
        send_and_leave(shared.port, path, body, share, reset=i % 2 == 0)

    for now, then in zip(settled(pids, before), before, strict=True):
        assert all(now[what] <= then[what] for what in then), (now, then)
    np.testing.assert_array_equal(
        np.load(io.BytesIO(shared.client.post(encode, content=large).content))[: len(rows)], codes
    )
    assert list(Store(shared.store).activations.iterdir()) == []
    assert not [name for name in os.listdir("/dev/shm") if "dictserve" in name]  # noqa: S108 - only looked at
    assert "Traceback" not in shared.log.read_text()
