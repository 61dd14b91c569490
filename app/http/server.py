"""Uvicorn as this service runs it: a stop in order is no error, and holds up nobody who waits for a job."""

import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from app.http.protocol import bounded
from app.settings import Settings


class Server(uvicorn.Server):
    """Listens for an app that has its services, and ends them with itself."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                access_log=False,  # ours tells more
                log_config=None,
                timeout_graceful_shutdown=settings.shutdown_grace_seconds,
                http=bounded(settings, app.state.metrics.observe_unserved),
                server_header=False,
            )
        )
        self._services = app.state.services

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise each again in the end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a terminal is closed, and nohup was not asked for
            signal.signal(signal.SIGHUP, self.handle_exit)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.end_waits()  # else they would hold up the stop for the whole grace time
        await super().shutdown(sockets)
        if self.force_exit:  # a second Ctrl-C: no request is waited for any more, but fits keep what they have
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await self.lifespan.shutdown()
