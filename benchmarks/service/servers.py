"""Servers as processes, all started at once and then stopped (SIGSTOP) but for the one that is measured: some of
them poll, and would take from the others while they themselves are at rest."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import httpx

from benchmarks.process import Absent, Failed
from benchmarks.service.client import HOST, get
from benchmarks.service.ways import (
    ECHO,
    FASTAPI,
    LITSERVE,
    LITSERVE_BATCHING,
    MLSERVER,
    MLSERVER_BATCHING,
    OURS,
)
from demo.service import free_port, serve_command

ROOT = Path(__file__).parent.parent.parent
PEERS = Path(sys.prefix) / "peers"  # `make bench` installs each there, apart: their pins exclude each other's
START_SECONDS = 120
STOP_SECONDS = 10
BATCH = {"BATCH": "1"}


class Server:
    """One server process and its children, from a command to a port that answers."""

    def __init__(
        self,
        name: str,
        distribution: str,
        ready_path: str,
        *,
        module: str | None = None,
        apart: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.distribution, self.ready_path = name, distribution, ready_path
        self.module = module
        self.folder = PEERS / distribution if apart else None
        self.port = free_port()
        self.absent: str | None = None
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def version(self) -> str:
        """Raises Absent where it is not installed."""
        if self.folder is None:
            return version(self.distribution)
        for found in distributions(name=self.distribution, path=[str(self.folder)]):
            return found.version
        raise Absent(str(PackageNotFoundError(self.distribution)))

    @property
    def told(self) -> str:
        """Its version, or why it is absent."""
        return self.version if self.absent is None else f"absent ({self.absent})"

    def launch(self, folder: Path, dictionaries: Mapping[str, Path]) -> None:
        """Start it, or note why it is absent."""
        try:
            self.version  # noqa: B018 (asked for its Absent)
        except Absent as reason:
            self.absent = str(reason)
            return
        path = os.pathsep.join(str(part) for part in (self.folder, ROOT) if part is not None)
        with (folder / f"{self.name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(folder, dictionaries),
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"} | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that it is stopped and killed with its children
            )

    def _command(self, folder: Path, dictionaries: Mapping[str, Path]) -> list[str]:
        if self.module is None:
            return serve_command(self.port, folder / "models")
        told = [f"{name}={path}" for name, path in dictionaries.items()]
        return [sys.executable, "-m", f"benchmarks.service.peers.{self.module}", str(self.port), *told]

    def wait_ready(self, folder: Path) -> None:
        """Wait until it answers, or note why it does not."""
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                told = (folder / f"{self.name}.log").read_text().strip().splitlines()
                self.absent = told[-1] if told else f"ended with exit code {self._process.returncode}"
                return
            with suppress(OSError, HTTPException):
                if get(self.port, self.ready_path, limit_seconds=5).status == 200:
                    return
            time.sleep(0.05)
        self.absent = f"not ready after {START_SECONDS} s"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def pause(self) -> None:
        if self.absent is None:
            os.killpg(self.pid, signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within, it runs. Raises Absent where there is none."""
        if self.absent is not None:
            raise Absent(self.absent)
        os.killpg(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def stop(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)
            os.killpg(self.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def all_servers() -> list[Server]:
    return [
        our_server(),
        Server(ECHO, "uvicorn", "/", module="echo"),
        Server(FASTAPI, "fastapi", "/health", module="plain_fastapi"),
        Server(LITSERVE, "litserve", "/health", module="lit", apart=True),
        Server(LITSERVE_BATCHING, "litserve", "/health", module="lit", apart=True, environment=BATCH),
        Server(MLSERVER, "mlserver", "/v2/health/ready", module="ml", apart=True),
        Server(MLSERVER_BATCHING, "mlserver", "/v2/health/ready", module="ml", apart=True, environment=BATCH),
    ]


def our_server(environment: Mapping[str, str] | None = None) -> Server:
    told = {"DICTSERVE_LOG_LEVEL": "error", **(environment or {})}
    return Server(OURS, "dictserve", "/readyz", environment=told)


@contextmanager
def running(servers: list[Server], folder: Path, dictionaries: Mapping[str, Path]) -> Iterator[dict[str, Server]]:
    """The servers by name, ready to encode on these dictionaries, and paused. They end with the block."""
    try:
        for server in servers:
            server.launch(folder, dictionaries)
        for server in servers:
            if server.absent is None:
                server.wait_ready(folder)
            if server.name == OURS:
                _put(server, dictionaries)
            server.pause()
        yield {server.name: server for server in servers}
    finally:
        for server in servers:
            server.stop()


def _put(server: Server, dictionaries: Mapping[str, Path]) -> None:
    if server.absent is not None:
        raise Failed(f"our service: {server.absent}")
    for name, path in dictionaries.items():
        answer = httpx.put(f"{server.url}/dictionaries/{name}", content=path.read_bytes(), timeout=30)
        answer.raise_for_status()
