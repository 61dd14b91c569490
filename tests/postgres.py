"""A PostgreSQL of the tests' own: a cluster in a temporary folder, of which nothing is left."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pg8000.dbapi
import pytest

from demo.service import free_port
from tests.waiting import PATIENCE_SECONDS

USER = "postgres"


def binaries() -> Path | None:
    """Where PostgreSQL's programs are on this machine."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: float(path.parent.name))


class Cluster:
    """One server, with as many databases as are asked for; it may be stopped and started again.

    Args:
        address: at which this process reaches it.
        launcher: what its command is given to, where it is not to run as this process does.
        access: lines of its pg_hba.conf, which come before those that let everybody in from this machine.
        files: copied into the folder above its data, whose owner is who runs it.
        options: of the server, by their names.
    """

    def __init__(
        self,
        folder: Path,
        programs: Path,
        *,
        address: str = "127.0.0.1",
        launcher: Sequence[str] = (),
        access: Sequence[str] = (),
        files: Sequence[Path] = (),
        **options: object,
    ) -> None:
        self.log = folder / "log"
        self.port = free_port()
        self._folder = folder
        self._programs = programs
        self._address = address
        self._launcher = launcher
        self._options = {"listen_addresses": "127.0.0.1"} | options
        # It refuses to run as root: tests in a container often do.
        self._as_user: Sequence[str] = ()
        if os.geteuid() == 0:
            self._as_user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
            shutil.chown(folder, USER)
        for file in files:
            copied = Path(shutil.copy(file, folder))
            copied.chmod(0o600)
            if self._as_user:
                shutil.chown(copied, USER)
        self._run("initdb", "-D", "data", "-U", USER, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text("\n".join([*access, rules.read_text()]))
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, *, durable: bool = False) -> None:
        options = {
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "on" if durable else "off",
            "shared_buffers": "16MB",
            "max_connections": 60,
            **self._options,
        }
        told = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [*self._launcher, *self._as_user, str(self._programs / "postgres"), "-D", "data", *told],
                cwd=self._folder,
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

    def processes(self) -> list[int]:
        """The server's, of which the first starts the others."""
        assert self._server is not None
        server = self._server.pid
        return [server, *map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())]

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{uuid4().hex[:12]}"
        with self.connected() as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}@{self._address}:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._programs / program), *arguments]
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True, timeout=PATIENCE_SECONDS)

    def _answers(self) -> bool:
        try:
            with self.connected():
                return True
        except (pg8000.dbapi.Error, OSError):
            return False

    @contextmanager
    def connected(self) -> Iterator[pg8000.dbapi.Connection]:
        connection = pg8000.dbapi.connect(USER, host=self._address, port=self.port, database="postgres", timeout=10)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def running_cluster(*, durable: bool = False, **told: Any) -> Iterator[Cluster]:
    """A cluster that is told this, while it runs.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    programs = binaries()
    if programs is None:
        raise FileNotFoundError("PostgreSQL's programs (initdb, postgres) are not on this machine")
    folder = Path(tempfile.mkdtemp(prefix="dictserve-postgres-"))  # not pytest's own: another user is to get there
    try:
        cluster = Cluster(folder, programs, **told)
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
