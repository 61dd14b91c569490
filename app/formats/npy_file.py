"""An npy file, read without trust: never mapped, for one that is cut short under a mapping kills its reader."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import AppError, DataChanged, DataUnavailable, MalformedBody
from app.formats import npy_format
from core.checks import activations_form, check_values, converted
from core.errors import WrongShape

# Of a disk, or a network's, that does not answer.
AWAY = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENODEV,
    errno.EREMOTEIO,
}


class LeadsOut(Exception):
    """The file lies outside of its directory."""


@dataclass(frozen=True)
class DataFile:
    """A file as it was when its fit was accepted."""

    name: str  # from the data directory on
    rows: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class NpyFile:
    """An open npy file, its header checked."""

    name: str
    descriptor: int
    header: npy_format.Header
    size: int
    mtime_ns: int

    @property
    def rows(self) -> int:
        return self.header.shape[0]

    @property
    def n_features(self) -> int:
        return self.header.shape[1]

    def read(self, rows: range) -> np.ndarray:
        """Some rows (len(rows), n_features), in the file's own dtype and order.

        Raises:
            DataChanged: the file ends before them.
        """
        header, itemsize = self.header, self.header.dtype.itemsize
        if not header.fortran_order:
            block = np.empty((len(rows), self.n_features), header.dtype)
            self._fill(block.reshape(-1), header.data_offset + rows.start * self.n_features * itemsize)
            return block
        columns = np.empty((self.n_features, len(rows)), header.dtype)
        for index, column in enumerate(columns):
            self._fill(column, header.data_offset + (index * self.rows + rows.start) * itemsize)
        return columns.T

    def _fill(self, values: np.ndarray, offset: int) -> None:
        view = values.view(np.uint8).data
        while view:
            count = os.preadv(self.descriptor, [view], offset)
            if count == 0:
                raise DataChanged(f"{self.name} has become shorter; fit again once it is whole")
            view, offset = view[count:], offset + count

    def read_checked(self, rows: range, *, clip: bool) -> tuple[np.ndarray, float]:
        """Some rows in float32 and C order, and their largest value.

        Raises:
            DataChanged: the file ends before them.
            InvalidArray: a value is not finite, negative (unless clipped) or beyond float32; tells file and place.
        """
        block = self.read(rows)
        name = f"rows {rows.start} to {rows.stop - 1} of {self.name}"
        largest = check_values(block, clip=clip, name=name, place=lambda at: (rows.start + at[0], at[1]))
        return converted(block, clip=clip), largest

    def require_unchanged(self, expected: DataFile, n_features: int) -> None:
        """Raises DataChanged where it is not what it was, as far as its size and its times tell."""
        status = os.fstat(self.descriptor)
        told = status.st_size, status.st_mtime_ns, self.rows, self.n_features
        if told != (expected.size, expected.mtime_ns, expected.rows, n_features):
            raise DataChanged(f"{expected.name} has changed since the fit was accepted; fit again")


@contextmanager
def opened(root: Path, name: str) -> Iterator[NpyFile]:
    """The file of this name in a directory whose real path is ``root``.

    Raises:
        LeadsOut, OSError.
        MalformedBody, WrongShape: it is no npy of activations.
    """
    path = root / name
    _require_inside(root, name, os.path.realpath(path))  # else it is not even opened
    # Without waiting: a pipe would have no end.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # Somebody may have put a link there meanwhile: what counts is what was opened.
        if not _is_inside(root, os.readlink(f"/proc/self/fd/{descriptor}")):
            _require_inside(root, name, os.path.realpath(path, strict=True))
            # What has this name lies where it should: the directory was away just now, and this with it.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        yield _with_header(name, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def unchanged(root: Path, expected: DataFile, n_features: int) -> Iterator[NpyFile]:
    """A file of a fit that was accepted, which is what it was then: as it is opened, and once it has been read.

    Raises:
        DataChanged: it is not.
        DataUnavailable: the directory is away.
    """
    try:
        with opened(root, expected.name) as file:
            file.require_unchanged(expected, n_features)
            yield file
            file.require_unchanged(expected, n_features)
    except (LeadsOut, OSError, MalformedBody, WrongShape) as error:
        raise unreadable(root, expected.name, error) from None


def _require_inside(root: Path, name: str, path: str) -> None:
    if not _is_inside(root, path):
        raise LeadsOut(f"{name} leads out of the data directory")


def _is_inside(root: Path, path: str) -> bool:
    return Path(path).is_relative_to(root)


def unreadable(root: Path, name: str, error: Exception) -> AppError:
    """What is to be said of a file of a fit that was accepted."""
    if _is_away(root, name, error):
        return DataUnavailable(f"{name} cannot be read now: {reason(error)}")
    return DataChanged(f"{name} can no longer be read: {reason(error)}")


def _is_away(root: Path, name: str, error: Exception) -> bool:
    """Whether it may be for the directory, or what is mounted there, that a file cannot be read: it is not there at
    all, or there is nothing in it, or its disk does not answer. A file that is missed among others is gone."""
    if not isinstance(error, OSError):
        return False
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return error.errno in AWAY
    return _is_empty(root, or_absent=True) or _is_empty((root / name).parent, or_absent=False)


def _is_empty(directory: Path, *, or_absent: bool) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return or_absent
    except OSError:
        return True


def reason(error: Exception) -> str:
    """Why a file cannot be read, without its path."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def _with_header(name: str, descriptor: int) -> NpyFile:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise MalformedBody("not a regular file")
    header = npy_format.parse_header(os.pread(descriptor, npy_format.HEAD_BYTES, 0))
    activations_form().check(header.shape)
    if status.st_size != header.data_offset + header.data_bytes:
        raise MalformedBody(
            f"its header tells of shape {header.shape} and dtype {header.dtype.str!r}, {header.data_bytes} bytes, "
            f"but {status.st_size - header.data_offset} follow it"
        )
    return NpyFile(name, descriptor, header, status.st_size, status.st_mtime_ns)
