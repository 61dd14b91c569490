"""Fits from files: which npy files of the data directory a request means, and their rows, read without trust.

Nothing leads out of the directory: patterns with a root or `..` are refused, and so is a file whose real path, asked
of the kernel once the file is open, lies elsewhere (``app.formats.npy_file``). What lies there is told to nobody.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import AppError, DataUnavailable, InvalidFields, MalformedBody
from app.formats.npy_file import DataFile, LeadsOut, opened, reason, unchanged, unreadable
from app.jobs.pattern_walk import PatternWalk, too_many, why_not_taken
from app.settings import Settings
from app.threads import Threads
from app.worker.messages import Files
from core.checks import check_scale
from core.constants import EPOCHS
from core.errors import WrongShape

SLICE_BYTES = 16 * 1024 * 1024  # read, checked and handed on at a time
LOOKING_AT_ONCE = 2  # requests: each may take the interpreter for as long


@dataclass(frozen=True)
class NamedFiles:
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
    def of_record(cls, record: dict[str, Any]) -> "NamedFiles":
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
    """The npy files that fits may read. Methods block on the disk; call them from a thread: ``find``, which may take
    long, from one of ``threads``, behind which nobody waits who brings his activations along."""

    def __init__(self, settings: Settings) -> None:
        self.threads = Threads("files", LOOKING_AT_ONCE)
        self._root = None if settings.data_dir is None else settings.data_dir.resolve()
        self._settings = settings

    def find(
        self, patterns: Sequence[str], *, clip: bool, stage_as: str, require_wanted: Callable[[], None] = lambda: None
    ) -> NamedFiles:
        """What patterns mean now: names and headers are checked, values are not read.

        Args:
            require_wanted: called again and again; it raises once nobody wants to know any more.

        Raises:
            InvalidFields: fits from files are off; a pattern is none, matches nothing or too much; they look at more
                than can be looked at in time (``app.jobs.pattern_walk``); a file leads out of the directory, is no
                npy of activations, or does not go with the ones before it.
            DataUnavailable: the directory is away.
        """
        settings, files = self._settings, []
        rows = n_features = 0
        for name in self._matches(patterns, require_wanted):
            require_wanted()
            try:
                with opened(self._directory(), name) as file:
                    files.append(DataFile(name, file.rows, file.size, file.mtime_ns))
                    width = file.n_features
            except LeadsOut as error:
                raise InvalidFields.at("files", msg=str(error)) from None
            except (OSError, MalformedBody, WrongShape) as error:
                raise self._refusal(name, error, "files", shown=name) from None
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
        return NamedFiles(stage_as, list(patterns), clip, rows, n_features, files)

    def blocks(self, named: NamedFiles) -> Iterator[np.ndarray]:
        """The rows of all files in order, in blocks: checked, float32 and C order.

        Raises:
            DataChanged: a file is not what it was when the fit was accepted.
            DataUnavailable: the directory is away.
            InvalidArray: a value is not finite, negative (unless clipped) or beyond float32; tells file and place.
        """
        largest = 0.0
        for expected in named.files:
            with unchanged(self._directory(), expected, named.n_features) as file:
                step = max(1, SLICE_BYTES // (file.n_features * max(4, file.header.dtype.itemsize)))
                for start in range(0, file.rows, step):
                    rows = range(start, min(start + step, file.rows))
                    block, high = file.read_checked(rows, clip=named.clip)
                    largest = max(largest, high)
                    yield block
        check_scale(largest, name="activations")

    def in_place(self, named: NamedFiles) -> Files:
        """What the worker is told of the files of an online fit."""
        return Files(str(self._directory()), named.files, named.clip, named.epochs or 0)

    def online_epochs(self, named: NamedFiles, nb_concepts: int, epochs: int | None) -> int | None:
        """Of the fit of these files: as many as were asked for, else some where they, with their codes, are large;
        None: it is no online fit."""
        nbytes = named.rows * (named.n_features + nb_concepts) * np.dtype(np.float32).itemsize
        return EPOCHS if epochs is None and nbytes > self._settings.online_fit_bytes else epochs

    def _matches(self, patterns: Sequence[str], require_wanted: Callable[[], None]) -> list[str]:
        """Names of the files that match: by pattern, in the order of their names; each once."""
        root, limit = self._directory(), self._settings.max_files
        for index, pattern in enumerate(patterns):
            if (why := why_not_taken(pattern)) is not None:
                raise InvalidFields.at("files", index, msg=f"{_quoted(pattern)} is not taken: {why}")
        walk = PatternWalk(root, patterns, limit, require_wanted)
        try:
            walk.to_its_end()
        except OSError as error:
            pattern = patterns[walk.at]
            raise self._refusal(pattern, error, "files", walk.at, shown=_quoted(pattern)) from None
        names: dict[str, None] = {}
        for index, found in enumerate(walk.found):
            shown = _quoted(patterns[index])
            if not found:
                self._require_there()
                msg = f"{shown} matches no file of the data directory"
                if (link := walk.led_out.get(index)) is not None:
                    msg = f"{link if _is_text(link) else ascii(link)} leads out of the data directory"
                raise InvalidFields.at("files", index, msg=msg)
            if (unnamed := next((name for name in found if not _is_text(name)), None)) is not None:
                msg = f"{shown} matches {unnamed!a}, whose name is not UTF-8; rename it"
                raise InvalidFields.at("files", index, msg=msg)
            names.update(dict.fromkeys(sorted(found)))
            if len(names) > limit:
                raise too_many(index, limit)
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

    def _refusal(self, name: str, error: Exception, *where: str | int, shown: str) -> AppError:
        """What is to be said of a request for files that cannot be read: nothing against it while the directory is
        away."""
        away = unreadable(self._directory(), name, error)
        return (
            away if isinstance(away, DataUnavailable) else InvalidFields.at(*where, msg=f"{shown}: {reason(error)}")
        )

    def _directory(self) -> Path:
        if self._root is None:
            msg = "fits from files are off here; whoever runs the service turns them on with DICTSERVE_DATA_DIR"
            raise InvalidFields.at("files", msg=msg)
        return self._root


def _quoted(pattern: str) -> str:
    return repr(pattern[:60])


def _is_text(name: str) -> bool:
    """Whether a file's name can be told: Linux takes any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
