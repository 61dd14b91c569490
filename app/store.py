"""The model store: ``<root>/<name>/<version>/dictionary.safetensors`` and ``meta.json``.

A version appears whole or not at all (staged, fsynced, renamed) and is never changed after. What the service
itself needs lies beside the dictionaries in ``.dictserve/``, a name that no dictionary can have. Several processes
may share a store: each marks what it stages as its own, and only what dead ones left (``app.leases``) is swept.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError

from app.errors import AppError, DictionaryDamaged, NameTaken, StoreFull, StoreUnavailable, UnknownDictionary

K = TypeVar("K")
V = TypeVar("V")

FORMAT = 1
TENSOR = "dictionary"
WEIGHTS_FILE = "dictionary.safetensors"
META_FILE = "meta.json"
LABELS_FILE = "labels.json"

# A directory that changed less than this before it was listed may change again without its time telling: file systems
# count time in steps, the coarsest of 2 s.
SETTLED_NS = 3 * 10**9
KEPT = 4096  # records, and lists of versions, kept in memory

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
REMOVED = ".removed-"  # and a version: its empty directory, which stays so that the number is not given twice


def check_name(name: str) -> str:
    """A dictionary's name, or ValueError with what would be right."""
    if _NAME.fullmatch(name) is None or name.endswith("."):
        raise ValueError(
            f"{name[:60]!r} is not a name: 1 to 128 letters, digits, `.`, `_` or `-`, "
            "the first a letter or digit, the last no dot"
        )
    return name


@dataclass(frozen=True)
class Reference:
    """``name`` (the latest version) or ``name@version``, as clients write it."""

    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        name, at, version = text.partition("@")
        check_name(name)
        if not at:
            return cls(name)
        if _VERSION.fullmatch(version) is None:
            raise ValueError(f"{version[:20]!r} is not a version: a whole number from 1, as in `{name}@3`")
        return cls(name, int(version))

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


class DictionaryRecord(BaseModel):
    """What is told of one version of a dictionary."""

    format: int = FORMAT
    name: str
    version: int
    versions: list[int] = Field(default_factory=list, description="All versions of the name.")
    nb_concepts: int
    n_features: int
    created_at: str
    sha256: str = Field(description="SHA-256 of the weights file.")
    parameters: dict[str, Any] = Field(description="What the fit was told.")
    data: dict[str, Any] = Field(description="Shape and hash of the activations.")
    metrics: dict[str, Any] = Field(description="How good the dictionary is.")
    loss_history: list[tuple[int, float]] = Field(default_factory=list)
    seconds: float | None = Field(None, description="How long the fit took.")
    software: dict[str, str] = Field(description="Versions of what made it.")
    job: str | None = Field(None, description="Id of the job that made it; none for an imported dictionary.")
    labels: dict[str, str] = Field(default_factory=dict, description="What people have noted of it.")
    concept_labels: dict[int, str] = Field(default_factory=dict, description="What people call its concepts.")


