"""Answers that leave in one write, on a transport's double: the bytes are those of two, and a connection goes on."""

import asyncio
import json
import math
import re
import socket
from collections.abc import Callable

import numpy as np
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from app import logs
from app.http import protocol as http_protocol
from app.http.protocol import LOOK_SECONDS, BoundedProtocol, bounded
from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from demo.service import npy
from tests.app.conftest import D, WorkerDouble, publish

BODY = npy(np.ones((2, 4), np.float32))
CODES = np.ones((2, 4), np.float32) @ D.T


def request(
    version: str = "1.1", path: str = "/encode?dictionary=digits", body: bytes = BODY, more: str = ""
) -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nX-Request-ID: r\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Transport(asyncio.Transport):
    """Remembers what is written to it; its socket is there to be looked at alone."""

    def __init__(self, of: socket.socket) -> None:
        super().__init__({"socket": of})
        self.written: list[bytes] = []
        self.closed = False
        self.ended = False  # this side of it

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def served(
    settings: Settings,
    sent: list[bytes],
    answers: int,
    kept: list[int] | None = None,
    *,
    fits_hang: bool = False,
    then: Callable[[BoundedProtocol, socket.socket], None] | None = None,
) -> Transport:
    """What a connection to the app was written, once it has had so many answers to what it sent; in ``kept`` comes
    how many headers it held after each piece. ``then`` is given the connection, and its client's socket."""

    async def run(ours: socket.socket, theirs: socket.socket) -> Transport:
        worker = WorkerDouble(settings)
        worker.fits_hang = fits_hang
        app = create_app(settings, supervisor=worker)
        async with app.router.lifespan_context(app):
            publish(app.state.services.store, "digits", D)
            protocol = bounded(settings, app.state.metrics.observe_unserved)
            config = Config(app, http=protocol, log_config=None, server_header=False)
            config.load()
            state, transport = ServerState(), Transport(ours)
            state.default_headers = [(b"date", b"today")]
            connection = config.http_protocol_class(config=config, server_state=state, app_state={})
            connection.connection_made(transport)
            for data in sent:
                connection.data_received(data)
                if kept is not None:
                    kept.append(len(connection.headers))
                await asyncio.sleep(0.01 if len(sent) < 100 else 0)  # in which what is whole is answered
            async with asyncio.timeout(10):
                while state.total_requests < answers:  # noqa: ASYNC110 - uvicorn counts, and tells nobody
                    await asyncio.sleep(0.01)
            if then is not None:
                then(connection, theirs)
            closed = transport.closed
            connection.connection_lost(None)  # which closes it, too
            transport.closed = closed
        return transport

    ours, theirs = socket.socketpair()
    with ours, theirs:
        return asyncio.run(run(ours, theirs))


