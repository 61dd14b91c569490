"""Bearer tokens: a file of hashes, read anew whenever it changes, and what each caller may do.

A line for each token, ``name scopes hash [limit=N …]``; what follows # is a comment:

    vision-team  read,write  3f5a…  requests_per_minute=600  rows_per_minute=1000000

Tokens are 256 random bits, so that a plain SHA-256 keeps them: there is nothing to guess.
"""

import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import RateLimited, TokensUnreadable
from app.outage import Outage

logger = logging.getLogger("dictserve")

READ, WRITE = "read", "write"
SCOPES = (READ, WRITE)
LIMITS = ("requests_per_minute", "rows_per_minute")
PREFIX = "ds_"  # lets scanners of code and logs find a token that has leaked
RETRY_SECONDS = 1.0  # between two times that a file is read which could not be used and has not changed since

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LIMIT = re.compile(r"(?=0*[1-9])[0-9]{1,15}")

State = tuple[int, ...]  # by os.stat: differs wherever the file's content, owner or mode may


class Allowance:
    """So much a minute, saved up for a minute at most; what takes more needs all of it, and the next waits."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._counted_at = clock()

    def take(self, count: int) -> float:
        """Seconds until it may be taken; 0 where it has been."""
        now = self._clock()
        self._left = min(self.per_minute, self._left + (now - self._counted_at) * self.per_minute / 60)
        self._counted_at = now
        needed = min(count, self.per_minute)
        if self._left < needed:
            return (needed - self._left) * 60 / self.per_minute
        self._left -= count
        return 0.0


@dataclass(frozen=True)
class Caller:
    """Who has a token, and what it lets them do."""

    name: str
    scopes: frozenset[str]
    hash: str
    allowances: dict[str, Allowance] = field(default_factory=dict)

    def take(self, limit: str, count: int) -> None:
        """Count this against a limit.

        Raises:
            RateLimited: it is used up for now.
        """
        allowance = self.allowances.get(limit)
        if allowance is not None and (seconds := allowance.take(count)) > 0:
            what = limit.replace("_", " ")
            raise RateLimited(f"{self.name} has used up its {allowance.per_minute} {what}", math.ceil(seconds))


class TokenFile:
    """The callers that a file lists.

    Raises:
        TokensUnreadable: at the start, the file cannot be used; later the callers known last stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outage = Outage("changes of the tokens file have no effect")
        self._failed: State | None = None
        self._retry_at = 0.0
        self._state = self._now()
        self._callers = _read(path)
        self._warn_of_none()

    def _warn_of_none(self) -> None:
        if not self._callers:
            logger.warning("%s has no tokens: nobody is let in before `dictserve token new` has made one", self._path)

    def find(self, token: str) -> Caller | None:
        self._renew()
        given = hash_of(token)
        found = None
        for caller in self._callers:  # all of them, so that the time does not tell how far one came
            if hmac.compare_digest(caller.hash, given):
                found = caller
        return found

    def _renew(self) -> None:
        state, now = self._now(), time.monotonic()
        if state == self._state:  # the one that is known, or that again
            self._outage.end()
            return
        if state == self._failed and now < self._retry_at:
            return
        try:
            if state is not None and not stat.S_ISREG(state[-1]):
                raise TokensUnreadable(f"the tokens file {self._path} is no file any more")  # to open one may wait
            fresh = _read(self._path)
        except TokensUnreadable as error:
            self._outage.note(error)
            self._failed, self._retry_at = state, now + RETRY_SECONDS
            return
        self._outage.end()
        self._state = state  # which was so before it was read: what has changed since is read the next time
        known = {(caller.hash, limit): a for caller in self._callers for limit, a in caller.allowances.items()}
        for caller in fresh:  # a limit that stays keeps what has been used of it
            for limit, allowance in caller.allowances.items():
                before = known.get((caller.hash, limit))
                if before is not None and before.per_minute == allowance.per_minute:
                    caller.allowances[limit] = before
        self._callers = fresh
        self._warn_of_none()

    def _now(self) -> State | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_mode


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def add(path: Path, name: str, scopes: Iterable[str], token: str, limits: dict[str, int]) -> None:
    """Append a caller to the file, which is made readable by its owner alone where it is new.

    Raises:
        TokensUnreadable: the file has that name already, or the line would not be valid.
    """
    line = " ".join([name, ",".join(scopes), hash_of(token), *(f"{key}={value}" for key, value in limits.items())])
    caller = _parsed(line, "the new line")
    if path.exists() and any(known.name == caller.name for known in _read(path)):
        raise TokensUnreadable(f"{path} has a token named {name} already")
    begun = path.exists() and not path.read_bytes().endswith(b"\n")  # a last line that somebody's editor left open
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        file.write("\n" * begun + line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> list[Caller]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokensUnreadable(f"the tokens file {path} cannot be read: {error}") from error
    told = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    callers = [_parsed(line, f"line {number} of {path}") for number, line in told if line]
    names = [caller.name for caller in callers]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise TokensUnreadable(f"{path} names {twice} twice")
    return callers


def _parsed(line: str, where: str) -> Caller:
    """What a line says; errors never repeat it, since somebody may have put a token there."""
    form = "name scopes hash [limit=N …]"
    parts = line.split()
    if len(parts) < 3:
        raise TokensUnreadable(f"{where} is not of the form: {form}")
    name, scopes, hash, *limits = parts
    if _NAME.fullmatch(name) is None:
        raise TokensUnreadable(f"{where}: a name is 1 to 64 letters, digits, dots, dashes and underscores")
    if not set(scopes.split(",")) <= set(SCOPES):
        raise TokensUnreadable(f"{where}: scopes are read and write, with a comma between them")
    if _HASH.fullmatch(hash) is None:
        raise TokensUnreadable(f"{where}: the hash is not a SHA-256 in 64 hexadecimal digits")
    allowances = {}
    for limit in limits:
        key, _, value = limit.partition("=")
        if key not in LIMITS or _LIMIT.fullmatch(value) is None:
            known = " and ".join(f"{known}=N" for known in LIMITS)
            raise TokensUnreadable(f"{where}: limits are {known}, N ≥ 1 and of at most 15 digits")
        allowances[key] = Allowance(int(value))
    return Caller(name, frozenset(scopes.split(",")), hash, allowances)
