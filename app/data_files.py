"""Fits from files: which npy files of the data directory a request means, and their rows, read without trust.

Nothing leads out of the directory: patterns with a root or `..` are refused, and so is a file whose real path, asked
of the kernel once the file is open, lies elsewhere. Files are read, never mapped: one that is cut short under a
mapping would kill this process.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from app.errors import DataChanged, InvalidFields, MalformedBody
from app.formats import npy_format
from app.settings import Settings
from core.checks import check_scale, check_size, check_values, converted
from core.errors import WrongShape

SLICE_BYTES = 16 * 1024 * 1024  # read, checked and handed on at a time


@dataclass(frozen=True)
class DataFile:
    """A file as it was when its fit was accepted."""

    name: str  # from the data directory on
    rows: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Named:
    """Activations that files hold, rows in the order of the files; to be staged in ``file`` when their fit starts."""

    file: str
    patterns: list[str]
    clip: bool
    rows: int
    n_features: int
    files: list[DataFile]

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Named":
        return cls(**record | {"files": [DataFile(**told) for told in record["files"]]})

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def identity(self) -> list[Any]:
        """What tells two requests apart. Files may change between a request and its retry, which stay one."""
        return [self.patterns, self.clip]


@dataclass(frozen=True)
class _Open:
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


class DataFiles:
    """The npy files that fits may read. Methods block on the disk; call them from a thread."""

    def __init__(self, settings: Settings) -> None:
        self._root = None if settings.data_dir is None else settings.data_dir.resolve()
        self._settings = settings

    def find(self, patterns: Sequence[str], *, clip: bool, stage_as: str) -> Named:
        """What patterns mean now: names and headers are checked, values are not read.

        Raises:
            InvalidFields: fits from files are off; a pattern is none, matches nothing or too much; a file leads out
                of the directory, is no npy of activations, or does not go with the ones before it.
        """
        settings, files = self._settings, []
        rows = n_features = 0
        for name in self._matches(patterns):
            try:
                with self._opened(name) as file:
                    files.append(DataFile(name, file.rows, file.size, file.mtime_ns))
                    width = file.n_features
            except (OSError, MalformedBody, WrongShape) as error:
                raise InvalidFields.at("files", msg=f"{name}: {_reason(error)}") from None
            if width > settings.max_features:
                msg = f"{name} has {width} columns; at most {settings.max_features} are taken"
                raise InvalidFields.at("files", msg=msg)
            if n_features and width != n_features:
                msg = f"{name} has {width} columns, but {files[0].name} has {n_features}"
                raise InvalidFields.at("files", msg=msg)
            n_features, rows = width, rows + files[-1].rows
            if rows > settings.max_file_rows:
                msg = f"more than {settings.max_file_rows} rows together, from {name} on; at most so many are taken"
                raise InvalidFields.at("files", msg=msg)
        return Named(stage_as, list(patterns), clip, rows, n_features, files)

    def blocks(self, named: Named) -> Iterator[np.ndarray]:
        """The rows of all files in order, in blocks: checked, float32 and C order.

        Raises:
            DataChanged: a file is not what it was when the fit was accepted.
            InvalidArray: a value is not finite, negative (unless clipped) or beyond float32; tells file and place.
        """
        largest = 0.0
        for expected in named.files:
            try:
                with self._opened(expected.name) as file:
                    _require_unchanged(file, expected, named.n_features)
                    for block, high in _checked_blocks(file, clip=named.clip):
                        largest = max(largest, high)
                        yield block
                    _require_same(os.fstat(file.descriptor), expected)
            except (OSError, MalformedBody, WrongShape) as error:
                raise DataChanged(f"{expected.name} can no longer be read: {_reason(error)}") from None
        check_scale(largest, name="activations")

    def _matches(self, patterns: Sequence[str]) -> list[str]:
        """Names of the files that match: by pattern, in the order of their names; each once."""
        root, limit = self._directory(), self._settings.max_files
        names: dict[str, None] = {}
        for index, pattern in enumerate(patterns):
            told, parts = repr(pattern[:60]), PurePosixPath(pattern).parts
            if not parts or ".." in parts or pattern.startswith("/") or not pattern.isprintable():
                msg = f"{told} is not taken: patterns are relative to the data directory, without `..`"
                raise InvalidFields.at("files", index, msg=msg)
            found: set[str] = set()
            try:
                for path in root.glob(pattern):
                    if path.is_file():
                        found.add(path.relative_to(root).as_posix())
                    if len(found) > limit:
                        break
            except (OSError, ValueError) as error:
                raise InvalidFields.at("files", index, msg=f"{told}: {_reason(error)}") from None
            if not found:
                raise InvalidFields.at("files", index, msg=f"{told} matches no file of the data directory")
            names.update(dict.fromkeys(sorted(found)))
            if len(names) > limit:
                raise InvalidFields.at("files", index, msg=f"more than {limit} files; at most so many are taken")
        return list(names)

    def _directory(self) -> Path:
        if self._root is None:
            msg = "fits from files are off here; whoever runs the service turns them on with DICTSERVE_DATA_DIR"
            raise InvalidFields.at("files", msg=msg)
        return self._root

    @contextmanager
    def _opened(self, name: str) -> Iterator[_Open]:
        root = self._directory()
        outside = InvalidFields.at("files", msg=f"{name} leads out of the data directory")
        path = root / name
        if not path.resolve().is_relative_to(root):  # not even opened
            raise outside
        # Without waiting: a pipe would have no end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            # Somebody may have put a link there meanwhile: what counts is what was opened.
            if not Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(root):
                raise outside
            yield _with_header(name, descriptor)
        finally:
            os.close(descriptor)


def _with_header(name: str, descriptor: int) -> _Open:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise MalformedBody("not a regular file")
    header = npy_format.parse_header(os.pread(descriptor, npy_format.PREFIX_BYTES + npy_format.MAX_HEADER_BYTES, 0))
    check_size(header.shape, width_name="features", name="activations")
    if status.st_size != header.data_offset + header.data_bytes:
        raise MalformedBody(
            f"its header tells of shape {header.shape} and dtype {header.dtype.str!r}, {header.data_bytes} bytes, "
            f"but {status.st_size - header.data_offset} follow it"
        )
    return _Open(name, descriptor, header, status.st_size, status.st_mtime_ns)


def _checked_blocks(file: _Open, *, clip: bool) -> Iterator[tuple[np.ndarray, float]]:
    """Blocks of a file's rows, and the largest value of each."""
    step = max(1, SLICE_BYTES // (file.n_features * max(4, file.header.dtype.itemsize)))
    for start in range(0, file.rows, step):
        rows = range(start, min(start + step, file.rows))
        block = file.read(rows)
        largest = check_values(
            block,
            clip=clip,
            name=f"rows {rows.start} to {rows.stop - 1} of {file.name}",
            place=partial(_in_file, start),
        )
        yield converted(block, clip=clip), largest


def _in_file(start: int, position: tuple[int, int]) -> tuple[int, int]:
    """A position in a block that begins at row ``start``, as one in the file."""
    return start + position[0], position[1]


def _require_unchanged(file: _Open, expected: DataFile, n_features: int) -> None:
    _require_same(os.fstat(file.descriptor), expected)
    if (file.rows, file.n_features) != (expected.rows, n_features):
        raise DataChanged(f"{expected.name} has changed since the fit was accepted; fit again")


def _require_same(status: os.stat_result, expected: DataFile) -> None:
    if (status.st_size, status.st_mtime_ns) != (expected.size, expected.mtime_ns):
        raise DataChanged(f"{expected.name} has changed since the fit was accepted; fit again")


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