def read(answer: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    assert int(headers[b"content-length"]) == len(body)
    return status, headers, body


def test_each_answer_is_one_write(settings: Settings) -> None:
    transport = served(settings, [request() + request(), request()[:150], request()[150:]], 3)
    assert len(transport.written) == 3
    for answer in transport.written:
        status, headers, body = read(answer)
        assert status == b"HTTP/1.1 200 OK"
        assert body == npy(CODES)
        assert headers.pop(b"content-length")
        assert headers == {
            b"date": b"today",
            b"dictserve-dictionary": b"digits",
            b"dictserve-version": b"1",
            b"dictserve-converged": b"true",
            b"content-type": b"application/x-npy",
            b"x-request-id": b"r",
        }


@pytest.mark.parametrize(("version", "more"), [("1.0", ""), ("1.1", "Connection: close\r\n")])
def test_a_connection_that_is_not_to_be_kept(settings: Settings, version: str, more: str) -> None:
    transport = served(settings, [request(version, more=more)], 1)
    (answer,) = transport.written
    assert read(answer)[1][b"connection"] == b"close"
    assert transport.closed


def test_a_client_that_asks_before_it_sends_its_body(settings: Settings) -> None:
    whole = request(more="Expect: 100-continue\r\n")
    transport = served(settings, [whole[: -len(BODY)], BODY], 1)
    assert transport.written[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert read(transport.written[1])[2] == npy(CODES)


def test_an_old_client_is_told_of_no_hundred_and_no_other_protocol(settings: Settings) -> None:
    """Both must be ignored in a request of HTTP/1.0 (RFC 9110, 7.8 and 10.1.1)."""
    for more in ("Expect: 100-continue\r\n", "Connection: Upgrade\r\nUpgrade: h2c\r\n"):
        transport = served(settings, [request("1.0", more=more)], 1)
        (answer,) = transport.written
        assert read(answer)[2] == npy(CODES)
        assert transport.closed


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("1.1", "Transfer-Encoding: gzip, chunked"),
        ("1.1", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
        ("1.0", "Transfer-Encoding: chunked"),
    ],
)
def test_what_is_not_in_chunks_alone_is_not_read_as_if(settings: Settings, version: str, told: str) -> None:
    head = f"POST /encode?dictionary=digits HTTP/{version}\r\nHost: x\r\n{told}\r\n\r\n".encode()
    (answer,) = served(settings, [head + b"4\r\n[[1]\r\n0\r\n\r\n"], 0).written
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Content-Encoding says how" in answer


@pytest.mark.parametrize("hosts", ["", "Host: x\r\nHost: y\r\n"])
def test_a_request_has_one_host(settings: Settings, hosts: str) -> None:
    (answer,) = served(settings, [f"GET /livez HTTP/1.1\r\n{hosts}\r\n".encode()], 0).written
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"one header Host" in answer
    old = served(settings, [b"GET /livez HTTP/1.0\r\n\r\n"], 1)  # which knew of none
    assert old.written[0].startswith(b"HTTP/1.1 200 ")


def test_half_a_request_behind_an_answer_has_the_time_of_headers(settings: Settings) -> None:
    settings = settings.model_copy(update={"header_seconds": 0.1})
    for sent in ([request() + b"GET /livez HT"], [request(), b"GET /livez HT"]):
        transport = served(settings, [*sent, *[b""] * 80], 1)
        assert [answer[:12] for answer in transport.written] == [b"HTTP/1.1 200", b"HTTP/1.1 408"]


@pytest.fixture
def impatient(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """With a line for each request; who sends `NOTHING` for so long is too slow."""
    monkeypatch.setattr(http_protocol, "LOOK_SECONDS", 0.02)
    return settings.model_copy(update={"header_seconds": 0.1, "transfer_seconds": 0.1, "access_log": True})


NOTHING = [b""] * 30
LARGE = "A: " + 70_000 * "x" + "\r\n"  # more than headers may have


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab",
    ],
    ids=["refused", "served"],
)
def test_a_request_has_one_answer_though_its_body_never_comes(impatient: Settings, sent: bytes) -> None:
    """A proxy would take the second for that to the next request."""
    transport = served(impatient, [sent, *NOTHING], 1)
    assert b"".join(transport.written).count(b"HTTP/1.1 ") == 1
    assert transport.closed


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"GET /v2 HTTP/1.1\r\nHost: x\r\n{LARGE}\r\n".encode(), 431),
        (b"GET /v2/models/digits HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2/models/digits HTTP/1.1\r\nHo", 408),
        (request(path="/v2/models/digits/infer")[:-1], 408),
    ],
    ids=["large headers", "no host", "headers without an end", "a body without an end"],
)
def test_refusals_of_the_inference_protocol_have_its_form(impatient: Settings, sent: bytes, status: int) -> None:
    (answer,) = served(impatient, [sent, *NOTHING], 0).written
    line, headers, body = read(answer)
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert headers[b"content-type"] == b"application/json"
    assert list(json.loads(body)) == ["error"]


