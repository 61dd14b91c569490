"""A store belongs to one jobs' database. Who serves jobs sweeps the activations that none of them needs: those of
another database's jobs would be lost.

Jobs in the store's own SQLite file are there with it. For any other database a marker tells whose the store is: an
object where activations are objects, else a file. It has that database's identity (``app.jobs.migrations``).
"""

import logging
import sqlite3
from contextlib import closing
from typing import Protocol

import orjson

from app.errors import JobsAway, JobsUnavailable, StoreAway, StoreUnavailable
from app.jobs.database import Database
from app.jobs.migrations import identity_of
from app.store.bucket import PRIVATE, Bucket
from app.store.disk import NoRegularFile, read_regular, store_errors
from app.store.store import Store
from app.store.workplace import Workplace

logger = logging.getLogger("dictserve")

MARKER = "database"


def claim(store: Store, database: Database) -> None:
    """Have the store belong to a database, from now on. To be called before anything is swept.

    Raises:
        JobsUnavailable: it belongs to another, or has jobs that have not ended in its own file.
        JobsAway, StoreUnavailable: that cannot be told now.
    """
    with database.transaction() as connection:
        identity = identity_of(connection)
    markers: list[_Marker] = [_InDirectory(store.workplace)]
    own, left = _of_file(store.workplace)
    if own == identity:
        _require(markers[0], None)
        return
    if left:
        raise JobsUnavailable(
            f"{store.workplace.database} holds jobs that have not ended ({left}), whose activations would be "
            "removed: let them end first, without DICTSERVE_DATABASE_URL, or move that file away to give them up"
        )
    if store.bucket is not None:
        markers.append(_InBucket(store.bucket))
    found = [_require(marker, identity) for marker in markers]
    if found[-1] is None:
        _put(markers[-1], identity)


class _Marker(Protocol):
    """
    Attributes:
        where: it lies, as people find it.
    """

    where: str

    def read(self) -> str | None:
        """The identity of the database that the store belongs to; None where there is no marker."""

    def create(self, identity: str) -> None:
        """Write it durably, unless it is there."""


class _InDirectory:
    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._path = workplace.directory / MARKER
        self.where = str(self._path)

    def read(self) -> str | None:
        try:
            with store_errors():
                return read_regular(self._path).decode(errors="replace") if self._path.exists() else None
        except NoRegularFile as error:
            raise StoreUnavailable(f"{self.where} cannot be read: {error}") from None

    def create(self, identity: str) -> None:
        with store_errors(), self._workplace.alone():
            if not self._path.exists():
                self._workplace.replace(self._path, identity.encode())


class _InBucket:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._key = f"{PRIVATE}/{MARKER}"
        self.where = f"{bucket.url}/{self._key}"

    def read(self) -> str | None:
        try:
            return self._bucket.read(self._key).decode(errors="replace")
        except FileNotFoundError:
            return None

    def create(self, identity: str) -> None:
        self._bucket.create(self._key, identity.encode())


def _require(marker: _Marker, identity: str | None) -> str | None:
    """What a marker says, if there is one.

    Raises:
        JobsUnavailable: it is another database's.
    """
    found = marker.read()
    if found not in (None, identity):
        raise JobsUnavailable(
            f"the jobs of this store are in another database, as {marker.where} tells: set DICTSERVE_DATABASE_URL to "
            "that one's or, once none of its jobs is queued or running, remove that marker"
        )
    return found


def _put(marker: _Marker, identity: str) -> None:
    try:
        marker.create(identity)
    except StoreAway:  # it is asked for again
        raise
    except StoreUnavailable as error:  # for want of room or of a right: jobs are served all the same, as ever
        logger.warning("%s, which says whose the store is, cannot be written: %s", marker.where, error)
        return
    _require(marker, identity)  # of two that come at once, one was first


def _of_file(workplace: Workplace) -> tuple[str | None, int]:
    """Of the store's own SQLite file, which is only read: its identity, and how many unended jobs may be lost.
    Neither where there is none."""
    if not workplace.database.exists():
        return None, 0
    try:
        with closing(sqlite3.connect(f"{workplace.database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            identity, data = None, []
            if "jobs_identity" in tables:  # else an earlier version made it
                (identity,) = connection.execute("SELECT identity FROM jobs_identity").fetchone()
            if "jobs" in tables:
                unended = connection.execute("SELECT data FROM jobs WHERE state IN ('queued', 'running')")
                data = [told for (told,) in unended]
    except sqlite3.Error as error:
        kind = JobsAway if isinstance(error, sqlite3.OperationalError) else JobsUnavailable  # locked, say; damaged
        told = f"whether {workplace.database} holds jobs that have not ended cannot be told: {error}"
        raise kind(f"{told}; if it is not needed, move it away") from None
    return identity, sum(_has_data(workplace, told) for told in data)


def _has_data(workplace: Workplace, told: str) -> bool:
    """Whether there is something to lose of a job: what was uploaded is gone where services of a version that did not
    look have swept it."""
    try:
        data = orjson.loads(told)
    except ValueError:
        return False
    match data:
        case {"files": _}:
            return True
        case {"file": str(file)}:
            return (workplace.activations / file).exists()
    return False
