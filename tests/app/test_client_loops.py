"""One `AsyncClient` in several event loops: connections belong to the loop that made them."""

import asyncio
import gc
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from app.client import AsyncClient, ClientClosed, Unreachable, loops
from app.client.loops import OfLoop


class Server(ThreadingHTTPServer):
    """Keeps connections; ``open`` are those that the client has not closed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.open: set[object] = set()
        self.made = 0
        self.closed = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def closes(self, left: Callable[[], bool]) -> bool:
        with self.closed:
            return self.closed.wait_for(left, 5)


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self)
        self.server.made += 1

    def finish(self) -> None:
        with self.server.closed:
            self.server.open.discard(self)
            self.server.closed.notify_all()
        super().finish()

    def do_GET(self) -> None:
        body = b'{"dictionaries": []}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # of loops that ended with theirs open
def test_one_loop_after_another(server: Server) -> None:
    """The second took up the first one's connection, and was told that its event loop is closed."""
    client = AsyncClient(server.url, timeout=10)

    async def twice() -> None:
        for _ in range(2):
            assert await client.dictionaries() == []

    for _ in range(3):
        asyncio.run(twice())
    assert server.made == 3  # each loop's calls share one
    assert len(client._loops._of_loops) == 1  # what has ended is not kept
    asyncio.run(client.aclose())
    gc.collect()
    assert server.closes(lambda: not server.open)


def test_loops_at_once(server: Server) -> None:
    client = AsyncClient(server.url, timeout=10)
    both = threading.Barrier(2, timeout=10)

    async def calls() -> None:
        for _ in range(5):
            both.wait()
            assert await client.dictionaries() == []
        both.wait()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(asyncio.run, calls()) for _ in range(2)]:
            done.result()
    assert server.made == 2


def test_another_thread_may_have_forgotten_a_loop_that_has_ended(server: Server) -> None:
    client = AsyncClient(server.url, timeout=10)
    known = client._loops._of_loops

    class Ended(asyncio.SelectorEventLoop):
        def is_closed(self) -> bool:
            known.pop((os.getpid(), self), None)
            return super().is_closed()

    (ended := Ended()).close()
    known[os.getpid(), ended] = OfLoop({})
    asyncio.run(client.dictionaries())
    assert len(known) == 1


def test_closing_closes_what_other_loops_have(server: Server) -> None:
    client = AsyncClient(server.url, timeout=10)
    is_there, goes_on = threading.Event(), threading.Event()

    async def stays() -> None:
        await client.dictionaries()
        is_there.set()
        await asyncio.to_thread(goes_on.wait, 10)
        with pytest.raises(ClientClosed):
            await client.dictionaries()

    async def closes() -> None:
        assert await client.dictionaries() == []
        await client.aclose()

    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(asyncio.run, stays())
        assert is_there.wait(10)
        asyncio.run(closes())
        assert server.made == 2
        assert server.closes(lambda: not server.open)
        goes_on.set()
        other.result()


def test_calls_that_are_cancelled_take_no_connection_with_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever each of them was at. A pool of httpcore's has no place left then, and no later call ever gets one."""
    monkeypatch.setattr(loops, "MAX_CONNECTIONS", 1)

    async def run() -> None:
        async with AsyncClient(server.url, timeout=10) as client:
            for steps in range(60):
                if steps % 2:
                    await client.dictionaries()  # so that the next call has a connection already
                call = asyncio.create_task(client.dictionaries())
                for _ in range(steps // 2):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
            assert await client.dictionaries() == []

    asyncio.run(run())
    assert server.closes(lambda: not server.open)


def test_a_connection_that_is_idle_is_closed_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "KEEP_ALIVE_SECONDS", 0.1)

    async def run() -> None:
        async with AsyncClient(server.url, timeout=10) as client:
            await asyncio.gather(*(client.dictionaries() for _ in range(5)))
            assert await asyncio.to_thread(server.closes, lambda: not server.open)

    asyncio.run(run())


def test_certificates_are_read_once(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    made = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **o: made.append(1) or create(*a, **o))
    client = AsyncClient(server.url)
    for _ in range(2):
        asyncio.run(client.dictionaries())
    assert len(made) == 1


def test_a_call_that_is_under_way_when_its_client_is_closed_says_so() -> None:
    async def run() -> None:
        async with await asyncio.start_server(lambda *_: asked.release(), "127.0.0.1", 0) as quiet:
            client = AsyncClient(f"http://127.0.0.1:{quiet.sockets[0].getsockname()[1]}", timeout=10)
            calls = [asyncio.create_task(call) for call in (client.dictionaries(), client.remove("x"))]
            for _ in calls:
                await asyncio.wait_for(asked.acquire(), 10)
            await client.aclose()
            for call in calls:
                with pytest.raises(ClientClosed):
                    await call

    asked = asyncio.Semaphore(0)
    asyncio.run(run())


def test_a_callers_transport_is_closed_with_the_client_alone() -> None:
    class Once(httpx.AsyncBaseTransport):
        closed = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ReadError("cut")

        async def aclose(self) -> None:
            self.closed += 1

    async def run() -> None:
        async with AsyncClient(transport=transport, retries=0) as client:
            for _ in range(2):
                with pytest.raises(Unreachable):
                    await client.dictionaries()
            assert not transport.closed
        assert transport.closed == 1

    transport = Once()
    asyncio.run(run())