def test_refusals_of_a_head_have_no_body(impatient: Settings) -> None:
    transport = served(impatient, [f"HEAD /livez HTTP/1.1\r\nHost: x\r\n{LARGE}\r\n".encode(), *NOTHING], 0)
    head, _, body = b"".join(transport.written).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"content-length" in head.lower()
    assert body == b""


# id: (what is sent, status, method and path as far as they are known)
REFUSED: dict[str, tuple[list[bytes], int, str, str]] = {
    "large headers": (
        [f"GET /jobs?limit=1 HTTP/1.1\r\nX-Request-ID: r\r\n{LARGE}\r\n".encode()],
        431,
        "GET",
        "/jobs",
    ),
    "no host": ([b"GET /jobs HTTP/1.1\r\nX-Request-ID: r\r\n\r\n"], 400, "GET", "/jobs"),
    "no host, and another behind it": (
        [b"DELETE /a%20b HTTP/1.1\r\nX-Request-ID: r\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"],
        400,
        "DELETE",
        "/a b",
    ),
    "a body without an end": ([request()[:-1], *NOTHING], 408, "POST", "/encode"),
    "headers without an end": ([b"GET /livez HTTP/1.1\r\nX-Request-ID: r\r\nHo", *NOTHING], 408, "GET", "/livez"),
    "a line without an end": ([b"GE", *NOTHING], 408, "other", ""),
    "no request": ([b"garbage\r\n\r\n"], 400, "other", ""),
}


@pytest.mark.parametrize("answered", [0, 1], ids=["first", "after another"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_each_refusal_has_an_id_and_a_line(
    impatient: Settings,
    capsys: pytest.CaptureFixture[str],
    case: tuple[list[bytes], int, str, str],
    answered: int,
) -> None:
    logs.configure("json", "info")
    (begun, *more), status, method, path = case
    before = b"GET /readyz HTTP/1.1\r\nHost: x\r\nX-Request-ID: before\r\n\r\n" * answered
    transport = served(impatient, [before + begun, *more], answered)
    line, headers, _ = read(transport.written[-1])
    assert line.startswith(b"HTTP/1.1 %d " % status)
    id = headers[b"x-request-id"].decode()
    assert id == "r" if b"X-Request-ID: r" in begun else re.fullmatch("[0-9a-f]{16}", id)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (told,) = [line for line in lines if line["event"] == "request" and line["status"] == str(status)]
    assert (told["request_id"], told["method"], told["path"]) == (id, method, path)


@pytest.mark.parametrize("length", [len(BODY), 1_000_000])
def test_one_request_too_many_is_answered_as_others_are(
    impatient: Settings, capsys: pytest.CaptureFixture[str], length: int
) -> None:
    logs.configure("json", "info")
    settings = impatient.model_copy(update={"max_connections": 0})
    sent = request().replace(str(len(BODY)).encode(), str(length).encode())
    answer = b"".join(served(settings, [sent], 1).written)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.count(b"connection: close") == 1
    assert b"\r\nx-request-id: r\r\n" in answer
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["request_id"], line["status"]) for line in lines if line.get("path") == "/encode"] == [("r", "503")]


def test_one_connection_too_many_is_told_with_an_id(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "SPARE_CONNECTIONS", 0)
    transport = served(settings.model_copy(update={"max_connections": 0}), [], 0)
    line, headers, body = read(b"".join(transport.written))
    assert line == b"HTTP/1.1 503 Service Unavailable"
    assert (headers[b"retry-after"], headers[b"connection"]) == (b"1", b"close")
    assert headers[b"x-request-id"]
    assert json.loads(body)["type"] == "too-many-connections"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("CONNECT localhost:80 HTTP/1.1", "CONNECT asks a proxy for a tunnel, and this is none"),
        ("FOO /livez HTTP/1.1", "begins with its method; there are DELETE, GET, HEAD, PATCH, POST, PUT"),
        ("GET /livez HTTP/9.9", "this is not a request of HTTP/1.1"),
        ("GET http://localhost HTTP/1.1", "its target is no path"),
        ("GET http://localhost?x HTTP/1.1", "its target is no path"),
        ("GET http://a:99999/livez HTTP/1.1", "its target is no path"),
        ("GET http:///livez HTTP/1.1", "its target is no path"),
    ],
)
def test_what_is_not_read_is_told_why(settings: Settings, line: str, told: str) -> None:
    (answer,) = served(settings, [f"{line}\r\nHost: x\r\n\r\n".encode()], 0).written
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert told in json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


