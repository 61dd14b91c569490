"""The model store: what names, versions, records and labels mean, wherever the bytes lie.

A version appears whole or not at all and is never changed after; its number is not given again. The bytes lie in a
local directory (``app.store.files``) or in an object store (``app.store.objects``). What the service itself needs
lies in ``.dictserve/`` of the local directory (``app.store.workplace``), a name that no dictionary can have.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from app.errors import DictionaryDamaged, StoreUnavailable, UnknownDictionary
from app.memory_cache import keep
from app.store import figures_file
from app.store import weights as weights_file
from app.store.bucket import Bucket, bucket_of
from app.store.figures_file import FIGURES_FILE, Figures
from app.store.files import LABELS_FILE, META_FILE, Files
from app.store.hashed import Hashed
from app.store.object_cache import ObjectCache
from app.store.object_store import ObjectStore
from app.store.objects import Objects
from app.store.records import FORMAT, DictionaryRecord, Labels
from app.store.references import Reference, check_name
from app.store.shelf import Shelf
from app.store.weights import WEIGHTS_FILE
from app.store.workplace import Workplace
from app.times import now

logger = logging.getLogger("dictserve")

Read = TypeVar("Read")


class Store:
    """The dictionaries, and the files of the service beside them. Methods block on the disk or a network; call them
    from a thread where that matters.

    Args:
        root: a local directory.
        objects: the object store that has the dictionaries; without one they are in ``root``.
        was_opened: see `Workplace`.
    """

    def __init__(self, root: Path, objects: ObjectStore | None = None, *, was_opened: bool = False) -> None:
        self.root = root
        self.workplace = Workplace(root / ".dictserve", was_opened=was_opened)
        self.bucket: Bucket | None = None  # that has the dictionaries
        self._shelf: Shelf = Files(root, self.workplace)
        if objects is not None:
            self.bucket = bucket_of(objects)
            copies = ObjectCache(self.workplace.directory / "objects", objects.cache_bytes)
            self._shelf = Objects(self.bucket, copies, objects.listing_seconds)
        self._records: dict[tuple[str, int], DictionaryRecord] = {}
        self._left_out: set[str] = set()  # of the last list

    @property
    def is_up(self) -> bool:
        """Whether an object store answered when it was last asked; a directory is looked at by who reads it."""
        return self.bucket is None or self.bucket.is_up

    def sweep(self) -> None:
        """Remove what is left of versions that were never finished, or were being removed, by the dead."""
        self._shelf.sweep()

    def settle(self) -> None:
        """Give up what this process has begun to publish, where that failed and nobody goes on with it."""
        self._shelf.settle()

    # -- reading ------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return self._shelf.names()

    def versions(self, name: str) -> list[int]:
        """The versions of a name, ascending; none where there is no such dictionary."""
        return self._shelf.versions(name)

    def knows(self, name: str) -> bool:
        """Whether ``versions`` of this name takes no network."""
        return self._shelf.knows(name)

    def is_soon_old(self, name: str) -> bool:
        """Whether it is time to `look_again`, that nobody has to wait for that."""
        return self._shelf.is_soon_old(name)

    def look_again(self, name: str) -> None:
        """Have what is told of this name from now on include all that anybody did to it before this call. What is
        told by itself may be as old as an object store's ``listing_seconds``."""
        self._shelf.look_again(name, time.monotonic())

    def latest(self) -> list[DictionaryRecord]:
        """The latest version of each name, described. One that is damaged, or that a disk does not give now, hides
        neither those before it nor other names.

        Raises:
            StoreUnavailable: no version can be read, or an object store is away: that has all of them or none.
        """
        faults: dict[str, DictionaryDamaged | StoreUnavailable] = {}
        found = [self._latest_readable(name, faults) for name in self.names()]
        for reference in faults.keys() - self._left_out:  # once, and not whenever somebody looks
            logger.error("left out of the list: %s", faults[reference])
        self._left_out = set(faults)
        latest = [record for record in found if record is not None]
        unread = [error for error in faults.values() if isinstance(error, StoreUnavailable)]
        if unread and not latest:
            raise unread[0]
        return latest

    def _latest_readable(
        self, name: str, faults: dict[str, DictionaryDamaged | StoreUnavailable]
    ) -> DictionaryRecord | None:
        """Its latest version that can be told of now; those that are damaged or withheld go to the faults."""
        for version in reversed(self.versions(name)):
            try:
                return self.described(Reference(name, version))
            except UnknownDictionary:
                continue  # removed since it was listed
            except (DictionaryDamaged, StoreUnavailable) as error:
                if isinstance(error, StoreUnavailable) and not self._shelf.is_near:
                    raise
                faults[f"{name}@{version}"] = error
        return None

    def require_free(self, name: str) -> None:
        """Raises NameTaken where something else than dictionaries has the name.

        StoreUnavailable: where a disk does not give the record of one of its versions. No job could tell whether it
        has published that one already: it would wait, with others behind it.
        """
        self._shelf.require_free(name)
        if self._shelf.is_near:
            for version in self.versions(name):
                with suppress(DictionaryDamaged, UnknownDictionary):
                    self._record_near(name, version, cached=True)

    def at_hand(self, reference: Reference) -> DictionaryRecord | None:
        """The record of a version that can be told of and loaded without waiting for a network; None of others.

        Raises:
            UnknownDictionary: it is known that there is none.
        """
        if self._shelf.is_near:
            return self.record(reference)
        if not self._shelf.knows(reference.name):
            return None
        try:
            name, version = self._resolve(reference)
        except UnknownDictionary:
            return None  # as far as is known here: somebody may have made it just now
        record = self._records.get((name, version))
        return record if record is not None and self._shelf.has(name, version, record.sha256) else None

    def find_and_fetch(self, reference: Reference) -> DictionaryRecord:
        """The record of a version that is at hand from now on, for this process and its worker."""
        record = self.find(reference)
        self.fetch(record)
        return record

    def find(self, reference: Reference) -> DictionaryRecord:
        """The record of the version that a reference means.

        While the store does not answer: of one that is at hand, by what was last known of the name. Versions never
        change, so that what it may miss is a newer one, or that one was removed.
        """
        try:
            return self.record(reference)
        except StoreUnavailable:
            if (remembered := self._remembered(reference)) is None:
                raise
            return remembered

    def fetch(self, record: DictionaryRecord) -> None:
        """Have a version at hand."""
        if not self._shelf.has(record.name, record.version, record.sha256):
            self._shelf.fetch(record.name, record.version, record.sha256)

    def _remembered(self, reference: Reference) -> DictionaryRecord | None:
        name, versions = reference.name, self._shelf.remembered(reference.name)
        version = max(versions, default=None) if reference.version is None else reference.version
        record = self._records.get((name, version)) if version in versions else None
        return record if record is not None and self._shelf.has(name, record.version, record.sha256) else None

    def resolve(self, reference: Reference) -> tuple[str, int]:
        """Name and version that a reference means now. That there is none nobody is told by a list that is old: who
        was just told of a version by another service asks this one for it next."""
        begun = time.monotonic()
        try:
            return self._resolve(reference)
        except UnknownDictionary:
            self._shelf.look_again(reference.name, begun)
        return self._resolve(reference)

    def _resolve(self, reference: Reference) -> tuple[str, int]:
        versions = self.versions(reference.name)
        if not versions:
            raise UnknownDictionary(f"there is no dictionary {reference.name!r}; GET /dictionaries lists them")
        if reference.version is None:
            return reference.name, versions[-1]
        if reference.version not in versions:
            known = ", ".join(map(str, versions[-20:]))
            raise UnknownDictionary(f"{reference.name!r} has no version {reference.version}; it has {known}")
        return reference.name, reference.version

    def record(self, reference: Reference) -> DictionaryRecord:
        """The record of a version, kept in memory once read: versions are immutable."""
        return self.reading(reference, lambda record: record)

    def reading(self, reference: Reference, read: Callable[[DictionaryRecord], Read]) -> Read:
        """What is read of the version that a reference means; where that is the latest, and is removed on the way, of
        the latest by then."""
        while True:
            name, version = self.resolve(reference)
            try:
                return read(self._record_near(name, version, cached=False))
            except UnknownDictionary:
                if reference.version is not None or self.resolve(reference) == (name, version):
                    raise

    def described(self, reference: Reference) -> DictionaryRecord:
        """The record with what changes with time: the name's versions, and the labels."""
        return self.reading(reference, self._described)

    def _described(self, record: DictionaryRecord) -> DictionaryRecord:
        labels = self.labels(record.name, record.version)
        versions = self.versions(record.name)  # then: of one that is still there, the labels were its own
        if record.version not in versions:
            raise UnknownDictionary(f"{record.reference} has been removed")
        return record.model_copy(update={"versions": versions, **vars(labels)})

    def labels(self, name: str, version: int) -> Labels:
        return _labels(self._shelf.labels(name, version), f"{name}@{version}")

    def _read_record(self, name: str, version: int, *, cached: bool) -> DictionaryRecord:
        where = f"{name}@{version}"
        try:
            record = DictionaryRecord.model_validate_json(self._shelf.meta(name, version, cached=cached))
        except ValidationError:
            if cached:  # a copy that the disk has lost: what it is of may be whole
                return self._read_record(name, version, cached=False)
            raise DictionaryDamaged(
                f"{META_FILE} of {where} cannot be read; restore it, or use another version"
            ) from None
        if (record.format, record.name, record.version) != (FORMAT, name, version):
            raise DictionaryDamaged(
                f"{META_FILE} of {where} tells of {record.name}@{record.version} in format {record.format}"
            )
        keep(self._records, (name, version), record)
        return record

    def load(self, name: str, version: int, *, cached: bool = True) -> np.ndarray:
        """D, float32 of shape (nb_concepts, n_features), after its checksum was found to hold.

        Args:
            cached: whether a copy near by will do, where the store is elsewhere.
        """
        record = self._record_near(name, version, cached=cached)
        content = self._content(record, WEIGHTS_FILE, record.sha256, cached=cached)
        return weights_file.read(content, (record.nb_concepts, record.n_features), f"{name}@{version}")

    def figures(self, name: str, version: int, *, cached: bool = True) -> Figures:
        """What is known of each concept: nothing of those of a version without such a file. One that is damaged says
        nothing of D. Raises, and is cached, as with ``load``."""
        record = self._record_near(name, version, cached=cached)
        if record.figures_sha256 is None:
            return {}
        try:
            content = self._content(record, FIGURES_FILE, record.figures_sha256, cached=cached)
            return figures_file.read(content, record.nb_concepts, f"{name}@{version}")
        except DictionaryDamaged as error:
            raise DictionaryDamaged(f"{error}; encodes and decodes need no figures") from None

    def _record_near(self, name: str, version: int, *, cached: bool) -> DictionaryRecord:
        return self._records.get((name, version)) or self._read_record(name, version, cached=cached)

    def _content(self, record: DictionaryRecord, file: str, sha256: str, *, cached: bool) -> bytes:
        try:
            return self._shelf.content(record.name, record.version, file, sha256, cached=cached)
        except UnknownDictionary:
            self._records.pop((record.name, record.version), None)
            raise

    def strays(self) -> Iterator[tuple[str, str]]:
        """What lies there that no service made: where, and what it is."""
        return self._shelf.strays()

    # -- writing ------------------------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        D: np.ndarray,
        figures: bytes | None = None,
        *,
        require: Callable[[], object] = lambda: None,
        only_first: bool = False,
        **told: Any,
    ) -> DictionaryRecord:
        """Write D as the next version of a name; when this returns it is durable.

        Args:
            D: float32 of shape (nb_concepts, n_features).
            figures: the file of its concepts' figures.
            require: asked at the last moment; where it raises nothing is published.
            only_first: whether it may be published only where the name has no version.
            told: the record's other fields (``parameters``, ``metrics``, …).
        """
        check_name(name)
        self._shelf.require_free(name)
        files = {WEIGHTS_FILE: weights_file.written(D)}
        if figures is not None:
            files[FIGURES_FILE] = Hashed.of(figures)
        record = DictionaryRecord(
            name=name,
            version=0,
            nb_concepts=D.shape[0],
            n_features=D.shape[1],
            created_at=now(),
            sha256=files[WEIGHTS_FILE].sha256,
            figures_sha256=None if figures is None else files[FIGURES_FILE].sha256,
            **told,
        )

        def meta(version: int) -> bytes:
            numbered = record.model_copy(update={"version": version})
            return numbered.model_dump_json(indent=1, exclude={"versions", "labels", "concept_labels"}).encode()

        made: DictionaryRecord | None = None  # by an attempt that was thought dead

        def earlier() -> int | None:
            nonlocal made
            made = self.made_by(name, record.job) if record.job is not None else None
            return None if made is None else made.version

        version = self._shelf.publish(name, files, meta, earlier, require, only_first=only_first)
        # and not what is read of it now: it was published, though somebody may have removed it since
        return made or record.model_copy(update={"version": version})

    def relabel(self, name: str, version: int, change: Callable[[Labels], Labels]) -> None:
        """Change a version's labels, which nobody else does meanwhile; durable when this returns."""

        def changed(old: bytes | None) -> bytes:
            return change(_labels(old, f"{name}@{version}")).model_dump_json(indent=1).encode()

        self._shelf.relabel(name, version, changed)

    def remove(self, name: str, versions: Iterable[int], require: Callable[[], object] = lambda: None) -> None:
        """Remove versions: each is gone at once for readers, and its number is not given again.

        Args:
            require: asked before the first goes; where it raises all stay.
        """
        versions = list(versions)
        self._shelf.remove(name, versions, require)
        for version in versions:
            self._records.pop((name, version), None)

    def set_aside(self, name: str, version: int) -> Path | str:
        """Take a version out of the readers' sight, as `remove` does, but keep it: where it is from now on."""
        aside = self._shelf.set_aside(name, version)
        self._records.pop((name, version), None)
        return aside

    def made_by(self, name: str, job: str) -> DictionaryRecord | None:
        """The version of a name that a job has published, if it came that far; damaged ones made none.

        Raises:
            StoreUnavailable: one cannot be read now, and may be it.
        """
        for version in reversed(self.versions(name)):
            try:
                record = self._record_near(name, version, cached=True)
            except (DictionaryDamaged, UnknownDictionary):
                continue
            if record.job == job:
                return record
        return None


def _labels(content: bytes | None, where: str) -> Labels:
    if content is None:
        return Labels()
    try:
        return Labels.model_validate_json(content)
    except ValidationError:
        raise DictionaryDamaged(f"{LABELS_FILE} of {where} cannot be read; restore or remove it") from None
