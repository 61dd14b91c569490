"""Files on the disk: written so that they last, read without trust, and the disk's errors told as the store's."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import StoreFull, StoreUnavailable

LOCK_SECONDS = 5.0  # for which a lock is waited for: nobody who is at work has it for as long
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.0005, 0.02  # between two looks whether it is free

NO_FILE = (errno.ELOOP, errno.ENXIO)  # a link or a socket is in a file's place; the disk's other errors may pass


class NoRegularFile(Exception):
    """Something else is in a file's place, and will be whenever it is read."""


def open_regular(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A file's descriptor; a link that somebody has planted is not followed, and a pipe not waited for. For `open`'s
    ``opener``.

    Raises:
        NoRegularFile: it is no file.
        OSError: of other kinds, above all FileNotFoundError; or the disk does not give it now.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in NO_FILE:
            raise NoRegularFile(os.strerror(error.errno)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoRegularFile("it is no regular file")
    return descriptor


def read_regular(path: Path) -> bytes:
    """What is in a file; raises as ``open_regular`` does."""
    with open(path, "rb", opener=open_regular) as file:
        return file.read()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that is not there yet: what somebody has planted by its name is not followed."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have a lock to oneself among all threads and processes; the kernel lets go of a dead one's.

    Raises:
        StoreUnavailable: somebody else has it for very long: a process that has been stopped, say, with whom all
            others are not to stand still.
        OSError: of the file.
    """
    deadline, pause = time.monotonic() + LOCK_SECONDS, FIRST_PAUSE_SECONDS
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"another process has kept the store locked for {LOCK_SECONDS:g} s; it may have been stopped"
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)
        yield


@contextmanager
def store_errors() -> Iterator[None]:
    """Tell the disk's errors as the store's."""
    try:
        yield
    except OSError as error:
        raise as_store_error(error) from error


def as_store_error(error: OSError, of: str = "") -> StoreUnavailable:
    """As the store's, or as that of one thing in it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("the store's disk is full; nothing was written")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    what = f"{of} cannot be read" if of else "the store cannot be used"
    return StoreUnavailable(f"{what}: {reason}")
