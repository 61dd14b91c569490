"""A worker's process, from the service's side. Light to import: the service starts its worker before all else."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Settings


def channel() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel, for ``app.worker.frames``."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Launched:
    """A process that has begun, and the service's end of its channel.

    Args:
        settings: for what it logs.
        place: of a rank, as ``app.worker.__main__`` takes it.

    Raises:
        OSError: there is no process to be had now.
    """

    def __init__(self, settings: "Settings", *place: str) -> None:
        self.channel, theirs = channel()
        told = {"DICTSERVE_LOG_LEVEL": settings.log_level, "DICTSERVE_LOG_FORMAT": settings.log_format}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "app.worker", str(theirs.fileno()), str(os.getpid()), *place],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    env=os.environ | told,
                )
            except BaseException:
                self.channel.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> asyncio.Future[int]:
        """Its exit code, once it has one; the number of the signal that ended it, negative."""
        loop = asyncio.get_running_loop()
        code: asyncio.Future[int] = loop.create_future()

        def tell() -> None:
            if not code.done():
                code.set_result(self._process.returncode)

        def wait() -> None:
            self._process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell)

        threading.Thread(target=wait, name=f"exit of {self.pid}", daemon=True).start()
        return code
