"""The jobs' database: SQLite in a file of the store, or a PostgreSQL that services on several machines share.

What a transaction has written is durable once it has ended: SQLite in WAL mode with full synchronisation, PostgreSQL
as it is by default. Statements are the same on both, but for the few differences that are told here.
"""

import shutil
import socket
import sqlite3
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, SQLAlchemyError

from app.errors import JobsAway, JobsUnavailable
from app.jobs.migrations import migrate
from app.jobs.postgres_url import driver_told
from app.reachability import SILENT_SECONDS, Reachability, give_up_in_time

ANSWER_SECONDS = 10  # in which PostgreSQL says nothing, after which a connection to it is given up
LOCK_SECONDS = 5  # for which a statement waits for another's lock
# A process that stops in the midst of a transaction (or its machine, or the network) must not keep its locks.
ABANDONED_SECONDS = 10
# Nor its connections: the server lets go of those of a machine that has been silent for a minute.
KEEPALIVE = {"idle": 30, "interval": 10, "count": 3}

PORT = 5432
FULL_BYTES = 64 * 1024  # of room on a disk, with less than which SQLite cannot begin

# https://www.sqlite.org/rescode.html, primary codes: of a lock that another has; and of all that passes by itself, or
# once somebody has made room.
LOCKED_OF_SQLITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
PASSING_OF_SQLITE = {*LOCKED_OF_SQLITE, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
# https://www.postgresql.org/docs/current/errcodes-appendix.html, classes that pass: connection, resources, operator.
PASSING_OF_POSTGRESQL = {"08", "53", "57"}
# Single codes that pass: a transaction that was idle for too long, lost to another or to a deadlock, or waited long
# for a lock; and a server that only reads: after a failover names and proxies may still lead to a standby.
READ_ONLY = "25006"
PASSING_BY_CODE = {"25P03", "40001", "40P01", "55P03", READ_ONLY}

metadata = sql.MetaData()


class Database:
    """Connections to the jobs' database. Methods block on it."""

    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            self._engine = sql.create_engine(url)
            sql.event.listen(self._engine, "connect", _make_durable)
        else:
            address, told = driver_told(url)
            self._engine = sql.create_engine(
                address,
                isolation_level="READ COMMITTED",
                pool_pre_ping=True,  # a connection that was lost meanwhile is replaced, and nobody hears of it
                connect_args=told,
            )
            sql.event.listen(self._engine, "do_connect", _connected)
            sql.event.listen(self._engine, "connect", _bound_waits)
        path = self._engine.url.database if self.is_sqlite else None
        self._path = None if path is None else Path(path)
        self._file: tuple[int, int] | None = None  # that was opened
        self._unopened: JobsUnavailable | None = None  # why it could not be when that was last tried
        self._reachability = Reachability("the jobs' database", self._answers)
        seconds = (
            "(julianday('now') - 2440587.5) * 86400" if self.is_sqlite else "extract(epoch FROM clock_timestamp())"
        )
        self.now: sql.ColumnElement[float] = sql.cast(sql.literal_column(seconds), sql.Float)  # since 1970

    def open(self) -> None:
        """Have the tables as they are described.

        Raises:
            JobsAway: it cannot be used now; this may be called again.
            JobsUnavailable: nor later, as it is, or a later version of the service has made it what this cannot use.
        """
        try:
            with self._asked():
                migrate(self._engine, metadata, self.now)
                if self._path is not None:
                    self._file = _identity(self._path)
        except JobsUnavailable as error:
            self._unopened = error
            raise
        self._unopened = None

    def leave_closed(self, why: str) -> None:
        """Refuse every transaction, until it is opened."""
        self._unopened = JobsUnavailable(why)

    @property
    def is_up(self) -> bool:
        """Whether it was opened and, on a server, answered when it was last asked."""
        return self._unopened is None and self._reachability.is_up

    def close(self) -> None:
        self._reachability.close()
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sql.Connection]:
        if self._unopened is not None:
            raise JobsUnavailable(str(self._unopened))
        self._require_its_file()
        with self._asked(), self._engine.begin() as connection:
            yield connection

    def insert_new(self, connection: sql.Connection, table: sql.Table, **values: Any) -> bool:
        """Insert a row, unless there is one with the same key; on SQLite nobody else writes from here on."""
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        return connection.execute(insert(table).values(**values).on_conflict_do_nothing()).rowcount > 0

    def one_at_a_time(self, connection: sql.Connection, table: sql.Table) -> None:
        """Wait for other transactions that are past this for the table; SQLite has but one that writes anyway."""
        if not self.is_sqlite:
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(table.name))))

    def is_alone(self, connection: sql.Connection, table: sql.Table) -> bool:
        """Whether no other transaction is past `one_at_a_time` for the table, nor will be before this one has ended.
        On SQLite none goes on that nobody waits for, as one whose connection was lost may on a server."""
        if self.is_sqlite:
            return True
        return bool(connection.scalar(sql.select(sql.func.pg_try_advisory_xact_lock(sql.func.hashtext(table.name)))))

    def _require_its_file(self) -> None:
        """What is written to a file that has lost its name, or has been replaced, is gone with the next start."""
        if self._path is None or self._file is None:
            return
        try:
            if _identity(self._path) == self._file:
                return
            told = "it is another file than the one that was opened"
        except FileNotFoundError:
            if not self._path.parent.exists():
                return  # the store is away as a whole, and says so itself
            told = "its file is gone"
        except OSError:
            return  # whatever it is, SQLite will tell
        raise JobsUnavailable(f"the jobs' database cannot be used: {told}; start the service again")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        self._reachability.require_up()
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            kind = JobsAway if _passes(error) else JobsUnavailable
            told = "its disk is full" if self._lacks_room(error) else _reason(error)
            unavailable = kind(f"the jobs' database cannot be used: {told}")
            if _code_of_postgresql(error) == READ_ONLY:
                self._engine.dispose()  # these connections would stay with it, and new ones may find its successor
            if not self.is_sqlite and isinstance(error, OSError | InterfaceError):  # its connection, no statement
                self._engine.dispose()  # the other connections may be as dead, and each would be waited for
                self._reachability.lose(unavailable)
            raise unavailable from error
        except ValueError as error:  # JSON that is none, or no job's
            raise JobsUnavailable("the jobs' database holds a record that cannot be read") from error

    def _lacks_room(self, error: Exception) -> bool:
        """Whether the disk is full: SQLite says so, or that it could not be written, by which of its files it was."""
        code = _code_of_sqlite(error)
        if code != sqlite3.SQLITE_IOERR or self._path is None:
            return code == sqlite3.SQLITE_FULL
        try:
            return shutil.disk_usage(self._path.parent).free < FULL_BYTES
        except OSError:
            return False

    def _answers(self) -> None:
        with self._engine.connect():
            pass


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _make_durable(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # on a new file SQLite does not wait for others who set it too
            if _code_of_sqlite(error) not in LOCKED_OF_SQLITE or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _connected(dialect: sql.Dialect, _: object, __: object, told: dict[str, Any]) -> Any:
    line = give_up_in_time(socket.create_connection((told["host"], told.get("port", PORT)), SILENT_SECONDS))
    line.settimeout(ANSWER_SECONDS)
    try:
        return dialect.loaded_dbapi.Connection(**told, sock=line)  # its `connect` takes no socket
    except BaseException:
        line.close()
        raise


def _bound_waits(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{ABANDONED_SECONDS}s'")
    for name, value in KEEPALIVE.items():
        cursor.execute(f"SET tcp_keepalives_{name} = {value}")
    cursor.close()
    connection.commit()


def _cause(error: Exception) -> Exception:
    """The driver's own error, where SQLAlchemy has put another around it."""
    return getattr(error, "orig", None) or error


def _code_of_sqlite(error: Exception) -> int:
    """The primary one; 0 where there is none."""
    code: int = getattr(_cause(error), "sqlite_errorcode", 0)
    return code & 0xFF


def _code_of_postgresql(error: Exception) -> str:
    """Empty where there is none."""
    match _cause(error).args:
        case ({"C": str(code)}, *_):  # its fields, C the code
            return code
    return ""


def _passes(error: Exception) -> bool:
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return _code_of_sqlite(error) in PASSING_OF_SQLITE
    if code := _code_of_postgresql(error):
        return code[:2] in PASSING_OF_POSTGRESQL or code in PASSING_BY_CODE
    is_refused = isinstance(cause, ssl.SSLCertVerificationError) or cause.args[:1] == ("Server refuses SSL",)
    return isinstance(error, OSError | InterfaceError) and not is_refused


def _reason(error: Exception) -> object:
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of its server is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and "timed out" in str(cause):
        return "its server does not answer"
    if _code_of_sqlite(error) == sqlite3.SQLITE_READONLY:
        return "its file, or those beside it (-wal, -shm), can only be read: by this user, or on this file system"
    told = cause.args[0] if cause.args else None
    if told == "Server refuses SSL":
        return "its server has no TLS, which sslmode asks for"
    return told.get("M", told) if isinstance(told, dict) else cause  # PostgreSQL's fields, M the message
