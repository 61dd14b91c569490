"""What the service itself needs on this machine's disk: ``.dictserve/``, beside the dictionaries if those are here.

Several processes may share it: each marks what it stages as its own, and only what dead ones left
(``app.jobs.leases``) is swept.
"""

import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from app.errors import StoreReadOnly, StoreUnavailable
from app.store.disk import fsync_directory, locked, store_errors, write_durably

logger = logging.getLogger("dictserve")


class Workplace:
    """Methods block on the disk.

    Args:
        was_opened: by the service that has started this process: its directory was there.
    """

    def __init__(self, directory: Path, *, was_opened: bool = False) -> None:
        self.directory = directory
        self.activations = directory / "activations"
        self.checkpoints = directory / "checkpoints"
        self.database = directory / "jobs.sqlite3"  # of the jobs, where no other is set
        self.quarantine = directory / "quarantine"
        self.staging = directory / "staging"
        self._owners = directory / "owners"
        self._owner_lock: IO[str] | None = None
        self._was_opened = was_opened
        self.owner = _new_owner()

    def open(self) -> None:
        """Make the directories, and the lock by which others on this machine see this process die; once.

        Raises:
            StoreReadOnly: a service has made them, and nothing can be written: what is in the store can be read.
            StoreUnavailable: it cannot be used.
        """
        if self._owner_lock is not None:
            return
        try:
            with store_errors():
                for directory in (self.activations, self.checkpoints, self.staging, self._owners):
                    directory.mkdir(parents=True, exist_ok=True)
            self._was_opened = True
            self._lock_owner()
        except StoreUnavailable as error:
            is_read_only = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS
            if is_read_only and self.directory.is_dir():  # a backup may lack what is in it, which nobody has to read
                self._was_opened = True
                raise StoreReadOnly(str(error)) from error.__cause__
            raise

    def _lock_owner(self) -> None:
        with store_errors(), self.alone():  # nobody is to find the file before it is locked
            # The lock lives as long as the process, whatever ends it: the kernel lets go of it.
            file = (self._owners / self.owner).open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                file.close()
                raise
            self._owner_lock = file

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
        self._lock_owner()

    def require_there(self) -> None:
        """Raises StoreUnavailable where the store is away, or cannot be read. One that was opened has what only that
        makes: where its volume is not mounted any more there is an empty directory left in its place."""
        with store_errors(), os.scandir(self.directory if self._was_opened else self.directory.parent) as entries:
            if self._was_opened and next(entries, None) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have it to oneself among all threads and processes. Raises StoreUnavailable where that cannot be soon."""
        with locked(self.directory / "lock"):
            yield

    def lock_is_free(self, owner: str) -> bool:
        """Whether the process that called itself this was on this machine and is dead. False where its lock does not
        tell: it was on another machine, had another store, or was another user, whose files are not to be opened."""
        if owner.partition("-")[0] != MACHINE:
            return False
        with store_errors():
            try:
                with (self._owners / owner).open() as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may ask at the same time
            except (BlockingIOError, FileNotFoundError, PermissionError):
                return False
        return True

    def owned_name(self) -> str:
        """A new name for what this process stages: others can tell whose it is (``owner_of``)."""
        return f"{self.owner}.{secrets.token_hex(8)}"

    def replace(self, path: Path, content: bytes) -> None:
        """Write a file so that readers see the old content or the new, whatever happens."""
        staged = self.staging / self.owned_name()
        try:
            write_durably(staged, content)
            staged.rename(path)
            fsync_directory(path.parent)
        finally:
            staged.unlink(missing_ok=True)

    def sweep(self, alive: Callable[[], set[str]]) -> None:
        """Remove what dead processes have staged, and their locks.

        Args:
            alive: asked after what there is was listed, so that what is new is some living owner's.
        """
        with store_errors(), self.alone():
            staged, locks = list(self.staging.iterdir()), list(self._owners.iterdir())
            owners = alive()
            for leaving in staged:
                if owner_of(leaving) not in owners:
                    swept = self.staging / self.owned_name()
                    with _left_where_it_must_be(swept), suppress(FileNotFoundError):
                        # Its owner may live after all: it must publish this whole or not at all.
                        leaving.rename(swept)
                        shutil.rmtree(swept) if swept.is_dir() else swept.unlink()
            for lock in locks:
                if lock.name not in owners and not self._is_starting(lock.name):
                    with _left_where_it_must_be(lock):
                        lock.unlink(missing_ok=True)

    def _is_starting(self, owner: str) -> bool:
        """Whether an owner without a lease is a process of this machine, which will have one soon."""
        return owner.partition("-")[0] == MACHINE and not self.lock_is_free(owner)


@contextmanager
def _left_where_it_must_be(leaving: Path) -> Iterator[None]:
    """What cannot be removed, as another user's, is told of and left: it is to keep nobody from starting."""
    try:
        yield
    except OSError as error:
        logger.warning("%s, which a dead process has left, stays in the store: %s", leaving, error)


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
