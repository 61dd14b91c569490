"""Which files of a directory a request's patterns mean."""

import errno
import fnmatch
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from app.errors import InvalidFields

MAX_PARTS = 100  # of a pattern
MAX_DEEP = 2  # times that one says `**`
LOOK_SECONDS = 10.0  # in which all that a request's patterns mean is found, or it is refused
NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP}  # is where a path leads

Place = tuple[int, int]  # of a walk: a pattern, by its index, and the part of it that comes next


def why_not_taken(pattern: str) -> str | None:
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


class PatternWalk:
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
            raise too_many(self.at, self._limit)

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


def too_many(index: int, limit: int) -> InvalidFields:
    return InvalidFields.at("files", index, msg=f"more than {limit} files; at most so many are taken")
