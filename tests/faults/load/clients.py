"""HTTP/1.1 clients for one event loop, cheap enough for hundreds of them beside what they measure."""

import asyncio
from dataclasses import replace
from types import TracebackType

from tests.wire import Answer, read

HOST = "127.0.0.1"
LIMIT_SECONDS = 60.0  # for any one answer: none may hang


class Unanswered(Exception):
    """The connection ended before its answer was whole."""


class Connection:
    """One that is kept alive; another is opened only where the service says that it closes this one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def ask(self, asked: bytes) -> Answer:
        """Send a whole request and take its answer.

        Raises:
            Unanswered, TimeoutError, OSError: there is none.
        """
        async with asyncio.timeout(LIMIT_SECONDS):
            if self._streams is None:
                self._streams = await asyncio.open_connection(HOST, self._port)
            reader, writer = self._streams
            writer.write(asked)
            try:
                answer = await take(reader)
            except asyncio.IncompleteReadError as error:
                self.close()
                raise Unanswered(f"{len(error.partial)} bytes of an answer, and then the end") from None
        if answer.headers.get("connection") == "close":
            self.close()
        return answer


async def take(reader: asyncio.StreamReader) -> Answer:
    """The next answer on a connection."""
    head = read(await reader.readuntil(b"\r\n\r\n"))
    return replace(head, body=await reader.readexactly(int(head.headers.get("content-length", "0"))))
