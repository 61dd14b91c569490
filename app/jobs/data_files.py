"""Fits from files: which npy files of the data directory a request means, and their rows, read without trust.

Nothing leads out of the directory: patterns with a root or `..` are refused, and so is a file whose real path, asked
of the kernel once the file is open, lies elsewhere (``app.formats.npy_file``).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from app.errors import AppError, DataUnavailable, InvalidFields, MalformedBody
from app.formats.npy_file import DataFile, LeadsOut, opened, reason, unreadable
from app.settings import Settings
from app.worker.messages import Files
from core.checks import check_scale
from core.conventions import EPOCHS
from core.errors import WrongShape

SLICE_BYTES = 16 * 1024 * 1024  # read, checked and handed on at a time
MAX_PARTS = 100  # of a pattern
MAX_DEEP = 2  # times that one says `**`: a directory is looked into as often as they share out the way to it


@dataclass(frozen=True)
class Named:
    """Activations that files hold, rows in the order of the files.

    They are staged in ``file`` when their fit starts; those of an online fit, which has a number of epochs, are read
    in place.
    """

    file: str
    patterns: list[str]
    clip: bool
    rows: int
    n_features: int
    files: list[DataFile]
    epochs: int | None = None

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Named":
        return cls(**record | {"files": [DataFile(**told) for told in record["files"]]})

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def identity(self) -> list[Any]:
        return identity_of(self.patterns, self.clip)


def identity_of(patterns: list[str], clip: bool) -> list[Any]:
    """What tells two requests apart. Files may change between a request and its retry, which stay one."""
    return [patterns, clip]


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
            DataUnavailable: the directory is away.
        """
        settings, files = self._settings, []
        rows = n_features = 0
        for name in self._matches(patterns):
            try:
                with opened(self._directory(), name) as file:
                    files.append(DataFile(name, file.rows, file.size, file.mtime_ns))
                    width = file.n_features
            except LeadsOut as error:
                raise InvalidFields.at("files", msg=str(error)) from None
            except (OSError, MalformedBody, WrongShape) as error:
                raise self._refusal(name, error, "files", told=name) from None
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
            DataUnavailable: the directory is away.
            InvalidArray: a value is not finite, negative (unless clipped) or beyond float32; tells file and place.
        """
        largest = 0.0
        for expected in named.files:
            try:
                with opened(self._directory(), expected.name) as file:
                    file.require_unchanged(expected, named.n_features)
                    step = max(1, SLICE_BYTES // (file.n_features * max(4, file.header.dtype.itemsize)))
                    for start in range(0, file.rows, step):
                        rows = range(start, min(start + step, file.rows))
                        block, high = file.read_checked(rows, clip=named.clip)
                        largest = max(largest, high)
                        yield block
                    file.require_unchanged(expected, named.n_features)
            except LeadsOut as error:
                raise InvalidFields.at("files", msg=str(error)) from None
            except (OSError, MalformedBody, WrongShape) as error:
                raise unreadable(self._directory(), expected.name, error) from None
        check_scale(largest, name="activations")

    def in_place(self, named: Named) -> Files:
        """What the worker is told of the files of an online fit."""
        return Files(str(self._directory()), named.files, named.clip, named.epochs or 0)

    def online_epochs(self, named: Named, nb_concepts: int, epochs: int | None) -> int | None:
        """Of the fit of these files: as many as were asked for, else some where they, with their codes, are large;
        None: it is no online fit."""
        nbytes = named.rows * (named.n_features + nb_concepts) * np.dtype(np.float32).itemsize
        return EPOCHS if epochs is None and nbytes > self._settings.online_fit_bytes else epochs

    def _matches(self, patterns: Sequence[str]) -> list[str]:
        """Names of the files that match: by pattern, in the order of their names; each once."""
        root, limit = self._directory(), self._settings.max_files
        names: dict[str, None] = {}
        for index, pattern in enumerate(patterns):
            told = repr(pattern[:60])
            if (why := _why_not_taken(pattern)) is not None:
                raise InvalidFields.at("files", index, msg=f"{told} is not taken: {why}")
            found: set[str] = set()
            try:
                for path in root.glob(pattern):
                    if path.is_file():
                        found.add(path.relative_to(root).as_posix())
                    if len(found) > limit:
                        break
            except (OSError, ValueError) as error:
                raise self._refusal(pattern, error, "files", index, told=told) from None
            if not found:
                self._require_there()
                raise InvalidFields.at("files", index, msg=f"{told} matches no file of the data directory")
            if (unnamed := next((name for name in found if not _is_text(name)), None)) is not None:
                msg = f"{told} matches {unnamed!a}, whose name is not UTF-8; rename it"
                raise InvalidFields.at("files", index, msg=msg)
            names.update(dict.fromkeys(sorted(found)))
            if len(names) > limit:
                raise InvalidFields.at("files", index, msg=f"more than {limit} files; at most so many are taken")
        return list(names)

    def _require_there(self) -> None:
        """Raises DataUnavailable where the directory is away; one with nothing mounted is there, and empty."""
        try:
            with os.scandir(self._directory()) as entries:
                is_empty = next(entries, None) is None
        except OSError as error:
            raise DataUnavailable(f"the data directory cannot be read now: {reason(error)}") from None
        if is_empty:
            raise DataUnavailable("the data directory is empty now")

    def _refusal(self, name: str, error: Exception, *where: str | int, told: str) -> AppError:
        """What is to be said of a request for files that cannot be read: nothing against it while the directory is
        away."""
        away = unreadable(self._directory(), name, error)
        return away if isinstance(away, DataUnavailable) else InvalidFields.at(*where, msg=f"{told}: {reason(error)}")

    def _directory(self) -> Path:
        if self._root is None:
            msg = "fits from files are off here; whoever runs the service turns them on with DICTSERVE_DATA_DIR"
            raise InvalidFields.at("files", msg=msg)
        return self._root


def _why_not_taken(pattern: str) -> str | None:
    """What is wrong with a pattern as it is written, if anything."""
    parts = PurePosixPath(pattern).parts
    if not pattern.isprintable():
        return "it has a character that is not printable; `?` stands for any"
    if not parts:
        return "it means the data directory itself, not files in it"
    if ".." in parts or pattern.startswith("/"):
        return "patterns are relative to the data directory, without `..`"
    if len(parts) > MAX_PARTS or parts.count("**") > MAX_DEEP:
        return f"a pattern has at most {MAX_PARTS} parts, and `**` {MAX_DEEP} times"
    return None


def _is_text(name: str) -> bool:
    """Whether a file's name can be told: Linux takes any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
