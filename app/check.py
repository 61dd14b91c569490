"""Look at every byte of a store: what is whole, what is damaged, and what does not belong there.

A service refuses a damaged version when somebody asks for it; this finds it before. Nothing is ever deleted: a
repair sets a damaged version aside, where it can be looked at, and its number is not given again.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import AppError, DictionaryDamaged, UnknownDictionary
from app.store import Store, check_name


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        where: a version's reference, or a path within the store.
        what: is wrong with it.
        version: name and version where a repair can set that aside, else None.
    """

    where: str
    what: str
    version: tuple[str, int] | None = None


def damaged(store: Store) -> Iterator[Finding | None]:
    """What is wrong with each version of the store, None where it is whole: as many items as versions.

    Raises:
        StoreUnavailable: the store itself cannot be read.
    """
    for name in store.names():
        for version in store.versions(name):
            try:
                store.load(name, version)
                store.labels(name, version)
            except DictionaryDamaged as error:
                yield Finding(f"{name}@{version}", str(error), (name, version))
            except UnknownDictionary:
                continue  # removed in the meantime
            else:
                yield None


def strays(store: Store) -> Iterator[Finding]:
    """Entries of the store that no service made, which services pass over. A repair leaves them alone."""
    for entry in sorted(store.root.iterdir()):
        where = entry.name
        if where.startswith("."):
            continue  # the store's own
        if entry.is_symlink():
            yield Finding(where, "a symbolic link; dictionaries are directories")
        elif not entry.is_dir():
            yield Finding(where, "a file; dictionaries are directories")
        elif not _is_name(where):
            yield Finding(where, "not a dictionary's name")
        else:
            known = {str(version) for version in store.versions(where)}
            for inner in sorted(entry.iterdir()):
                if inner.name not in known and not inner.name.startswith("."):
                    yield Finding(f"{where}/{inner.name}", "not a version's directory")


def database_fault(path: Path) -> Finding | None:
    """What SQLite finds wrong with the jobs' database; None where it is whole, or not there."""
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        told = str(error)
    return None if told == "ok" else Finding(path.name, f"the jobs' database is damaged: {told}")


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except (AppError, ValueError):
        return False
    return True
