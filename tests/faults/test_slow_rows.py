"""Rows that take long: nobody else waits for all of them, and the worker is not taken for dead meanwhile."""

import io
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from demo.service import npy
from tests.e2e.conftest import Service
from tests.figures import figures
from tests.waiting import until
from tests.wire import request

CONCEPTS = 512
random = np.random.default_rng(0)
D = random.random((CONCEPTS, CONCEPTS), np.float32)
SLOW = random.random((500, CONCEPTS), np.float32) @ D  # every concept has its part in each: seconds


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has one core alone, so that rows take as long on every machine."""
    service = Service(tmp_path_factory.mktemp("slow") / "models")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # as its processes have it from this one
    try:
        service.start()
    finally:
        os.sched_setaffinity(0, cores)
    yield service
    assert service.stop() == 0


def test_rows_that_take_long_hold_up_nobody(service: Service) -> None:
    """Neither those of the same dictionary nor those of another."""
    quick = {"wide": D[:2], "small": D[:2, :6]}
    for name, weights in (("wide", D), ("small", D[:4, :6])):
        assert service.client.put(f"/dictionaries/{name}", content=npy(weights)).status_code == 201

    def answered(name: str) -> int:
        """How often others are while the slow rows are under way."""
        count = 0
        with httpx.Client(base_url=service.url, timeout=120) as client:
            while not slow.done():
                answer = client.post(f"/encode?dictionary={name}", content=npy(quick[name]))
                assert answer.status_code == 200
                count += not slow.done()
                assert client.get("/readyz").status_code == 200
        return count

    with ThreadPoolExecutor(3) as pool, httpx.Client(base_url=service.url, timeout=120) as client:
        slow = pool.submit(client.post, "/encode?dictionary=wide", content=npy(SLOW))
        answers = list(pool.map(answered, quick))
    assert slow.result().status_code == 200
    codes = np.load(io.BytesIO(slow.result().content))
    assert (np.linalg.norm(codes @ D - SLOW, axis=1) <= 1e-4 * np.linalg.norm(SLOW, axis=1)).all()
    assert min(answers) >= 3


@pytest.mark.parametrize("rows", [200, 500])  # of which the last part that is read is large, and small
def test_nothing_is_computed_for_who_has_left(service: Service, rows: int) -> None:
    """As those whose timeout is shorter than the queue, and who ask again."""
    assert service.client.put("/dictionaries/wide", content=npy(D)).status_code == 201
    clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(30)]
    for client in clients:
        client.sendall(request("POST", "/encode?dictionary=wide", npy(SLOW[:rows])))

    def queued() -> float:
        return figures(service.client)["dictserve_queue_rows",]

    def gone() -> float:
        return figures(service.client).get(("dictserve_requests_total", "POST", "/encode", "gone"), 0)

    before = gone()
    until(lambda: queued() >= 20 * rows)
    for client in clients:
        client.close()
    left = time.monotonic()
    while queued() > 0:  # but for what the worker is at
        assert time.monotonic() < left + 6
        time.sleep(0.1)
    assert gone() - before >= 20
    assert service.client.post("/encode?dictionary=wide", content=npy(D[:2])).status_code == 200


def test_who_leaves_having_asked_for_more_is_no_error(service: Service) -> None:
    assert service.client.put("/dictionaries/wide", content=npy(D)).status_code == 201
    both = request("POST", "/encode?dictionary=wide", npy(SLOW[:40])) + request("GET", "/livez")
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(both)
            time.sleep(0.1)
    assert service.client.post("/encode?dictionary=wide", content=npy(D[:2])).status_code == 200
    assert "without starting response" not in service.log.read_text()
    assert "Traceback" not in service.log.read_text()