class Labels(BaseModel):
    """The one part of a version that changes: it has a file of its own."""

    labels: dict[str, str] = Field(default_factory=dict)
    concept_labels: dict[int, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Listing:
    """The versions of a name, ascending, and the state of the directory that they were found in."""

    inode: int
    changed_ns: int
    versions: list[int]


class Store:
    """The dictionaries under one root. Methods block on the disk; call them from a thread where that matters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private = root / ".dictserve"
        self.activations = self.private / "activations"
        self.checkpoints = self.private / "checkpoints"
        self.database = self.private / "jobs.sqlite3"  # of the jobs, where no other is set
        self.quarantine = self.private / "quarantine"
        self.staging = self.private / "staging"
        self._owners = self.private / "owners"
        self._owner_lock: IO[str] | None = None
        self.owner = _new_owner()
        self._records: dict[tuple[str, int], DictionaryRecord] = {}
        self._listings: dict[str, _Listing] = {}

    # -- life ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the directories, and the lock by which others on this machine see this process die."""
        with store_errors():
            for directory in (self.activations, self.checkpoints, self.staging, self._owners):
                directory.mkdir(parents=True, exist_ok=True)
            with self._alone():  # nobody is to find the file before it is locked
                # The lock lives as long as the process, whatever ends it: the kernel lets go of it.
                self._owner_lock = (self._owners / self.owner).open("w")
                fcntl.flock(self._owner_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        if self._owner_lock is not None:
            self._owner_lock.close()
            self._owner_lock = None
            with suppress(OSError):  # the disk may be gone or read-only; the next start's sweep takes it then
                (self._owners / self.owner).unlink(missing_ok=True)

    def rename_owner(self) -> None:
        """Go on as another: what has the old name is as a dead process's."""
        self.close()
        self.owner = _new_owner()
        self.open()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the store to oneself among all threads and processes; the kernel lets go of a dead one's lock."""
        with (self.private / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def lock_is_free(self, owner: str) -> bool:
        """Whether the process that called itself this was on this machine and is dead. False where its lock does not
        tell: it was on another machine, or had another store."""
        if owner.partition("-")[0] != MACHINE:
            return False
        with store_errors():
            try:
                with (self._owners / owner).open() as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may ask at the same time
            except (BlockingIOError, FileNotFoundError):
                return False
        return True

    def sweep(self, alive: Callable[[], set[str]]) -> None:
        """Remove what dead processes have staged, their locks, and what is left of versions that they removed.

        Args:
            alive: asked after what there is was listed, so that what is new is some living owner's.
        """
        with store_errors(), self._alone():
            staged, locks = list(self.staging.iterdir()), list(self._owners.iterdir())
            owners = alive()
            for leaving in staged:
                if owner_of(leaving) not in owners:
                    # Its owner may live after all: it must publish this whole or not at all.
                    with suppress(FileNotFoundError):
                        swept = leaving.rename(self.staging / self.owned_name())
                        shutil.rmtree(swept) if swept.is_dir() else swept.unlink()
            for lock in locks:
                if lock.name not in owners and not self._is_starting(lock.name):
                    lock.unlink(missing_ok=True)
            for name in self._directories():
                for _, removed in _removed(self.root / name):
                    _empty(removed)  # whoever removed it died before

    def _is_starting(self, owner: str) -> bool:
        """Whether an owner without a lease is a process of this machine, which will have one soon."""
        return owner.partition("-")[0] == MACHINE and not self.lock_is_free(owner)

    # -- reading ------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        with store_errors():
            return [name for name in self._directories() if self.versions(name)]

    def _directories(self) -> list[str]:
        with os.scandir(self.root) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and _NAME.fullmatch(e.name))

    def versions(self, name: str) -> list[int]:
        """The versions of a name, ascending; none where there is no such dictionary.

        A list once made is kept until its directory changes, whichever process changes it.
        """
        directory = f"{self.root}/{name}"
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
                    int(e.name) for e in entries if _VERSION.fullmatch(e.name) and e.is_dir(follow_symlinks=False)
                )
        except (FileNotFoundError, NotADirectoryError) as error:
            self._listings.pop(name, None)
            if not self.root.is_dir():  # what is gone with the whole store may come back with it
                raise _told(error) from error
            return []
        except OSError as error:
            raise _told(error) from error
        if now_ns - found.st_ctime_ns > SETTLED_NS:
            _keep(self._listings, name, _Listing(found.st_ino, found.st_ctime_ns, versions.copy()))
        return versions

    def require_free(self, name: str) -> None:
        """Raises NameTaken where something else than dictionaries has the name. No link is followed."""
        directory = self.root / name
        if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
            raise NameTaken(f"the store has something called {name!r} that is no dictionary; use another name")

    def resolve(self, reference: Reference) -> tuple[str, int]:
        """Name and version that a reference means now."""
        versions = self.versions(reference.name)
        if not versions:
            raise UnknownDictionary(f"there is no dictionary {reference.name!r}; GET /dictionaries lists them")
        if reference.version is None:
            return reference.name, versions[-1]
        if reference.version not in versions:
            known = ", ".join(map(str, versions[-20:]))
            raise UnknownDictionary(f"{reference.name!r} has no version {reference.version}; it has {known}")
        return reference.name, reference.version

    def record(self, reference: Reference) -> DictionaryRecord:
        """The record of a version, kept in memory once read: versions are immutable."""
        name, version = self.resolve(reference)
        known = self._records.get((name, version))
        if known is None:
            known = self._read_record(name, version)
            _keep(self._records, (name, version), known)
        return known

    def described(self, reference: Reference) -> DictionaryRecord:
        """The record with what changes with time: the name's versions, and the labels."""
        record = self.record(reference)
        return record.model_copy(
            update={"versions": self.versions(record.name), **vars(self.labels(record.name, record.version))}
        )

    def labels(self, name: str, version: int) -> Labels:
        try:
            return Labels.model_validate_json(_read_regular(self._directory(name, version) / LABELS_FILE))
        except FileNotFoundError:
            return Labels()
        except (ValidationError, _Unreadable):
            raise DictionaryDamaged(
                f"{LABELS_FILE} of {name}@{version} cannot be read; restore or remove it"
            ) from None
        except OSError as error:
            raise _told(error) from error

    def _read_record(self, name: str, version: int) -> DictionaryRecord:
        where = f"{name}@{version}"
        try:
            record = DictionaryRecord.model_validate_json(self._read(name, version, META_FILE))
        except ValidationError:
            raise DictionaryDamaged(
                f"{META_FILE} of {where} cannot be read; restore it, or use another version"
            ) from None
        if (record.format, record.name, record.version) != (FORMAT, name, version):
            raise DictionaryDamaged(
                f"{META_FILE} of {where} tells of {record.name}@{record.version} in format {record.format}"
            )
        return record

    def load(self, name: str, version: int) -> np.ndarray:
        """D, float32 of shape (nb_concepts, n_features), after its checksum was found to hold."""
        record = self.record(Reference(name, version))
        where = f"{name}@{version}"
        weights = self._read(name, version, WEIGHTS_FILE)
        if hashlib.sha256(weights).hexdigest() != record.sha256:
            raise DictionaryDamaged(
                f"{WEIGHTS_FILE} of {where} is not what was written (its SHA-256 differs); "
                "restore it, or use another version"
            )
        try:
            D = safetensors.numpy.load(weights)[TENSOR]
        except (SafetensorError, KeyError):
            raise DictionaryDamaged(f"{WEIGHTS_FILE} of {where} holds no tensor {TENSOR!r}") from None
        if D.shape != (record.nb_concepts, record.n_features) or D.dtype != np.float32:
            raise DictionaryDamaged(f"{WEIGHTS_FILE} of {where} does not hold what its {META_FILE} tells of")
        return D

    def _directory(self, name: str, version: int) -> Path:
        return self.root / name / str(version)

    def _read(self, name: str, version: int, file: str) -> bytes:
        """A file that every version has. One without it is damaged; one that is no longer there has been removed."""
        directory = self._directory(name, version)
        with store_errors():
            try:
                return _read_regular(directory / file)
            except (FileNotFoundError, NotADirectoryError):
                if directory.is_dir():
                    raise DictionaryDamaged(
                        f"{name}@{version} has no {file}; restore it, or use another version"
                    ) from None
            except _Unreadable as error:
                told = f"{file} of {name}@{version} cannot be read ({error})"
                raise DictionaryDamaged(f"{told}; restore it, or use another version") from None
        self._records.pop((name, version), None)
        raise UnknownDictionary(f"{name}@{version} has been removed")

    def owned_name(self) -> str:
        """A new name for what this process stages: others can tell whose it is (``owner_of``)."""
        return f"{self.owner}.{secrets.token_hex(8)}"

    # -- writing ------------------------------------------------------------------------------------------

    def publish(self, name: str, D: np.ndarray, **told: Any) -> DictionaryRecord:
        """Write D as the next version of a name; when this returns it is durable.

        Args:
            D: float32 of shape (nb_concepts, n_features).
            told: the record's other fields (``parameters``, ``metrics``, …).
        """
        check_name(name)
        staged = self.staging / self.owned_name()
        try:
            with store_errors():
                self.require_free(name)
                staged.mkdir()
                weights = safetensors.numpy.save({TENSOR: np.ascontiguousarray(D)})
                _write_durably(staged / WEIGHTS_FILE, weights)
                record = DictionaryRecord(
                    name=name,
                    version=0,
                    nb_concepts=D.shape[0],
                    n_features=D.shape[1],
                    created_at=now(),
                    sha256=hashlib.sha256(weights).hexdigest(),
                    **told,
                )
                return self._claim_version(staged, self.root / name, record)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _claim_version(self, staged: Path, directory: Path, record: DictionaryRecord) -> DictionaryRecord:
        """Rename into the version after the highest that there is or was, whatever has that number."""
        with self._alone():
            if record.job is not None and (earlier := self.made_by(record.name, record.job)):
                return earlier  # of an attempt that was thought dead
            directory.mkdir(exist_ok=True)
            version = max(_numbers(directory), default=0) + 1
            record = record.model_copy(update={"version": version})
            meta = record.model_dump_json(indent=1, exclude={"versions", "labels", "concept_labels"}).encode()
            _write_durably(staged / META_FILE, meta)
            fsync_directory(staged)
            staged.rename(directory / str(version))
            fsync_directory(directory)
        fsync_directory(self.root)
        return record

    def relabel(self, name: str, version: int, change: Callable[[Labels], Labels]) -> None:
        """Change a version's labels, which nobody else does meanwhile; durable when this returns."""
        directory = self._directory(name, version)
        with store_errors(), self._alone():
            labels = change(self.labels(name, version))
            try:
                self._replace(directory / LABELS_FILE, labels.model_dump_json(indent=1).encode())
            except FileNotFoundError:
                if not self.root.is_dir() or directory.is_dir():
                    raise
                raise UnknownDictionary(f"{name}@{version} has been removed") from None

    def remove(self, name: str, versions: Iterable[int]) -> None:
        """Remove versions: each is gone at once for readers, and its number is not given again.

        Nothing is written, so that a full disk can be given room this way.
        """
        directory = self.root / name
        with store_errors(), self._alone():
            for version in versions:
                with suppress(FileNotFoundError):  # somebody else removed it first
                    self._directory(name, version).rename(directory / f"{REMOVED}{version}")
                self._records.pop((name, version), None)
            fsync_directory(directory)
            removed = _removed(directory)
            for _, path in removed:
                _empty(path)
            for _, path in removed[:-1]:
                path.rmdir()

    def set_aside(self, name: str, version: int) -> Path:
        """Take a version out of the readers' sight, as `remove` does, but keep it: where it is from now on."""
        directory = self.root / name
        with store_errors(), self._alone():
            self.quarantine.mkdir(exist_ok=True)
            aside = self.quarantine / f"{name}@{version}.{secrets.token_hex(4)}"
            (directory / f"{REMOVED}{version}").mkdir(exist_ok=True)
            self._directory(name, version).rename(aside)
            self._records.pop((name, version), None)
            fsync_directory(directory)
            fsync_directory(self.quarantine)
        return aside

    def _replace(self, path: Path, content: bytes) -> None:
        """Write a file so that readers see the old content or the new, whatever happens."""
        staged = self.staging / self.owned_name()
        try:
            _write_durably(staged, content)
            staged.rename(path)
            fsync_directory(path.parent)
        finally:
            staged.unlink(missing_ok=True)

    def made_by(self, name: str, job: str) -> DictionaryRecord | None:
        """The version of a name that a job has published, if it came that far; damaged ones made none."""
        for version in reversed(self.versions(name)):
            try:
                record = self.record(Reference(name, version))
            except AppError:
                continue
            if record.job == job:
                return record
        return None


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) >= KEPT:
        kept.clear()
    kept[key] = value


