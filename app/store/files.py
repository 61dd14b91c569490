"""Versions as files of a directory, ``<root>/<name>/<version>/``: ``meta.json``, ``dictionary.safetensors``, and of
one that was fitted here ``figures.safetensors``.

A version appears whole or not at all: it is staged, fsynced and renamed.
"""

import errno
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.errors import DictionaryDamaged, NameTaken, PreconditionFailed, StoreUnavailable, UnknownDictionary
from app.memory_cache import keep
from app.store.disk import NoRegularFile, as_store_error, fsync_directory, read_regular, store_errors, write_durably
from app.store.hashed import Hashed, require_whole
from app.store.references import NAME, VERSION, check_name
from app.store.workplace import Workplace

logger = logging.getLogger("dictserve")

META_FILE = "meta.json"
LABELS_FILE = "labels.json"
REMOVED = ".removed-"  # and a version: its empty directory, which stays so that the number is not given twice

# A directory that changed less than this before it was listed may change again without its time telling: file systems
# count time in steps, the coarsest of 2 s.
SETTLED_NS = 3 * 10**9


@dataclass(frozen=True)
class _Listing:
    """The versions of a name, ascending, and the state of the directory that they were found in."""

    inode: int
    changed_ns: int
    versions: list[int]


class Files:
    """The versions under a root."""

    is_near = True

    def __init__(self, root: Path, workplace: Workplace) -> None:
        self._root = root
        self._workplace = workplace
        self._listings: dict[str, _Listing] = {}
        self._unreadable: set[str] = set()  # names, as was told of them last
        self._highest: dict[str, int] = {}  # the versions that were seen here, whatever has become of them since

    def settle(self) -> None:
        """What fails here is removed at once."""

    def sweep(self) -> None:
        """Empty what somebody removed who died before it was gone."""
        with store_errors(), self._workplace.alone():
            for name in self._directories():
                try:
                    for _, removed in _removed(self._root / name):
                        _empty(removed)
                except OSError as error:  # of one, which the others are not to wait for
                    logger.warning("what was removed of %s cannot be swept: %s", name, error.strerror)

    # -- reading ------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """But for those whose directories cannot be read, unless none can: of one, the others know nothing."""
        with store_errors():
            directories = self._directories()
        if not directories:
            self._workplace.require_there()
        found, faults = [], {}
        for name in directories:
            try:
                if self.versions(name):
                    found.append(name)
            except StoreUnavailable as error:
                faults[name] = error
        if faults and not found:
            raise next(iter(faults.values()))
        for name in faults.keys() - self._unreadable:
            logger.error("%s is left out of what is listed: %s", name, faults[name])
        self._unreadable = set(faults)
        return found

    def _directories(self) -> list[str]:
        with os.scandir(self._root) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and NAME.fullmatch(e.name))

    def versions(self, name: str) -> list[int]:
        """A list once made is kept until its directory changes, whichever process changes it."""
        directory = f"{self._root}/{name}"
        try:
            found = os.lstat(directory)
            known = self._listings.get(name)
            if known is not None and (found.st_ino, found.st_ctime_ns) == (known.inode, known.changed_ns):
                return known.versions.copy()
            if not stat.S_ISDIR(found.st_mode):
                return []
            now_ns = time.time_ns()  # before the listing: what comes after it is not in it
            with os.scandir(directory) as entries:
                versions = sorted(
                    int(e.name) for e in entries if VERSION.fullmatch(e.name) and e.is_dir(follow_symlinks=False)
                )
        except (FileNotFoundError, NotADirectoryError):
            self._listings.pop(name, None)
            self._workplace.require_there()  # what is gone with the whole store may come back with it
            return []
        except OSError as error:
            raise as_store_error(error, _directory_of(name)) from error
        self._note(name, versions)
        if now_ns - found.st_ctime_ns > SETTLED_NS:
            keep(self._listings, name, _Listing(found.st_ino, found.st_ctime_ns, versions.copy()))
        return versions

    def _note(self, name: str, versions: Iterable[int]) -> None:
        """Remember the highest number seen. Should somebody remove the directories by hand, numbers must not be given
        again: records that are kept in memory would be taken for another dictionary's."""
        highest = max(versions, default=0)
        if highest > self._highest.get(name, 0):
            self._highest[name] = highest

    def remembered(self, name: str) -> list[int]:
        return []  # a disk that cannot be read has none of them at hand

    def knows(self, name: str) -> bool:
        return True

    def is_soon_old(self, name: str) -> bool:
        return False

    def look_again(self, name: str, since: float) -> None:
        """Whatever is asked is looked at."""

    def has(self, name: str, version: int, sha256: str) -> bool:
        return True

    def fetch(self, name: str, version: int, sha256: str) -> None:
        """They are here."""

    def require_free(self, name: str) -> None:
        """Raises NameTaken where something else than dictionaries has the name. No link is followed.

        StoreUnavailable: where what is there cannot be read, for nothing could be published beside it.
        """
        directory = self._root / name
        try:
            if not stat.S_ISDIR(directory.lstat().st_mode):
                raise NameTaken(f"the store has something called {name!r} that is no dictionary; use another name")
            if os.access(directory, os.R_OK | os.W_OK | os.X_OK):
                return
            is_read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        except FileNotFoundError:
            return
        except OSError as error:
            raise as_store_error(error, _directory_of(name)) from error
        reason = os.strerror(errno.EROFS) if is_read_only else "its mode or owner forbids it"
        raise StoreUnavailable(f"the store's directory of {name!r} cannot be used: {reason}")

    def meta(self, name: str, version: int, *, cached: bool = False) -> bytes:
        return self._read(name, version, META_FILE)

    def content(self, name: str, version: int, file: str, sha256: str, *, cached: bool = True) -> bytes:
        content = self._read(name, version, file)
        require_whole(content, sha256, file, f"{name}@{version}")
        return content

    def labels(self, name: str, version: int) -> bytes | None:
        return self._read_if_there(name, version, LABELS_FILE)

    def _directory(self, name: str, version: int) -> Path:
        return self._root / name / str(version)

    def _read(self, name: str, version: int, file: str) -> bytes:
        """A file that the version has. One without it is damaged; one that is no longer there has been removed."""
        content = self._read_if_there(name, version, file)
        if content is not None:
            return content
        with store_errors():
            if self._directory(name, version).is_dir():
                raise DictionaryDamaged(f"{name}@{version} has no {file}; restore it, or use another version")
        self._workplace.require_there()
        raise UnknownDictionary(f"{name}@{version} has been removed")

    def _read_if_there(self, name: str, version: int, file: str) -> bytes | None:
        """What the disk does not give now is not damaged for that: it may the next time."""
        try:
            return read_regular(self._directory(name, version) / file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except NoRegularFile as error:
            said = f"{file} of {name}@{version} cannot be read ({error})"
            raise DictionaryDamaged(f"{said}; restore it, or use another version") from None
        except OSError as error:
            raise as_store_error(error, f"{file} of {name}@{version}") from error

    def strays(self) -> Iterator[tuple[str, str]]:
        """Entries that no service made, and what they are."""
        with store_errors(), os.scandir(self._root) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            where = entry.name
            if where.startswith("."):
                continue  # the store's own
            if entry.is_symlink():
                yield where, "a symbolic link; dictionaries are directories"
            elif not entry.is_dir(follow_symlinks=False):
                yield where, "a file; dictionaries are directories"
            elif not _is_name(where):
                yield where, "not a dictionary's name"
            else:
                try:
                    known, inside = {str(version) for version in self.versions(where)}, sorted(os.listdir(entry))
                except (StoreUnavailable, OSError) as error:
                    yield where, f"a directory that cannot be read ({error})"
                    continue
                for inner in inside:
                    if inner not in known and not inner.startswith("."):
                        yield f"{where}/{inner}", "not a version's directory"

    # -- writing ------------------------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        files: Mapping[str, Hashed],
        meta: Callable[[int], bytes],
        earlier: Callable[[], int | None],
        require: Callable[[], object],
        *,
        only_first: bool,
    ) -> int:
        staged = self._workplace.staging / self._workplace.owned_name()
        try:
            with store_errors():
                self.require_free(name)
                staged.mkdir()
                for file, hashed in files.items():
                    write_durably(staged / file, hashed.content)
                return self._claim_version(staged, name, meta, earlier, require, only_first)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _claim_version(
        self,
        staged: Path,
        name: str,
        meta: Callable[[int], bytes],
        earlier: Callable[[], int | None],
        require: Callable[[], object],
        only_first: bool,
    ) -> int:
        """Rename into the version after the highest that there is or was, whatever has that number."""
        directory = self._root / name
        with self._workplace.alone():
            if (published := earlier()) is not None:
                return published
            if only_first and self.versions(name):
                raise not_the_first(name)
            require()
            directory.mkdir(exist_ok=True)
            version = max((self._highest.get(name, 0), *_numbers(directory))) + 1
            write_durably(staged / META_FILE, meta(version))
            fsync_directory(staged)
            staged.rename(directory / str(version))
            self._note(name, [version])
            fsync_directory(directory)
        fsync_directory(self._root)
        return version

    def relabel(self, name: str, version: int, change: Callable[[bytes | None], bytes]) -> None:
        directory = self._directory(name, version)
        with store_errors(), self._workplace.alone():
            labels = change(self.labels(name, version))
            try:
                self._workplace.replace(directory / LABELS_FILE, labels)
            except FileNotFoundError:
                if directory.is_dir():
                    raise
                self._workplace.require_there()
                raise UnknownDictionary(f"{name}@{version} has been removed") from None

    def remove(self, name: str, versions: Iterable[int], require: Callable[[], object]) -> None:
        """Nothing is written, so that a full disk can be given room this way."""
        directory = self._root / name
        with store_errors(), self._workplace.alone():
            require()
            for version in versions:
                with suppress(FileNotFoundError):  # somebody else removed it first
                    self._directory(name, version).rename(directory / f"{REMOVED}{version}")
            fsync_directory(directory)
            removed = _removed(directory)
            try:
                for _, path in removed:
                    _empty(path)
                for _, path in removed[:-1]:
                    path.rmdir()
            except OSError as error:  # they are removed all the same; the next removal tries again
                logger.warning("what is left of removed versions of %s stays in the store: %s", name, error)

    def set_aside(self, name: str, version: int) -> Path:
        directory, quarantine = self._root / name, self._workplace.quarantine
        with store_errors(), self._workplace.alone():
            quarantine.mkdir(exist_ok=True)
            aside = quarantine / f"{name}@{version}.{secrets.token_hex(4)}"
            (directory / f"{REMOVED}{version}").mkdir(exist_ok=True)
            self._directory(name, version).rename(aside)
            fsync_directory(directory)
            fsync_directory(quarantine)
        return aside


def _directory_of(name: str) -> str:
    return f"the directory of {name}"


def not_the_first(name: str) -> PreconditionFailed:
    return PreconditionFailed(f"there is a dictionary {name!r}; without If-None-Match this is its next version")


def _number(entry: str) -> int | None:
    """Which version's an entry of a name's directory is, or was."""
    text = entry.removeprefix(REMOVED)
    return int(text) if VERSION.fullmatch(text) else None


def _numbers(directory: Path) -> list[int]:
    return [number for entry in os.listdir(directory) if (number := _number(entry)) is not None]


def _removed(directory: Path) -> list[tuple[int, Path]]:
    """Numbers and directories of a name's removed versions, ascending."""
    with os.scandir(directory) as entries:
        return sorted(
            (number, Path(entry.path))
            for entry in entries
            if entry.name.startswith(REMOVED) and entry.is_dir(follow_symlinks=False)
            if (number := _number(entry.name)) is not None
        )


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except ValueError:
        return False
    return True
