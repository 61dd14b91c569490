"""The service as its victim: started, killed, and looked at from outside."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from demo.service import serve_command
from tests.e2e.conftest import Service


class Victim(Service):
    """``dictserve serve`` in a process group of its own. The store in their environment tells its processes."""

    def __init__(self, store: Path, database: str | None = None) -> None:
        told = {} if database is None else {"DICTSERVE_DATABASE_URL": database}
        super().__init__(
            store,
            **told,
            DICTSERVE_STORE=str(store),
            DICTSERVE_LOG_LEVEL="warning",
            DICTSERVE_CHECKPOINT_INTERVAL_SECONDS="0.02",  # so that most of what is killed can go on
        )

    def launch(self) -> None:
        """Start it, and do not wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                serve_command(self.port, self.store),
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
                start_new_session=True,
            )

    def wait_for_worker(self, other_than: int | None, seconds: float = 100.0) -> None:
        """Wait until it takes work, and not by the word of one that has not seen yet that its worker is dead."""
        deadline = time.monotonic() + seconds
        while True:
            self.wait_ready(seconds)
            workers = self.client.get("/readyz").json()["workers"]
            if all(worker["pid"] not in (None, other_than) for worker in workers):
                return
            assert time.monotonic() < deadline, f"no new worker after {seconds} s"
            time.sleep(0.02)

    def kill_group(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def worker(self) -> int | None:
        """The worker's process now, if there is one, ready or not."""
        workers = [pid for pid in self.processes() if b"app.worker" in _told(pid, "cmdline")]
        return workers[0] if workers else None

    def processes(self) -> list[int]:
        """All processes that were started for this store, by whomever, and have not ended."""
        mark = f"DICTSERVE_STORE={self.store}".encode()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [pid for pid in pids if mark in _told(pid, "environ").split(b"\0")]

    def all_gone(self, seconds: float = 5.0) -> list[int]:
        """The processes that are still there after so long; none as it should be."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def listens(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0


def _told(pid: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""  # it has ended, or belongs to somebody else
