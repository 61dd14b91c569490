"""Clients that send a little at a time, or never read: closed after the configured time, others served meanwhile."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import numpy as np
import pytest

from app.http.protocol import SPARE_CONNECTIONS
from demo.service import npy
from tests.e2e.conftest import Service
from tests.figures import figures
from tests.waiting import PATIENCE_SECONDS, SOON_SECONDS, until
from tests.wire import head, read, request, rest_of

MOST_CONNECTIONS = 40
BOUNDS = {
    "DICTSERVE_HEADER_SECONDS": "1",
    "DICTSERVE_TRANSFER_SECONDS": "1",
    "DICTSERVE_MIN_BYTES_PER_SECOND": "1000000",
    "DICTSERVE_MAX_CONNECTIONS": str(MOST_CONNECTIONS),
    "DICTSERVE_MAX_HEADER_BYTES": "8192",
    "DICTSERVE_KEEP_ALIVE_SECONDS": "2",
}
D = np.eye(4, 6, dtype=np.float32) + 0.1
BODY = npy(np.ones((1000, 6), np.float32))
HEAD = head("POST", "/encode?dictionary=d", len(BODY))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("bounded") / "models", **BOUNDS)
    # a connection that was idle for longer may be closed while a request is on its way on it
    service.client = httpx.Client(base_url=service.url, timeout=60, limits=httpx.Limits(keepalive_expiry=1))
    service.start()
    assert service.client.put("/dictionaries/d", content=npy(D)).status_code == 201
    yield service
    assert "Traceback" not in service.log.read_text()
    assert service.stop() == 0


@pytest.fixture(autouse=True)
def _next_request_is_served(service: Service) -> Iterator[None]:
    yield
    with httpx.Client(base_url=service.client.base_url) as client:  # theirs may have been closed
        until(lambda: client.get("/readyz").status_code == 200)  # a refused flood may still be closing
        assert client.post("/encode?dictionary=d", content=BODY).status_code == 200


def connected(service: Service) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port))
    connection.settimeout(10)
    return connection


def trickle(connection: socket.socket, data: bytes, pause: float = 0.1) -> float:
    """Send a byte at a time until the other side closes: after how many seconds it did."""
    begun = time.monotonic()
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause)
            connection.setblocking(False)
            try:
                if connection.recv(1, socket.MSG_PEEK) is not None:
                    break
            except BlockingIOError:
                pass
            finally:
                connection.settimeout(10)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return time.monotonic() - begun


def answer_of(connection: socket.socket) -> tuple[int, dict]:  # type: ignore[type-arg]
    """Status and problem of all that is there to read until the end."""
    answer = read(rest_of(connection))
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    return answer.status, json.loads(answer.body)


def trickle_until_reset(connection: socket.socket) -> float:
    """Send a byte at a time until the other side has closed: after how many seconds it had."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE_SECONDS:
        try:
            connection.sendall(b"x")
        except (BrokenPipeError, ConnectionResetError):
            break
        time.sleep(0.02)
    return time.monotonic() - begun


def served_once(connection: socket.socket) -> None:
    connection.sendall(request("GET", "/livez"))
    text = b""
    while not text.endswith(b"}"):  # head and body may come apart
        text += connection.recv(65536)
    assert text.startswith(b"HTTP/1.1 200")


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


def test_headers_a_byte_at_a_time(service: Service) -> None:
    for _ in range(3):
        with connected(service) as connection, suppress(ConnectionResetError):
            assert 0.9 < trickle(connection, HEAD * 2) < SOON_SECONDS
            status, problem = answer_of(connection)
            break  # else a byte crossed the answer on its way, for which the system takes that back
    assert (status, problem["type"]) == (408, "request-timeout")


def test_nothing_sent_at_all(service: Service) -> None:
    with connected(service) as connection:
        begun = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.9 < time.monotonic() - begun < SOON_SECONDS


def test_headers_of_a_second_request_a_byte_at_a_time(service: Service) -> None:
    with connected(service) as connection:
        served_once(connection)
        assert 0.9 < trickle(connection, HEAD * 2) < SOON_SECONDS
        assert answer_of(connection)[0] == 408


def test_an_idle_connection_is_closed(service: Service) -> None:
    with connected(service) as connection:
        served_once(connection)
        begun = time.monotonic()
        assert connection.recv(1) == b""
        assert 1.5 < time.monotonic() - begun < SOON_SECONDS


