"""Fits from files: which npy files of the data directory a request means, and their rows, read without trust.

Nothing leads out of the directory: patterns with a root or `..` are refused, and so is a file whose real path, asked
of the kernel once the file is open, lies elsewhere (``app.formats.data_file``). What lies there is told to nobody.
"""

import errno
import fnmatch
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from app.errors import AppError, DataUnavailable, InvalidFields, MalformedBody
from app.formats.data_file import DataFile, LeadsOut, opened, reason, unchanged, unreadable
from app.settings import Settings
from app.threads import Threads
from app.worker.messages import Files
from core.checks import check_scale
from core.conventions import EPOCHS
from core.errors import WrongShape

SLICE_BYTES = 16 * 1024 * 1024  # read, checked and handed on at a time
MAX_PARTS = 100  # of a pattern
MAX_DEEP = 2  # times that one says `**`
LOOK_SECONDS = 10.0  # in which all that a request's patterns mean is found, or it is refused
LOOKING_AT_ONCE = 2  # requests: each may take the interpreter for as long
NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP}  # is where a path leads

Place = tuple[int, int]  # of a walk: a pattern, by its index, and the part of it that comes next


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
                than can be looked at in ``LOOK_SECONDS``; a file leads out of the directory, is no npy of
                activations, or does not go with the ones before it.
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
            if (why := _why_not_taken(pattern)) is not None:
                raise InvalidFields.at("files", index, msg=f"{_quoted(pattern)} is not taken: {why}")
        walk = _Walk(root, patterns, limit, require_wanted)
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
                raise _too_many(index, limit)
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


class _Walk:
    """One walk through a directory for all patterns of a request, which looks into no directory twice.

    Patterns mean what they do to ``Path.glob`` of Python 3.11: hidden files are as others, `*` goes through links to
    directories and `**` does not, what may not be looked at is passed over. But nothing goes through a link that
    leads out, so that nobody learns what there is beyond: the walk ends at its name.
    """

    def __init__(self, root: Path, patterns: Sequence[str], limit: int, require_wanted: Callable[[], None]) -> None:
        self.found: list[set[str]] = [set() for _ in patterns]
        self.led_out: dict[int, str] = {}  # by pattern, the first link at which its walk ended
        self.at = 0  # the pattern that is being looked for
        self._root, self._patterns, self._limit = root, patterns, limit
        self._require_wanted = require_wanted
        self._parts = [PurePosixPath(pattern).parts for pattern in patterns]
        parts = {part for parts in self._parts for part in parts if part != "**" and set("*?[") & set(part)}
        self._matchers = {part: re.compile(fnmatch.translate(part)).match for part in parts}
        self._any = re.compile("|".join(map(fnmatch.translate, parts))).match  # most names match none: asked once
        self._until = time.monotonic() + LOOK_SECONDS

    def to_its_end(self) -> None:
        """Find what there is.

        Raises:
            InvalidFields: it takes too long, or a pattern finds too much.
            OSError: what is looked for by the pattern ``at`` cannot be.
        """
        starts = {(index, 0) for index, pattern in enumerate(self._patterns) if not _means_directories(pattern)}
        ways = [("", starts)]
        while ways:
            directory, places = ways.pop()
            ways += [way for way in self._beyond(directory, places).items() if self._leads_on(*way)]

    def _beyond(self, directory: str, places: set[Place]) -> dict[str, set[Place]]:
        """Find the files of a directory, and what in it may lead on to others."""
        beyond: defaultdict[str, set[Place]] = defaultdict(set)
        prefix = f"{directory}/" if directory else ""
        deep, wild, to_do = set[Place](), set[Place](), list(places)
        for place in to_do:
            self.at, index = place
            part = self._parts[self.at][index]
            if part == "**":
                deep.add(place)
                to_do.append((self.at, index + 1))  # it may stand for no directory
            elif part in self._matchers:
                wild.add(place)
            elif index + 1 < len(self._parts[self.at]):
                beyond[prefix + part].add((self.at, index + 1))
            elif stat.S_ISREG(self._mode(prefix + part)):
                self._add(prefix + part)
        if not deep and not wild:
            return beyond
        self.at = min(deep | wild)[0]
        try:
            entries = os.scandir(self._root / directory)
        except (PermissionError, FileNotFoundError, NotADirectoryError):  # gone meanwhile, or the root is away
            return beyond
        with entries:
            for entry in entries:
                self._require_time()
                path = prefix + entry.name
                leads_on = entry.is_dir(follow_symlinks=False)
                if leads_on and deep:
                    beyond[path] |= deep
                if self._any(entry.name):
                    leads_on |= entry.is_symlink()
                    for self.at, index in wild:
                        parts = self._parts[self.at]
                        if not self._matchers[parts[index]](entry.name):
                            continue
                        if index + 1 < len(parts):
                            if leads_on:
                                beyond[path].add((self.at, index + 1))
                        elif entry.is_file(follow_symlinks=False) or (
                            entry.is_symlink() and stat.S_ISREG(self._mode(path))
                        ):
                            self._add(path)
        return beyond

    def _add(self, path: str) -> None:
        self.found[self.at].add(path)
        if len(self.found[self.at]) > self._limit:
            raise _too_many(self.at, self._limit)

    def _leads_on(self, path: str, places: set[Place]) -> bool:
        """Whether it is a directory, within the root."""
        self._require_time()
        self.at = min(places)[0]
        mode = self._mode(path, follow_symlinks=False)
        if stat.S_ISLNK(mode):
            if not Path(os.path.realpath(self._root / path)).is_relative_to(self._root):
                for index, _ in places:
                    self.led_out.setdefault(index, path)
                return False
            mode = self._mode(path)
        return stat.S_ISDIR(mode)

    def _mode(self, path: str, *, follow_symlinks: bool = True) -> int:
        """What it is; 0: nothing, or nothing that may be looked at."""
        self._require_time()
        try:
            return os.stat(self._root / path, follow_symlinks=follow_symlinks).st_mode
        except PermissionError:
            return 0
        except OSError as error:
            if error.errno not in NOTHING:
                raise
            return 0

    def _require_time(self) -> None:
        self._require_wanted()
        if time.monotonic() > self._until:
            msg = f"the patterns look at too many files for {LOOK_SECONDS:g} s; say where the files are without `**`"
            raise InvalidFields.at("files", msg=msg)


def _means_directories(pattern: str) -> bool:
    """Whether it matches directories alone."""
    return pattern.endswith("/") or PurePosixPath(pattern).name == "**"


def _quoted(pattern: str) -> str:
    return repr(pattern[:60])


def _too_many(index: int, limit: int) -> InvalidFields:
    return InvalidFields.at("files", index, msg=f"more than {limit} files; at most so many are taken")


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
    if any("**" in part and part != "**" for part in parts):
        return "`**` stands between slashes alone"
    return None


def _is_text(name: str) -> bool:
    """Whether a file's name can be told: Linux takes any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
