"""One `AsyncClient` in several event loops: connections belong to the loop that made them."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.client import AsyncClient
from app.client.errors import ClientClosed


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
