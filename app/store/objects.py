"""Versions as objects: ``<name>/<version>/claim``, then ``dictionary.safetensors`` and, of one that was fitted here,
``figures.safetensors``, then ``meta.json``.

A version is there exactly when its ``meta.json`` is, which is written last and removed first. Its number is its who
created the ``claim``, and nobody's again: the claim stays when the version goes. Versions are immutable, so copies on
the local disk are as good as the objects; which versions there are is asked again after ``listing_seconds``.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from app.errors import DictionaryDamaged, StoreUnavailable, UnknownDictionary
from app.memory_cache import keep
from app.store.bucket import PRIVATE, STAGING, Bucket, Entry
from app.store.figures_file import FIGURES_FILE
from app.store.files import LABELS_FILE, META_FILE, not_the_first
from app.store.hashed import Hashed, require_whole, sha256
from app.store.object_cache import ObjectCache
from app.store.references import NAME, VERSION
from app.store.weights import WEIGHTS_FILE

CLAIM = "claim"
CLAIMED, GONE = b"", b"gone"  # what is in it: told apart by their sizes, which a listing has
OF_A_VERSION = {CLAIM, WEIGHTS_FILE, FIGURES_FILE, META_FILE, LABELS_FILE}
QUARANTINE = f"{PRIVATE}/quarantine"

# What has no `meta.json` after so long is of somebody who died on the way; a publication gives up well before.
GRACE_SECONDS = 3600.0
PUBLISH_SECONDS = 1800.0
UNDER_WAY_SECONDS = 300.0  # for which a publication that must be the first yields to one that has begun
# A publication that failed is resumed under its number for the first of these; then it is given up, or, where its
# record was sent and may still arrive, after the second.
RESUMED_SECONDS, TOLD_SECONDS = 10.0, 60.0
RELABEL_SECONDS = 20.0
RENEWED_AT = 0.75  # of the time that a list holds: from then on another is asked for, while this one holds still
LOCKS = 64


@dataclass(frozen=True)
class _Listing:
    """What there is of a name: of each version its files, and when it was asked for."""

    asked: float
    files: dict[int, dict[str, Entry]]

    @property
    def versions(self) -> list[int]:
        return sorted(version for version, files in self.files.items() if META_FILE in files)


@dataclass(frozen=True)
class _Begun:
    """A publication that an object store has failed: the SHA-256 of each file, whether the record was sent, and when
    that was."""

    files: dict[str, str]
    was_told: bool
    failed: float


class Objects:
    """The versions in a bucket, and copies of them in a local directory."""

    is_near = False

    def __init__(self, bucket: Bucket, copies: ObjectCache, listing_seconds: float) -> None:
        self.bucket = bucket
        self._cache = copies
        self._listing_seconds = listing_seconds
        self._listings: dict[str, _Listing] = {}
        self._names: tuple[float, list[str]] = -math.inf, []  # and when they were asked for
        self._guard = threading.Lock()
        self._asking = [threading.Lock() for _ in range(LOCKS)]  # of those who ask for a name, one goes for all
        self._asking_names = threading.Lock()
        self._written = [-math.inf] * LOCKS  # when this process last changed one of the names that share a lock
        self._labels: dict[tuple[str, int], tuple[str, bytes]] = {}  # and their tag
        self._relabelling = [threading.Lock() for _ in range(LOCKS)]
        self._begun: dict[tuple[str, int], _Begun] = {}

    def sweep(self) -> None:
        """Remove what was never finished, and claims that no listing of anybody's can lack."""
        dead = time.time() - GRACE_SECONDS
        entries = self.bucket.entries()
        for key, entry in entries.items():
            if key.startswith(f"{STAGING}/") and entry.changed < dead:
                self.bucket.delete(key)
        for name, versions in _by_name(entries).items():
            for version, files in versions.items():
                if META_FILE in files or max(entry.changed for entry in files.values()) >= dead:
                    continue
                for file in files.keys() - {CLAIM}:
                    self.bucket.delete(_key(name, version, file))
                if CLAIM in files and version != max(versions):
                    self.bucket.delete(_key(name, version, CLAIM))

    # -- listing ------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        after = self._since(max(self._written))
        if self._names[0] <= after:
            with self._asking_names:
                if self._names[0] <= after:
                    self._names = self._ask_for_names()
        return self._names[1].copy()

    def _ask_for_names(self) -> tuple[float, list[str]]:
        asked = time.monotonic()
        found = {name: _Listing(asked, files) for name, files in _by_name(self.bucket.entries()).items()}
        for name, listing in found.items():
            self._keep(name, listing)
        return asked, sorted(name for name, listing in found.items() if listing.versions)

    def versions(self, name: str) -> list[int]:
        return self._listing(name).versions

    def look_again(self, name: str, since: float) -> None:
        self._listing(name, since)

    def remembered(self, name: str) -> list[int]:
        known = self._listings.get(name)
        return [] if known is None else known.versions

    def knows(self, name: str) -> bool:
        return self._known(name, self._since(self._written[_nth(name)])) is not None

    def is_soon_old(self, name: str) -> bool:
        known = self._listings.get(name)
        return known is not None and time.monotonic() - known.asked > RENEWED_AT * self._listing_seconds

    def _since(self, written: float) -> float:
        """What was asked for after this holds for who comes now, however long that waits for the answer: it is not
        old, and has what this process wrote before."""
        return max(time.monotonic() - self._listing_seconds, written)

    def _known(self, name: str, after: float) -> _Listing | None:
        known = self._listings.get(name)
        return known if known is not None and known.asked > after else None

    def _fresh(self, name: str) -> _Listing:
        """What there is of a name, asked for after the call, by whomever."""
        return self._listing(name, time.monotonic())

    def _listing(self, name: str, since: float = -math.inf) -> _Listing:
        """What there is of a name, or was lately; asked for no earlier than ``since``."""
        after = max(since, self._since(self._written[_nth(name)]))
        if (known := self._known(name, after)) is not None:
            return known
        with self._asking[_nth(name)]:
            if (known := self._known(name, after)) is not None:
                return known
            asked = time.monotonic()
            listing = _Listing(asked, _by_name(self.bucket.entries(name)).get(name, {}))
            self._keep(name, listing)
        return listing

    def _keep(self, name: str, listing: _Listing) -> None:
        with self._guard:
            if self._known(name, listing.asked) is None:  # no newer one has overtaken it
                keep(self._listings, name, listing)

    def _forget(self, name: str) -> None:
        """Ask for a name again: what this process has changed, it sees at once."""
        with self._guard:
            self._written[_nth(name)] = time.monotonic()

    # -- reading ------------------------------------------------------------------------------------------

    def has(self, name: str, version: int, sha256: str) -> bool:
        return self._cache.has(sha256) and self._cache.has(f"{name}@{version}")

    def fetch(self, name: str, version: int, sha256: str) -> None:
        self.meta(name, version, cached=True)
        self.content(name, version, WEIGHTS_FILE, sha256)

    def require_free(self, name: str) -> None:
        """Keys of whatever is there leave room for all names."""

    def meta(self, name: str, version: int, *, cached: bool = False) -> bytes:
        copy = f"{name}@{version}"
        if cached and (content := self._cache.get(copy)) is not None:
            return content
        try:
            content = self.bucket.read(_key(name, version, META_FILE))
        except FileNotFoundError:
            raise self._removed(name, version) from None
        self._cache.put(copy, content)
        return content

    def content(self, name: str, version: int, file: str, expected: str, *, cached: bool = True) -> bytes:
        if cached and (content := self._cache.get(expected)) is not None:
            if sha256(content) == expected:
                return content
            self._cache.drop(expected)  # the disk has lost it; the object may be whole
        try:
            content = self.bucket.read(_key(name, version, file))
        except FileNotFoundError:
            if self.bucket.tag(_key(name, version, META_FILE)) is None:
                raise self._removed(name, version) from None
            raise DictionaryDamaged(f"{name}@{version} has no {file}; restore it, or use another version") from None
        require_whole(content, expected, file, f"{name}@{version}")
        if cached:
            self._cache.put(expected, content)
        return content

    def _removed(self, name: str, version: int) -> UnknownDictionary:
        self._forget(name)
        self._cache.drop(f"{name}@{version}")
        return UnknownDictionary(f"{name}@{version} has been removed")

    def labels(self, name: str, version: int) -> bytes | None:
        entry = self._listing(name).files.get(version, {}).get(LABELS_FILE)
        if entry is None:
            return None
        known = self._labels.get((name, version))
        if known is not None and known[0] == entry.tag:
            return known[1]
        try:
            content = self.bucket.read(_key(name, version, LABELS_FILE))
        except FileNotFoundError:
            return None
        keep(self._labels, (name, version), (entry.tag, content))
        return content

    def strays(self) -> Iterator[tuple[str, str]]:
        for key in sorted(self.bucket.entries()):
            if key.startswith(f"{PRIVATE}/"):
                continue
            parts = key.split("/")
            if len(parts) != 3 or not NAME.fullmatch(parts[0]) or not VERSION.fullmatch(parts[1]):
                yield key, "not an object of a dictionary's version"
            elif parts[2] not in OF_A_VERSION:
                yield key, "no part of a version"

    # -- writing ------------------------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        files: Mapping[str, Hashed],
        meta: Callable[[int], bytes],
        earlier: Callable[[], int | None],
        require: Callable[[], object],
        *,
        only_first: bool,
    ) -> int:
        found = self._fresh(name)
        hashes = {file: hashed.sha256 for file, hashed in files.items()}
        claimed = self._resumed(name, found, hashes)
        was_told = False
        try:
            if only_first:
                self._require_none(name, found, claimed)
            if (published := earlier()) is not None:  # or cannot be told: each try would leave what it has written
                if claimed not in (None, published):
                    self._give_up(name, claimed, files)
                return published
            version = claimed = claimed or self._claim(name, found, only_first)
            if (published := self._prepared(name, version, files, earlier, require, only_first)) is not None:
                if published != version:  # else its record has come to be there after all
                    self._give_up(name, version, files)
                return published
            content = meta(version)
            was_told = True
            self.bucket.put(_key(name, version, META_FILE), content)  # which may be there though this fails
        except StoreUnavailable:
            if claimed is not None:
                self._begun[name, claimed] = _Begun(hashes, was_told, time.monotonic())
            raise
        except Exception:
            if claimed is not None:
                with suppress(StoreUnavailable):
                    self._give_up(name, claimed, files)
            raise
        self._forget(name)
        for hashed in files.values():
            self._cache.put(hashed.sha256, hashed.content)
        self._cache.put(f"{name}@{version}", content)
        return version

    def _claim(self, name: str, found: _Listing, only_first: bool) -> int:
        """The number of a version that nobody else makes."""
        version = max(found.files, default=0) + 1
        while not self.bucket.create(_key(name, version, CLAIM), CLAIMED):
            if only_first:
                raise _under_way(name)
            version += 1
        return version

    def _resumed(self, name: str, found: _Listing, hashes: dict[str, str]) -> int | None:
        """The number that a publication of just these files has claimed before it failed here, unless there is a
        later one: else each of many tries while the store is not well would take another, and leave what it wrote."""
        version = max(found.files, default=0)
        there = found.files.get(version, {})
        if META_FILE in there or CLAIM not in there or there[CLAIM].size != len(CLAIMED):
            return None
        with self._guard:
            begun = self._begun.get((name, version))
            if begun is None or begun.files != hashes:  # one of other files may still come to be there
                return None
            del self._begun[name, version]
        return version

    def settle(self) -> None:
        """Give up what has failed and nobody goes on with: who would be the first waits for it."""
        for (name, version), begun in list(self._begun.items()):
            if time.monotonic() - begun.failed < (TOLD_SECONDS if begun.was_told else RESUMED_SECONDS):
                continue
            with self._guard:
                if self._begun.get((name, version)) is not begun:
                    continue
                del self._begun[name, version]
            try:
                if META_FILE not in self._fresh(name).files.get(version, {}):
                    self._give_up(name, version, begun.files)
            except StoreUnavailable:
                self._begun[name, version] = begun
                break

    def _prepared(
        self,
        name: str,
        version: int,
        files: Mapping[str, Hashed],
        earlier: Callable[[], int | None],
        require: Callable[[], object],
        only_first: bool,
    ) -> int | None:
        """Have all of a version there but its record; or the version that is published already."""
        begun = time.monotonic()
        for file, hashed in files.items():
            self.bucket.put(_key(name, version, file), hashed.content)
        if time.monotonic() - begun > PUBLISH_SECONDS:  # a sweep may think it dead, and take its files
            raise StoreUnavailable("the object store took too long to take a dictionary; nothing was published")
        self._forget(name)  # what is asked now is to see what others have published
        if (published := earlier()) is not None:
            return published
        found = self._fresh(name)
        if only_first and found.versions not in ([], [version]):  # of somebody who did not ask to be the first
            raise not_the_first(name)
        require()
        if not files.keys() <= found.files.get(version, {}).keys():
            # a sweep has thought it dead: a machine that is suspended counts no time
            raise StoreUnavailable("a dictionary was swept before it was whole; nothing was published")
        return None

    def _require_none(self, name: str, found: _Listing, claimed: int | None) -> None:
        """Raises PreconditionFailed where the name has a version, StoreUnavailable where it may soon have one, other
        than that which is claimed here."""
        if found.versions:
            raise not_the_first(name)
        young = time.time() - UNDER_WAY_SECONDS
        for version, files in found.files.items():
            if version == claimed:
                continue
            if CLAIM in files and files[CLAIM].size == len(CLAIMED) and files[CLAIM].changed > young:
                raise _under_way(name)

    def _give_up(self, name: str, version: int, files: Iterable[str]) -> None:
        """Nothing comes of a version that was claimed."""
        self.bucket.put(_key(name, version, CLAIM), GONE)
        for file in files:
            self.bucket.delete(_key(name, version, file))

    def relabel(self, name: str, version: int, change: Callable[[bytes | None], bytes]) -> None:
        """One after another of those here: they would only take each other's attempts."""
        deadline = time.monotonic() + RELABEL_SECONDS
        if not self._relabelling[_nth(name)].acquire(timeout=RELABEL_SECONDS):
            raise _relabelled_by_others(name, version)
        try:
            self._relabel(name, version, change, deadline)
        finally:
            self._relabelling[_nth(name)].release()

    def _relabel(self, name: str, version: int, change: Callable[[bytes | None], bytes], deadline: float) -> None:
        key = _key(name, version, LABELS_FILE)
        attempt = 0
        while True:
            if self.bucket.tag(_key(name, version, META_FILE)) is None:
                raise self._removed(name, version)
            tag = self.bucket.tag(key)  # before the content: one that is newer than its tag is not replaced
            with suppress(FileNotFoundError):
                new = change(None if tag is None else self.bucket.read(key))
                if self.bucket.create(key, new) if tag is None else self.bucket.replace(key, new, tag):
                    self._forget(name)
                    return
            if time.monotonic() > deadline:
                raise _relabelled_by_others(name, version)
            attempt += 1
            time.sleep(0.001 * secrets.randbelow(min(attempt, 20)))

    def remove(self, name: str, versions: Iterable[int], require: Callable[[], object]) -> None:
        found = self._fresh(name).files
        require()
        versions = [version for version in versions if version in found]
        try:
            for version in versions:
                self._hide(name, version)
            for version in versions:
                for file in found[version].keys() - {CLAIM, META_FILE}:
                    self.bucket.delete(_key(name, version, file))
        finally:
            self._forget(name)

    def set_aside(self, name: str, version: int) -> str:
        aside = f"{QUARANTINE}/{name}@{version}.{secrets.token_hex(4)}"
        files = self._fresh(name).files.get(version, {}).keys() - {CLAIM}
        for file in files:
            self.bucket.copy(_key(name, version, file), f"{aside}/{file}")
        self._hide(name, version)
        for file in files - {META_FILE}:
            self.bucket.delete(_key(name, version, file))
        self._forget(name)
        return f"{self.bucket.url}/{aside}"

    def _hide(self, name: str, version: int) -> None:
        """From now on there is no such version, nor will there be again."""
        self.bucket.put(_key(name, version, CLAIM), GONE)  # one that was copied here may have none
        self.bucket.delete(_key(name, version, META_FILE))
        self._cache.drop(f"{name}@{version}")


def _under_way(name: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"somebody else makes a version of {name!r} just now; whether it comes to be is not known yet"
    )


def _relabelled_by_others(name: str, version: int) -> StoreUnavailable:
    return StoreUnavailable(f"others change the labels of {name}@{version} all the time")


def _nth(name: str) -> int:
    return hash(name) % LOCKS


def _key(name: str, version: int, file: str) -> str:
    return f"{name}/{version}/{file}"


def _by_name(entries: dict[str, Entry]) -> dict[str, dict[int, dict[str, Entry]]]:
    """Objects of versions, by name, version and file."""
    found: dict[str, dict[int, dict[str, Entry]]] = {}
    for key, entry in entries.items():
        name, _, rest = key.partition("/")
        version, _, file = rest.partition("/")
        if file in OF_A_VERSION and NAME.fullmatch(name) and VERSION.fullmatch(version):
            found.setdefault(name, {}).setdefault(int(version), {})[file] = entry
    return found