@pytest.mark.parametrize(
    ("path", "type", "limits"),
    [
        ("/encode", "application/json", {"max_json_bytes": 1000}),
        ("/encode?dictionary=digits", "text/csv", {"bodies_bytes": 1000}),
        ("/encode?dictionary=digits", "", {"bodies_bytes": 1000}),
        ("/fit", "application/json", {"max_json_bytes": 1000}),
        ("/fit?name=a&nb_concepts=1", "text/csv", {"max_body_bytes": 1000}),
    ],
)
def test_a_length_over_the_limit_is_told_before_the_body_is_asked_for(
    settings: Settings, path: str, type: str, limits: dict[str, int]
) -> None:
    more = f"Expect: 100-continue\r\nContent-Type: {type}\r\n"
    sent = request(path=path, body=bytes(2000), more=more)[:-2000]
    answer = b"".join(served(settings.model_copy(update=limits), [sent], 1).written)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("piece", [1, 40, 10_000])
def test_a_request_that_asks_for_another_protocol_is_served_in_this_one(
    settings: Settings, protocol: str, piece: int
) -> None:
    """Java's client asks so by itself; its body is not to be lost, nor taken for a request."""
    asks = (
        f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
    )
    sent = request(more=asks) + request() + request(more="Connection: close\r\n")
    pieces = [sent[start : start + piece] for start in range(0, len(sent), piece)]
    transport = served(settings, pieces, 3)
    assert [read(answer)[2] for answer in transport.written] == 3 * [npy(CODES)]
    assert transport.closed


CHUNKED = b"POST /encode?dictionary=digits HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
IN_CHUNKS = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n"
LINES = 100 * [1000 * b"A: 12345678901234567890\r\n"]
ONE_LINE = [b"A: ", *(100 * [10_000 * b"x"])]


def test_trailers_are_read_and_passed_over(settings: Settings) -> None:
    transport = served(settings, [IN_CHUNKS + b"Content-Type: text/csv\r\n\r\n" + request()], 2)
    assert [read(answer)[2] for answer in transport.written] == 2 * [npy(CODES)]


@pytest.mark.parametrize("endless", [LINES, ONE_LINE], ids=["lines", "one line"])
def test_trailers_without_an_end_are_refused(settings: Settings, endless: list[bytes]) -> None:
    """All that came of them was kept."""
    transport = served(settings, [IN_CHUNKS, *endless], 0)
    assert transport.written[0].startswith(b"HTTP/1.1 431 ")
    assert transport.closed


