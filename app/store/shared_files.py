"""Files of jobs as objects, so that another service on the same jobs' database can take a job up."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from app.errors import StoreUnavailable
from app.store.bucket import PRIVATE, Bucket

logger = logging.getLogger("dictserve")

# A younger object may be of a request whose job is not on record yet.
GRACE_SECONDS = 3600.0
SWEEP_SECONDS = 600.0  # between two looks for what nobody needs any more


class SharedFiles:
    """Objects of one kind, in a folder of the bucket that no dictionary can have. Methods block on the network."""

    def __init__(self, bucket: Bucket, kind: str) -> None:
        self._bucket = bucket
        self._folder = f"{PRIVATE}/{kind}"
        self._next_sweep = 0.0

    def key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def put(self, path: Path, name: str) -> None:
        """When this returns it is durable. Raises StoreUnavailable, StoreFull."""
        self._bucket.upload(path, self.key(name))

    def get(self, name: str, staged: Path, path: Path) -> bool:
        """Bring one here, where there is one. ``staged`` is where it lies before it is whole."""
        try:
            self._bucket.download(self.key(name), staged)
            staged.replace(path)
        except FileNotFoundError:
            return False
        finally:
            staged.unlink(missing_ok=True)
        return True

    def names(self) -> set[str]:
        """What there is now."""
        return {_name(key) for key in self._bucket.entries(self._folder)}

    def discard(self, name: str) -> None:
        """Remove one that is not needed any more. One that cannot be removed now is left to a sweep."""
        try:
            self._bucket.delete(self.key(name))
        except StoreUnavailable as error:
            logger.warning("an object of a job stays until it can be removed: %s", error)

    def sweep(self, unneeded: Callable[[set[str]], set[str]], grace_seconds: float = GRACE_SECONDS) -> None:
        """Remove, now and then, what has some age and no unended job needs.

        Args:
            unneeded: picks the names of these out of those that it is given, which were listed before.
        """
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + SWEEP_SECONDS
        try:
            entries = self._bucket.entries(self._folder)
        except StoreUnavailable as error:
            logger.warning("objects of jobs that have ended stay for now: %s", error)
            return
        old = {_name(key) for key, entry in entries.items() if entry.changed < time.time() - grace_seconds}
        for name in unneeded(old) if old else ():
            self.discard(name)


def _name(key: str) -> str:
    return key.rpartition("/")[2]
