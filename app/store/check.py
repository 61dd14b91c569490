"""Look at every byte of a store: what is whole, what is damaged, and what does not belong there.

A service refuses a damaged version when somebody asks for it, and passes over a damaged checkpoint; this finds them
before. A repair sets what is damaged aside, where it can be looked at, and the number of a version is not given
again; what it removes is half made, and its maker dead. What a disk does not give is told too, and left: it may be
whole, and read the next time.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.errors import DictionaryDamaged, StoreUnavailable, UnknownDictionary
from app.store.checkpoint_file import CheckpointUnusable, read_steps
from app.store.checkpoints import Checkpoints
from app.store.disk import store_errors
from app.store.store import Store

# What SQLite meets on the way to a database, which says nothing of what is in it.
PASSING = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        where: a version's reference, or a path within the store.
        what: is wrong with it.
        set_aside: where a repair can do so: does it, and returns where it is from now on.
        is_damage: else it cannot be read now, and may be whole.
    """

    where: str
    what: str
    set_aside: Callable[[], Path | str] | None = None
    is_damage: bool = True

    def __str__(self) -> str:
        return f"{'damaged' if self.is_damage else 'unreadable'}: {self.where}: {self.what}"


def damaged(store: Store) -> Iterator[Finding | None]:
    """What is wrong with each version of the store, None where it is whole: as many items as versions.

    Raises:
        StoreUnavailable: the store itself cannot be read.
    """
    for name in store.names():
        try:
            versions = store.versions(name)
        except StoreUnavailable as error:
            yield Finding(name, str(error), is_damage=False)
            continue
        for version in versions:
            aside: Callable[[], Path | str] | None = partial(store.set_aside, name, version)
            where = f"{name}@{version}"
            try:
                store.load(name, version, cached=False)
                store.labels(name, version)
                aside = None  # the dictionary is whole: it stays, whatever its figures are
                store.figures(name, version, cached=False)
            except DictionaryDamaged as error:
                yield Finding(where, str(error), aside)
            except StoreUnavailable as error:
                yield Finding(where, str(error), is_damage=False)
            except UnknownDictionary:
                continue  # removed in the meantime
            else:
                yield None


def damaged_checkpoints(store: Store) -> Iterator[Finding | None]:
    """What is wrong with each checkpoint, None where it is whole. The fit of a damaged one starts again, no more."""
    directory = store.workplace.checkpoints
    with store_errors():
        paths = sorted(directory.iterdir()) if directory.is_dir() else []
    for path in paths:
        where = str(path.relative_to(store.root))
        try:
            for _ in read_steps(path):
                pass
        except FileNotFoundError:
            continue  # its fit has ended in the meantime, or has written the next
        except (CheckpointUnusable, OSError) as error:
            is_damage = isinstance(error, CheckpointUnusable)
            aside = partial(Checkpoints(store.workplace).set_aside, path) if is_damage else None
            yield Finding(where, f"a checkpoint: {error}", aside, is_damage)
        else:
            yield None


def strays(store: Store) -> Iterator[Finding]:
    """What lies in the store that no service made, which services pass over. A repair leaves it alone."""
    for where, what in store.strays():
        yield Finding(where, what)


def database_fault(path: Path) -> Finding | None:
    """What SQLite finds wrong with the jobs' database; None where it is whole, or not there."""
    try:
        with store_errors():
            if not path.exists():
                return None
            told = _quick_check(path)
    except sqlite3.DatabaseError as error:
        return Finding(path.name, f"the jobs' database cannot be read: {error}", is_damage=False)
    return None if told == "ok" else Finding(path.name, f"the jobs' database is damaged: {told}")


def _quick_check(path: Path) -> str:
    # Beside a database whose log of writes it may have to read SQLite makes files, which are then of whoever checks
    # (root's, maybe, where the service is another user), and which it cannot make where it may only read. Where there
    # is no log, as a service leaves it that has stopped, it needs none.
    log = path.with_name(f"{path.name}-wal")
    has_log = log.exists() and (log.stat().st_size > 0 or os.access(path.parent, os.W_OK))
    if has_log:
        return _quick_check_by("mode=ro", path)
    told = _quick_check_by("immutable=1", path)
    if told != "ok" and log.exists():  # a service has begun to write meanwhile, which makes nonsense of what was read
        with suppress(sqlite3.DatabaseError):  # else what was read stands
            told = _quick_check_by("mode=ro", path)
    return told


def _quick_check_by(mode: str, path: Path) -> str:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=10)) as connection:
        try:
            told: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in PASSING:
                raise
            told = str(error)
    return told
