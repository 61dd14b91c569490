"""What large bodies cost the HTTP process, one by itself and many together."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from demo.service import npy
from tests.e2e.conftest import Service
from tests.figures import figures
from tests.memory import forget_peak, held_bytes
from tests.waiting import until
from tests.wire import read, request, rest_of

MOST_BODIES = 2.5  # of memory that an encode of one body may take


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_ten_thousand_rows_take_little_more_memory_than_their_body(shared: Service, form: str) -> None:
    rng = np.random.default_rng(0)
    D = rng.random((64, 768), np.float32) * (rng.random((64, 768)) < 0.3)
    A = rng.random((10_000, 64), np.float32) @ D
    assert shared.client.put("/dictionaries/a", content=npy(D)).status_code == 201
    content = npy(A) if form == "npy" else save({"data": A})
    shared.client.post("/encode?dictionary=a", content=npy(A[:10])).raise_for_status()
    rest = held_bytes("VmRSS", shared.pid)
    forget_peak(shared.pid)
    shared.client.post("/encode?dictionary=a", content=content).raise_for_status()
    assert held_bytes("VmHWM", shared.pid) - rest <= MOST_BODIES * len(content)


MIB = 1024 * 1024
BOUND = 8 * MIB
ROWS = npy(np.ones((3 * MIB // 16, 4), np.float32))  # 3 MiB


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environment = {"DICTSERVE_BODIES_BYTES": str(BOUND), "DICTSERVE_LOG_LEVEL": "warning"}
    service = Service(tmp_path_factory.mktemp("bounded") / "models", **environment).start()
    D = np.eye(2, 4, dtype=np.float32)
    assert service.client.put("/dictionaries/a", content=npy(D)).status_code == 201
    yield service
    assert service.stop() == 0


def begun(service: Service, declared: int, sent: bytes = b"", dictionary: str = "a") -> socket.socket:
    """A connection on which an encode's body has begun to come."""
    connection = socket.create_connection(("127.0.0.1", service.port))
    connection.settimeout(10)
    told = f"Content-Length: {declared}" if declared else "Transfer-Encoding: chunked"
    head = f"POST /encode?dictionary={dictionary} HTTP/1.1\r\nHost: x\r\n{told}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def held(service: Service, what: str = "bodies") -> int:
    """What the service counts of them in memory."""
    return int(figures(service.client)[f"dictserve_{what}_bytes",])


def until_held(service: Service, least: int, most: int, what: str = "bodies") -> None:
    until(lambda: least <= held(service, what) <= most, told=lambda: held(service, what))


def encoded(service: Service, rows: bytes) -> int:
    return service.client.post("/encode?dictionary=a", content=rows).status_code


def test_bodies_are_bounded_together_and_small_ones_go_on(bounded: Service) -> None:
    """Each was bounded by itself: fifty clients could fill the memory."""
    small = npy(np.ones((10, 4), np.float32))
    with ExitStack() as stack:
        slow = [stack.enter_context(begun(bounded, len(ROWS), ROWS[:-100])) for _ in range(2)]
        until_held(bounded, 5 * MIB, 6 * MIB)
        by_its_length = rest_of(stack.enter_context(begun(bounded, len(ROWS), ROWS[:100])))
        assert read(by_its_length).status == 503
        unknown = stack.enter_context(begun(bounded, 0))
        unknown.sendall(b"%x\r\n" % len(ROWS) + ROWS[:-100])
        refusal = read(rest_of(unknown))
        assert (refusal.status, json.loads(refusal.body)["type"]) == (503, "overloaded")
        assert int(refusal.headers["retry-after"]) > 0
        assert refusal.headers["connection"] == "close"
        assert encoded(bounded, ROWS) == 503
        assert [encoded(bounded, small) for _ in range(20)] == 20 * [200]
        for connection in slow:  # those that were there come through
            connection.sendall(ROWS[-100:])
            assert connection.recv(12) == b"HTTP/1.1 200"
    until_held(bounded, 0, 0)
    assert encoded(bounded, ROWS) == 200


def test_room_is_given_back_whatever_becomes_of_a_body(bounded: Service) -> None:
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(begun(bounded, len(ROWS), ROWS[:-100]))
            until_held(bounded, 5 * MIB, 6 * MIB)
        until_held(bounded, 0, 0)  # the clients have left
        wrong = ROWS[:-100] + 25 * np.float32(-1).tobytes()
        assert encoded(bounded, wrong) == 422
        assert bounded.client.post("/encode?dictionary=none", content=ROWS).status_code == 404
        assert encoded(bounded, ROWS + bytes(BOUND)) == 413
        assert held(bounded) == 0
    assert encoded(bounded, ROWS) == 200


def test_a_compressed_body_takes_what_it_holds(bounded: Service) -> None:
    body = gzip.compress(bytes(3 * MIB))
    told = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": "20"}

    def infer() -> httpx.Response:
        return bounded.client.post("/v2/models/a/infer", content=body, headers=told)

    assert infer().status_code == 400
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(begun(bounded, len(ROWS), ROWS[:-100]))
        until_held(bounded, 5 * MIB, 6 * MIB)
        assert infer().status_code == 503
    until_held(bounded, 0, 0)


def test_answers_that_are_being_read_are_bounded_together(bounded: Service) -> None:
    """Who read slowly kept an answer of any size, a little body's, in memory; and so could many."""
    wide = npy(np.eye(64, 4, dtype=np.float32))
    assert bounded.client.put("/dictionaries/wide", content=wide).status_code == 201
    rows = npy(np.ones((60_000, 4), np.float32))  # 15 MB of codes, more than the system's buffers take
    small = npy(np.ones((10, 4), np.float32))
    with begun(bounded, len(rows), rows, dictionary="wide") as slow:
        until_held(bounded, 14_000_000, 16_000_000, "answers")
        until_held(bounded, 0, 0)  # once it is written
        for _ in range(3):
            answer = bounded.client.post("/encode?dictionary=wide", content=rows)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert encoded(bounded, small) == 200
        received = 0
        while received < 15_000_000:
            received += len(slow.recv(1_000_000))
    until_held(bounded, 0, 0, "answers")
    assert bounded.client.post("/encode?dictionary=wide", content=rows).status_code == 200
    assert bounded.client.delete("/dictionaries/wide").status_code == 204


def test_a_length_that_is_told_takes_no_memory(bounded: Service) -> None:
    """So much was set aside, and written to, before anything had come: of headers alone, 64 MiB a connection."""
    rest = held_bytes("VmRSS", bounded.pid)
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(begun(bounded, BOUND, ROWS[:100]))
        assert encoded(bounded, ROWS) == 200
        assert held_bytes("VmRSS", bounded.pid) - rest < 10 * BOUND  # of the 50 that are told
        assert held(bounded) == 0


def test_a_body_that_is_inflated_for_who_has_left_takes_no_room(shared: Service) -> None:
    """A few such requests left room for nobody, until the next start."""
    inflating = request("POST", "/v2/models/a/infer", gzip.compress(b" " * (128 * MIB)), content_encoding="gzip")
    seen = 0
    for pause in (0.02, 0.04, 0.06, 0.1):
        with socket.create_connection(("127.0.0.1", shared.port)) as connection:
            connection.sendall(inflating)
            time.sleep(pause)
            seen = max(seen, held(shared))
    assert seen > 0
    until_held(shared, 0, 0)
    time.sleep(0.5)
    assert held(shared) == 0
