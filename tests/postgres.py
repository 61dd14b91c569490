"""A PostgreSQL of the tests' own: a cluster in a temporary folder, of which nothing is left."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pg8000.dbapi
import pytest

from demo.service import free_port

USER = "postgres"


def binaries() -> Path | None:
    """Where PostgreSQL's programs are on this machine."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: float(path.parent.name))


class Cluster:
    """One server, with as many databases as are asked for; it may be stopped and started again."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.log = folder / "log"
        self.port = free_port()
        self._folder = folder
        self._programs = programs
        # It refuses to run as root: tests in a container often do.
        self._user = USER if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", "data", "-U", USER, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, *, durable: bool = False) -> None:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "on" if durable else "off",
            "shared_buffers": "16MB",
            "max_connections": 60,
        }
        told = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", *told],
                cwd=self._folder,
                user=self._user,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise RuntimeError(f"PostgreSQL does not start:\n{self.log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Cut off whoever is connected, and end."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(30)
            self._server = None

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{uuid4().hex[:12]}"
        with self._connected() as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._programs / program, *arguments]
        subprocess.run(command, cwd=self._folder, user=self._user, check=True, capture_output=True, timeout=100)

    def _answers(self) -> bool:
        try:
            with self._connected():
                return True
        except (pg8000.dbapi.Error, OSError):
            return False

    @contextmanager
    def _connected(self) -> Iterator[pg8000.dbapi.Connection]:
        connection = pg8000.dbapi.connect(USER, host="127.0.0.1", port=self.port, database="postgres", timeout=10)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def running_cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """Raises FileNotFoundError where PostgreSQL is not installed."""
    programs = binaries()
    if programs is None:
        raise FileNotFoundError("PostgreSQL's programs (initdb, postgres) are not on this machine")
    folder = Path(tempfile.mkdtemp(prefix="dictserve-postgres-"))  # not pytest's own: another user is to get there
    try:
        cluster = Cluster(folder, programs)
        cluster.start(durable=durable)
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A running server, one for all tests of a process; skips where there is none to be had."""
    try:
        with running_cluster() as cluster:
            yield cluster
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that jobs may be in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    cluster: Cluster = request.getfixturevalue("postgres")
    return cluster.new_database()
