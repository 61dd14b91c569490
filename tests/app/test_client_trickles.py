"""Services that answer a little at a time, over sockets: no call takes longer than it may."""

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from app.client import AsyncClient, Client, ClientClosed, DictserveError, StillRunning, TimedOut, calls, following
from app.client.bodies import Held
from app.client.retries import Policy
from tests.waiting import SOON_SECONDS

JOB = {"id": "1", "name": "x", "state": "running", "progress": {}}
Answering = Callable[[socket.socket, str], None]


@contextlib.contextmanager
def serving(answer: Answering) -> Iterator[str]:
    """The URL of a service that has ``answer`` for each connection, with what it was asked first."""

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection, head_of(connection))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that waits in accept


def head_of(connection: socket.socket) -> str:
    """Of the next request, which has no body."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (more := connection.recv(65536)):
            raise ConnectionError("the caller has left")
        head += more
    return head.decode("latin-1")


def json_answer(told: object) -> bytes:
    body = json.dumps(told).encode()
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


GOOD = b"HTTP/1.1 200 OK\r\n"
TRICKLES = {
    "header lines": (GOOD, b"x-%d: y\r\n"),
    "of one header": (GOOD + b"x: ", b"%d"),
    "before the answer": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: <%d>\r\n\r\n"),
    "an extension of a chunk": (GOOD + b"transfer-encoding: chunked\r\n\r\n1;", b"%d"),
    "a body that comes to nothing yet": (  # the name of a file that was packed
        GOOD + b"content-encoding: gzip\r\ncontent-length: 10000\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\3",
        b"%d",
    ),
    "a body": (GOOD + b"content-length: 10000\r\n\r\n", b"%d"),
}


def trickling(first: bytes, then: bytes) -> Answering:
    def answer(connection: socket.socket, _: str) -> None:
        connection.sendall(first)
        for number in itertools.count():
            connection.sendall(then % number)
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize("trickle", TRICKLES.values(), ids=TRICKLES)
def test_a_trickle_is_given_up_in_time(trickle: tuple[bytes, bytes]) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, timeout=0.5) as client:
            await client.dictionaries()

    with serving(trickling(*trickle)) as url:
        for ask_it in (Client(url, timeout=0.5).dictionaries, lambda: asyncio.run(ask(url))):
            begun = time.monotonic()
            with pytest.raises(TimedOut):
                ask_it()
            assert 0.4 < time.monotonic() - begun < SOON_SECONDS


@pytest.mark.parametrize("then", [b"x-%d: y\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: <%d>\r\n\r\n"])
@pytest.mark.parametrize("quiet_seconds", [40.0, 0.2])
def test_a_wait_for_a_job_whose_events_trickle_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, then: bytes, quiet_seconds: float
) -> None:
    monkeypatch.setattr(following, "QUIET_SECONDS", quiet_seconds)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.1)

    def answer(connection: socket.socket, asked: str) -> None:
        while "/events" not in asked:
            connection.sendall(json_answer(JOB))
            asked = head_of(connection)
        trickling(GOOD if then.startswith(b"x") else b"", then)(connection, asked)

    async def wait(url: str) -> None:
        async with AsyncClient(url) as client:
            await (await client.job("1")).wait(timeout=0.7)

    with serving(answer) as url:
        for wait_for_it in (lambda: Client(url).job("1").wait(timeout=0.7), lambda: asyncio.run(wait(url))):
            begun = time.monotonic()
            with pytest.raises(StillRunning):
                wait_for_it()
            assert 0.6 < time.monotonic() - begun < SOON_SECONDS


@pytest.mark.parametrize("asynchronous", [False, True])
def test_who_takes_their_time_over_events_loses_none(monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    """What the service is given to say something does not run while it is not listened to."""
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.7)
    asked_for = []

    def answer(connection: socket.socket, asked: str) -> None:
        while "/events" not in asked:
            connection.sendall(json_answer(JOB))
            asked = head_of(connection)
        asked_for.append(asked)
        connection.sendall(GOOD + b"content-type: text/event-stream\r\n\r\n")
        for iteration in range(1, 4):
            connection.sendall(b'event: progress\ndata: {"iteration": %d}\n\n' % iteration)
            time.sleep(0.1)
        connection.sendall(b'event: end\ndata: {"state": "succeeded", "version": 1}\n\n')

    async def followed(url: str) -> list[int]:
        found = []
        async with AsyncClient(url) as client:
            async for progress in (await client.job("1")).events():
                found.append(progress.iteration)
                time.sleep(0.9)  # noqa: ASYNC251 - the loop is held up, too
        return found

    def followed_blocking(url: str) -> list[int]:
        found = []
        for progress in Client(url).job("1").events():
            found.append(progress.iteration)
            time.sleep(0.9)
        return found

    with serving(answer) as url:
        found = asyncio.run(followed(url)) if asynchronous else followed_blocking(url)
    assert found == [1, 2, 3]
    assert len(asked_for) == 1


def test_a_body_that_is_taken_in_slowly_is_given_up_in_time() -> None:
    def answer(connection: socket.socket, _: str) -> None:
        while connection.recv(4096):
            time.sleep(0.05)

    async def encode(url: str, A: np.ndarray) -> None:
        async with AsyncClient(url, timeout=0.5) as client:
            await client.encode(A, "x")

    A = np.ones((4000, 1000))  # 32 MB: more than the system takes in for a service
    with serving(answer) as url:
        for send in (lambda: Client(url, timeout=0.5).encode(A, "x"), lambda: asyncio.run(encode(url, A))):
            begun = time.monotonic()
            with pytest.raises(TimedOut):
                send()
            assert time.monotonic() - begun < SOON_SECONDS


def test_each_call_of_many_threads_has_its_own_time() -> None:
    """And the connection of one that was in time serves the next, whose time is another."""
    connections = []

    def answer(connection: socket.socket, _: str) -> None:
        connections.append(connection)
        while True:
            time.sleep(0.6)
            connection.sendall(json_answer(JOB))
            head_of(connection)

    def ask(timeout: float) -> type:
        try:
            client.send(calls.job("1"), Policy(retries=0, timeout_seconds=timeout))
        except DictserveError as error:
            return type(error)
        return dict

    with serving(answer) as url, Client(url) as client, ThreadPoolExecutor(6) as threads:
        times = [0.2, 5.0, 0.3, 9.0, 0.2, 20.0]
        assert list(threads.map(ask, times)) == [dict if seconds > 0.6 else TimedOut for seconds in times]
        assert len(connections) == 6
        assert [ask(seconds) for seconds in (5.0, 9.0, 0.2)] == [dict, dict, TimedOut]
        assert len(connections) == 6


def test_calls_that_are_under_way_when_their_client_is_closed_say_so() -> None:
    """They went on waiting for as long as they may."""
    asked = threading.Semaphore(0)

    def answer(connection: socket.socket, _: str) -> None:
        asked.release()
        connection.recv(1)

    with serving(answer) as url, ThreadPoolExecutor(8) as threads:
        client = Client(url, timeout=60)
        under_way = [threads.submit(call) for call in (client.dictionaries, lambda: client.remove("x")) * 4]
        for _ in under_way:
            assert asked.acquire(timeout=SOON_SECONDS)
        client.close()
        for call in under_way:
            assert isinstance(call.exception(timeout=SOON_SECONDS), ClientClosed)


def test_time_without_end_is_such() -> None:
    """It was an OverflowError of the socket's."""
    with serving(lambda connection, _: connection.sendall(json_answer(JOB))) as url:
        assert Client(url, timeout=float("inf")).job("1").id == "1"

        async def ask() -> str:
            async with AsyncClient(url, timeout=float("inf")) as client:
                return (await client.job("1")).id

        assert asyncio.run(ask()) == "1"


def test_who_gives_a_call_up_is_told_nothing_else() -> None:
    """A timeout around it is the caller's, a cancellation stays one, and so does what a disk says."""

    class Away(Held):
        def chunks(self) -> Iterator[bytes]:
            raise TimeoutError("the disk is away")
            yield b""

    async def run(url: str) -> None:
        async with AsyncClient(url, timeout=20) as client:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.2):
                    await client.dictionaries()
            assert not isinstance(caught.value, DictserveError)
            asked = asyncio.create_task(client.dictionaries())
            await asyncio.sleep(0.2)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            with pytest.raises(TimeoutError, match="the disk is away") as of_disk:
                await client.encode(Away("text/csv", (b"1\n",)), "x")
            assert not isinstance(of_disk.value, DictserveError)

    with serving(trickling(*TRICKLES["header lines"])) as url:
        asyncio.run(run(url))


def test_nothing_is_asked_for_that_has_to_be_unpacked() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["accept-encoding"])
        return httpx.Response(200, json=JOB)

    with Client(transport=httpx.MockTransport(answer)) as client:
        client.job("1")
    assert asked == ["identity"]