def test_a_refusal_reaches_who_goes_on_sending(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(head("POST", "/encode?dictionary=d", 10 << 30))
        for _ in range(100):  # more than the buffers of both sides
            connection.sendall(bytes(1 << 20))
        status, problem = answer_of(connection)
        assert (status, problem["type"]) == (413, "body-too-large")
        assert trickle_until_reset(connection) < SOON_SECONDS


@pytest.mark.parametrize("path", ["/encode?dictionary=d", "/fit?name=slow&nb_concepts=2"])
def test_a_body_that_stops_half_way(service: Service, path: str) -> None:
    with connected(service) as connection:
        begun = time.monotonic()
        connection.sendall(head("POST", path, len(BODY)) + BODY[: len(BODY) // 2])
        status, problem = answer_of(connection)
    assert (status, problem["type"]) == (408, "request-timeout")
    assert 0.9 < time.monotonic() - begun < SOON_SECONDS
    assert "bytes a second" in problem["detail"]
    until(lambda: not list((service.store / ".dictserve").glob("**/*.npy")))  # the answer comes first


def test_each_request_is_counted_once(service: Service) -> None:
    """One that is refused on its way, and one whose client leaves then."""

    def counted() -> dict[str, float]:
        return {
            " ".join(labels): count
            for (name, *labels), count in figures(service.client).items()
            if name == "dictserve_requests_total" and labels[1] in ("/encode", "/fit", "none")
        }

    before = counted()
    for path in ("/encode?dictionary=d", "/fit?name=a&nb_concepts=2"):
        begun = head("POST", path, len(BODY)) + BODY[:500]
        with connected(service) as refused:
            refused.sendall(begun)
            assert answer_of(refused)[0] == 408
        with connected(service) as left:
            left.sendall(begun)
            time.sleep(0.1)

    def more() -> dict[str, float]:
        now = counted()
        return {words: now[words] - before.get(words, 0) for words in now if now[words] != before.get(words, 0)}

    until(lambda: sum(more().values()) == 4, told=lambda: str(more()))
    assert more() == {"POST /encode 408": 1, "POST /encode gone": 1, "POST /fit 408": 1, "POST /fit gone": 1}


def test_a_body_a_byte_at_a_time(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(HEAD)
        assert 0.9 < trickle(connection, BODY) < SOON_SECONDS
        assert answer_of(connection)[0] == 408


def test_an_answer_that_is_never_read(service: Service) -> None:
    codes = npy(np.ones((1_000_000, 4), np.float32))
    with connected(service) as connection:
        connection.sendall(request("POST", "/decode?dictionary=d", codes))
        timed = "dictserve_request_seconds_count", "/decode"  # once it has been given up
        until(lambda: timed in figures(service.client))
        read = 0  # what lay in the kernel's buffers
        with suppress(ConnectionResetError):
            while data := connection.recv(1 << 20):
                read += len(data)
        assert read < 1_000_000 * D.shape[1] * 4


def test_a_large_body_at_an_honest_rate_takes_its_time(service: Service) -> None:
    body = npy(np.ones((170_000, 6), np.float32))  # 4 MB at 2 MB/s

    def seconds() -> float:
        return figures(service.client).get(("dictserve_request_seconds_sum", "/encode"), 0)

    before, begun = seconds(), time.monotonic()
    with connected(service) as connection:
        connection.sendall(head("POST", "/encode?dictionary=d", len(body)))
        for start in range(0, len(body), 200_000):
            connection.sendall(body[start : start + 200_000])
            time.sleep(0.1)
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert seconds() - before < (time.monotonic() - begun) / 2  # the rest is the client's


def test_time_in_which_the_service_stands_still_does_not_count(service: Service) -> None:
    """As on a machine that is paused, or moved to another: what its clients sent meanwhile is served."""
    whole = HEAD + BODY
    with ExitStack() as stack:
        idle, headers, body = (stack.enter_context(connected(service)) for _ in range(3))
        served_once(idle)
        headers.sendall(whole[:50])
        body.sendall(whole[:-500])
        time.sleep(0.2)  # in which that is read
        os.kill(service.pid, signal.SIGSTOP)
        time.sleep(3)
        for connection, rest in ((idle, whole), (headers, whole[50:]), (body, whole[-500:])):
            connection.sendall(rest)
        os.kill(service.pid, signal.SIGCONT)
        for connection in (idle, headers, body):
            assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("header", [b"X: " + b"x" * 10_000, b"\r\n".join(b"A%d: b" % i for i in range(2000))])
def test_headers_too_large(service: Service, header: bytes) -> None:
    with connected(service) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
        status, problem = answer_of(connection)
    assert (status, problem["type"]) == (431, "headers-too-large")
    assert "8192" in problem["detail"]


def test_a_path_too_long(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(request("GET", "/dictionaries/" + "x" * 10_000))
        assert answer_of(connection)[0] == 431


@pytest.mark.parametrize(
    "text", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n"]
)
def test_what_is_not_http(service: Service, text: bytes) -> None:
    with connected(service) as connection:
        connection.sendall(text)
        status, problem = answer_of(connection)
    assert (status, problem["type"]) == (400, "malformed-request")


@pytest.mark.parametrize(
    "lengths",
    [b"Content-Length: -5", b"Content-Length: 1e3", b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: "],
    ids=["negative", "no whole number", "two", "none"],
)
def test_a_length_that_is_none(service: Service, lengths: bytes) -> None:
    with connected(service) as connection:
        connection.sendall(b"POST /encode?dictionary=d HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n\r\n" + BODY)
        assert answer_of(connection)[0] == 400


@pytest.mark.parametrize("path", ["/encode?dictionary=d", "/fit?name=lied&nb_concepts=2"])
def test_a_length_less_than_the_body(service: Service, path: str) -> None:
    """What is declared is too little for an array, and what follows it is no request."""
    with connected(service) as connection:
        connection.sendall(head("POST", path, len(BODY) - 500) + BODY)
        first, second = rest_of(connection).split(b"HTTP/1.1 400 Bad Request\r\n")[1:]
    assert b'"type":"malformed-body"' in first
    assert b'"type":"malformed-request"' in second
    assert b"connection: close" in second.lower()
    assert service.client.get("/jobs").json()["jobs"] == []
    assert list((service.store / ".dictserve").glob("**/*.npy")) == []


def test_connections_at_rest_give_way_to_new_ones(service: Service) -> None:
    """Those at rest for longest; with that of the fixtures there are at first as many as may be."""
    with ExitStack() as stack:
        resting, busy = (
            [stack.enter_context(connected(service)) for _ in range(n)] for n in (12, MOST_CONNECTIONS - 13)
        )
        for connection in resting:
            served_once(connection)
        for wait in (0.6, 0.6, 0):
            for connection in busy:
                served_once(connection)
            time.sleep(wait)
        new = []
        for _ in range(10):
            new.append(stack.enter_context(connected(service)))
            served_once(new[-1])
        for connection in busy + new:
            served_once(connection)
        assert sum(is_closed(connection) for connection in resting) >= 9


def test_too_many_connections(service: Service) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connected(service)) for _ in range(MOST_CONNECTIONS + SPARE_CONNECTIONS + 21)]
        refused = 0
        for connection in held:
            connection.settimeout(0.2)
            try:
                told = connection.recv(65536)
            except TimeoutError:
                continue
            refused += told.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in told
        assert refused >= 20
    time.sleep(0.5)
    assert httpx.get(f"{service.url}/livez").status_code == 200


def test_probes_are_answered_where_too_many_connections_are_open(service: Service) -> None:
    service.client.close()  # its connection, too
    time.sleep(0.5)
    with ExitStack() as stack:
        held = [stack.enter_context(connected(service)) for _ in range(MOST_CONNECTIONS)]
        for connection in held:
            served_once(connection)
        prober = stack.enter_context(connected(service))
        for _ in range(3):
            served_once(prober)
        with httpx.Client(base_url=service.url) as client:
            refused = client.post("/encode?dictionary=d", content=BODY)
            assert (refused.status_code, refused.json()["type"]) == (503, "too-many-connections")
            assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
            assert client.get("/readyz").json()["status"] == "ready"
            told = figures(client)
        assert told["dictserve_requests_total", "POST", "none", "503"] > 0
        for connection in held:
            connection.close()
        time.sleep(0.5)
        prober.sendall(HEAD + BODY)  # there is room, so that it is a connection as any other
        assert prober.recv(65536).startswith(b"HTTP/1.1 200")


def test_connections_of_probes_make_no_room_for_others(service: Service) -> None:
    """One that rests, as Prometheus' does between two looks, gives way to another of probes alone."""
    service.client.close()
    time.sleep(0.5)
    with ExitStack() as stack:
        held = [stack.enter_context(connected(service)) for _ in range(MOST_CONNECTIONS)]
        probers: list[socket.socket] = []

        def go_on() -> None:
            """None of these rests."""
            for connection in held:
                served_once(connection)

        go_on()
        for _ in range(3):
            for _ in range(SPARE_CONNECTIONS // 2 + 2):
                probers.append(stack.enter_context(connected(service)))
                served_once(probers[-1])
            for _ in range(5):
                go_on()
                time.sleep(0.25)
            go_on()
            for _ in range(4):
                other = stack.enter_context(connected(service))
                other.sendall(request("GET", "/jobs"))
                assert answer_of(other)[0] == 503
        served_once(stack.enter_context(connected(service)))
        assert any(is_closed(prober) for prober in probers)