def _number(entry: str) -> int | None:
    """Which version's an entry of a name's directory is, or was."""
    text = entry.removeprefix(REMOVED)
    return int(text) if _VERSION.fullmatch(text) else None


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


class _Unreadable(Exception):
    """A file is there, and cannot be read."""


def _read_regular(path: Path) -> bytes:
    """What is in a file; a link that somebody has planted is not followed, and a pipe not waited for.

    Raises:
        _Unreadable: it is no file, or the disk does not give it.
        OSError: of other kinds, above all FileNotFoundError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _Unreadable("it is no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO, errno.ENXIO):
            raise _Unreadable(os.strerror(error.errno)) from None
        raise


def _machine() -> str:
    """What tells this machine, since it was started, from others: as long as one kernel keeps its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return secrets.token_hex(4)  # then a process shares its machine with nobody, and locks tell nothing


MACHINE = _machine()


def _new_owner() -> str:
    return f"{MACHINE}-{os.getpid()}-{secrets.token_hex(6)}"


def owner_of(staged: Path) -> str:
    """Whose a staged file or directory is: its name begins with the owner's."""
    return staged.name.partition(".")[0]


def now() -> str:
    return timestamp(datetime.now(UTC))


def timestamp(time: datetime) -> str:
    """A time as it stands in records; they sort as text."""
    return time.isoformat(timespec="milliseconds")


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def store_errors() -> Iterator[None]:
    """Tell the disk's errors as the store's."""
    try:
        yield
    except OSError as error:
        raise _told(error) from error


def _told(error: OSError) -> StoreUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("the store's disk is full; nothing was written")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreUnavailable(f"the store cannot be used: {reason}")