@pytest.mark.parametrize("endless", [LINES, ONE_LINE], ids=["lines", "one line"])
def test_headers_without_an_end_after_a_request_are_refused_after_its_answer(
    settings: Settings, endless: list[bytes]
) -> None:
    """It may have to wait long for its answer, and what came meanwhile was kept."""
    fit = request(path="/fit?name=a&nb_concepts=2", more="Prefer: wait=1\r\n")
    sent = [fit + b"GET /livez HTTP/1.1\r\nHost: x\r\n", *endless]
    kept: list[int] = []
    transport = served(settings, sent, 1, kept, fits_hang=True)
    answer = b"".join(transport.written)
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert b"HTTP/1.1 431 " in answer
    assert transport.closed
    assert max(kept) < 10_000


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("garbage", [b"garbage\r\n\r\n", b"GET http://localhost HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_what_follows_a_request_is_refused_after_its_answer(settings: Settings, apart: bool, garbage: bytes) -> None:
    sent = [request() + request(), garbage, request()]
    transport = served(settings, sent if apart else [b"".join(sent)], 2)
    first, second, refusal = transport.written
    assert read(first)[2] == read(second)[2] == npy(CODES)
    assert refusal.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(refusal.partition(b"\r\n\r\n")[2])["type"] == "malformed-request"
    assert transport.closed


def test_an_old_client_is_sent_no_chunks(settings: Settings) -> None:
    fit = request("1.0", "/fit?name=a&nb_concepts=2&max_iter=1", npy(np.ones((3, 4), np.float32)))
    transport = served(settings, [fit], 1)
    id = json.loads(read(b"".join(transport.written))[2])["id"]
    for path in ("/dictionaries", f"/jobs/{id}/events"):  # the latter of no length that is known
        transport = served(settings, [f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode()], 1)
        head, _, body = b"".join(transport.written).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"chunked" not in head
        assert body.startswith(b"{" if path == "/dictionaries" else b"event: ")
        assert (b"content-length" in head) == (path == "/dictionaries")
        assert transport.closed


def test_blanks_around_a_value_are_none_of_it(settings: Settings) -> None:
    answer = served(settings, [b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: \t r1 \t \r\n\r\n"], 1).written
    assert b"\r\nx-request-id: r1\r\n" in b"".join(answer)


def test_a_body_that_breaks_off_behind_a_request_is_refused_after_its_answer(settings: Settings) -> None:
    """Its refusal was the answer to that request."""
    head = b"POST /encode?dictionary=digits HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    broken = head + b"2\r\nab\r\nzz\r\n"
    transport = served(settings, [request() + broken], 1)
    answer, refusal = transport.written
    assert read(answer)[2] == npy(CODES)
    assert refusal.startswith(b"HTTP/1.1 400 Bad Request")
    assert transport.closed


def test_large_answers_and_problems_are_written_as_they_were(settings: Settings) -> None:
    large = np.ones((50_000, 4), np.float32)
    transport = served(settings, [request(body=npy(large)), request(path="/encode?dictionary=none")], 2)
    status, _, body = read(b"".join(transport.written[:-2]))
    assert (status, body) == (b"HTTP/1.1 200 OK", npy(large @ D.T))
    status, headers, body = read(b"".join(transport.written[-2:]))
    assert (status, headers[b"x-request-id"]) == (b"HTTP/1.1 404 Not Found", b"r")
    assert json.loads(body)["type"] == "unknown-dictionary"


@pytest.fixture
def full(settings: Settings) -> Settings:
    """With room for one fit, which nobody runs."""
    return settings.model_copy(update={"fits": False, "queue_jobs": 1})


def test_a_connection_goes_on_after_a_fault_of_the_service(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The framework told of it and raised it all the same, which closed the connection without a word."""

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Store, "names", broken)
    transport = served(settings, [b"GET /dictionaries HTTP/1.1\r\nHost: x\r\n\r\n", request()], 2)
    first, second = b"".join(transport.written).split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3]) == (b"500", b"200")
    assert not transport.closed
    assert [record.message for record in caplog.records if record.exc_info] == ["unexpected error"]


FIT = "/fit?name=a&nb_concepts=1"


@pytest.mark.parametrize(
    "told",
    [
        "Content-Length: 1000000000\r\n",
        "Content-Length: 20\r\nExpect: 100-continue\r\n",
        "Transfer-Encoding: chunked\r\n",
    ],
    ids=["long", "asks before it sends", "of unknown length"],
)
def test_a_full_queue_is_told_before_the_body_has_come(full: Settings, told: str) -> None:
    begun = f"POST {FIT} HTTP/1.1\r\nHost: x\r\n{told}\r\n".encode()
    transport = served(full, [request(path=FIT), begun], 2)
    accepted, refused = b"".join(transport.written).split(b"HTTP/1.1 ")[1:]
    assert accepted.startswith(b"202")
    status, headers, body = read(refused)
    assert (status, headers[b"connection"]) == (b"503 Service Unavailable", b"close")
    assert int(headers[b"retry-after"]) > 0
    assert json.loads(body)["type"] == "overloaded"
    assert (transport.ended, transport.closed) == (True, False)  # which would reset it under who still sends


def test_what_comes_after_a_refusal_is_thrown_away(full: Settings) -> None:
    begun = f"POST {FIT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n".encode()
    transport = served(full, [request(path=FIT), begun, *[request(path=FIT)] * 50], 2)
    assert b"".join(transport.written).count(b"HTTP/1.1 ") == 2


def test_a_connection_goes_on_after_the_refusal_of_a_small_body(full: Settings) -> None:
    small = request(path=FIT)
    transport = served(full, [small, small[: -len(BODY)], BODY + request(path="/fit")], 3)
    statuses = [answer[:3] for answer in b"".join(transport.written).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"202", b"503", b"503"]
    assert (transport.ended, transport.closed) == (False, False)


def looked_at_for(connection: BoundedProtocol, seconds: float) -> None:
    now = connection.loop.time()
    for look in range(1, math.ceil(seconds / LOOK_SECONDS)):
        connection.look(now + look * LOOK_SECONDS)


@pytest.mark.parametrize("is_taken", [True, False])
def test_time_in_which_a_body_is_not_taken_does_not_count(settings: Settings, is_taken: bool) -> None:
    """As where the disk is slow: its client can send no faster."""

    def then(connection: BoundedProtocol, client: socket.socket) -> None:
        connection.flow.read_paused = not is_taken
        looked_at_for(connection, 4 * settings.transfer_seconds)

    written = b"".join(served(settings, [request()[:-1]], 0, then=then).written)
    assert (b"HTTP/1.1 408 " in written) is is_taken


@pytest.mark.parametrize(("share", "is_cut_off"), [(2.0, False), (0.5, True), (0.0, True)])
def test_an_answer_may_be_read_at_the_least_rate(
    settings: Settings, share: float, is_cut_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes."""
    aborted = []

    def then(connection: BoundedProtocol, client: socket.socket) -> None:
        looks = int(4 * settings.transfer_seconds / LOOK_SECONDS)
        piece = int(share * settings.min_bytes_per_second * LOOK_SECONDS)
        left = iter([(looks + 1 - look) * piece + 1 for look in range(looks + 1)])
        with monkeypatch.context() as patched:
            patched.setattr(connection.transport, "get_write_buffer_size", lambda: next(left))
            patched.setattr(connection.transport, "abort", lambda: aborted.append(True))
            looked_at_for(connection, 4 * settings.transfer_seconds)

    served(settings, [request()], 1, then=then)
    assert bool(aborted) is is_cut_off


@pytest.mark.parametrize("has_come", [True, False])
def test_an_idle_connection_is_not_closed_on_a_request_that_has_come(settings: Settings, has_come: bool) -> None:
    """And was not read yet, as where the loop had much to do just then."""

    def then(connection: BoundedProtocol, client: socket.socket) -> None:
        if has_come:
            client.send(request())
        looked_at_for(connection, 2 * settings.keep_alive_seconds)

    assert served(settings, [request()], 1, then=then).closed is not has_come


@pytest.mark.parametrize("sent", [request(), request()[:30], request()[:-1]], ids=["idle", "headers", "body"])
def test_time_in_which_the_service_stands_still_does_not_count(settings: Settings, sent: bytes) -> None:
    def then(connection: BoundedProtocol, client: socket.socket) -> None:
        connection.look(connection.loop.time() + 3600)

    answers = int(sent == request())
    assert not served(settings, [sent], answers, then=then).closed
