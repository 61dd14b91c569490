"""What the store asks of the place where the bytes of versions lie: a directory (``app.store.files``) or a bucket
(``app.store.objects``)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from app.store.hashed import Hashed


class Shelf(Protocol):
    """Where the bytes of versions lie. Every method raises StoreUnavailable where that cannot be reached.

    Attributes:
        is_near: whether that is this machine, near enough for an event loop.
    """

    is_near: bool

    def sweep(self) -> None:
        """Remove what the dead have left half done."""

    def settle(self) -> None:
        """Remove what this process has left half done, and does not go on with."""

    def names(self) -> list[str]:
        """Names that have a version, sorted."""

    def versions(self, name: str) -> list[int]:
        """The versions of a name, ascending; none where there is no such dictionary. The list is the caller's own."""

    def knows(self, name: str) -> bool:
        """Whether ``versions`` of this name takes no network."""

    def is_soon_old(self, name: str) -> bool:
        """Whether it is time to look again, that ``knows`` may stay so."""

    def look_again(self, name: str, since: float) -> None:
        """Have ``versions`` tell what was so at this time, or later."""

    def remembered(self, name: str) -> list[int]:
        """The versions of a name as they were when it was last asked for, without asking; none if it never was."""

    def has(self, name: str, version: int, sha256: str) -> bool:
        """Whether the worker can load this version without a network."""

    def fetch(self, name: str, version: int, sha256: str) -> None:
        """Have it so from now on."""

    def require_free(self, name: str) -> None:
        """Raises NameTaken where something else than dictionaries has the name."""

    def meta(self, name: str, version: int, *, cached: bool = False) -> bytes:
        """A version's record, from a copy near by where ``cached`` allows it.

        Raises:
            UnknownDictionary: the version has been removed.
            DictionaryDamaged: it is there, without this part or with something else in its place.
        """

    def content(self, name: str, version: int, file: str, sha256: str, *, cached: bool = True) -> bytes:
        """A file that the version has, whose SHA-256 was found to be this. Raises as ``meta`` does."""

    def labels(self, name: str, version: int) -> bytes | None:
        """A version's labels, once there are any."""

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
        """The next version of a name; durable when this returns.

        Args:
            files: of the version, beside its record, by their names.
            meta: makes the record of a number.
            earlier: asked at the last moment, and maybe before; a version that it tells is published already, and
                stands for this.
            require: asked at the last moment; where it raises nothing is published. After that, nobody publishes one
                before this on a disk; an object store has no lock that would see to that.
            only_first: whether it may be published only where the name has no version.

        Raises:
            PreconditionFailed: it has one.
            StoreUnavailable: or somebody is about to publish one, and this was to be the first.
        """

    def relabel(self, name: str, version: int, change: Callable[[bytes | None], bytes]) -> None:
        """Change a version's labels; of two who do so at once each has the other's change, or is asked again."""

    def remove(self, name: str, versions: Iterable[int], require: Callable[[], object]) -> None:
        """Each is gone at once for readers, and its number is not given again.

        Args:
            require: asked before the first goes; where it raises all stay. Between the two nobody changes the name
                on a disk; an object store has no lock that would see to that.
        """

    def set_aside(self, name: str, version: int) -> Path | str:
        """Take a version out of the readers' sight, as `remove` does, but keep it: where it is from now on."""

    def strays(self) -> Iterator[tuple[str, str]]:
        """What lies there that no service made: where, and what it is."""
