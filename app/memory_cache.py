"""What is kept in memory, and kept from growing without end."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

KEPT = 4096  # records, and lists of versions


def keep(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) >= KEPT:
        kept.clear()
    kept[key] = value


class KeptBytes(Generic[V]):
    """Values bounded in bytes together: the least recently used goes first. Safe for threads: missing values are made
    one at a time, and what is kept is had without waiting."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._guard = threading.Lock()
        self._making = threading.Lock()
        self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value, made now where it is not there; one that is too large to be kept is made each time."""
        if (value := self.known(key)) is not None:
            return value
        with self._making:
            if (value := self.known(key)) is not None:
                return value
            value = make()
            self.put(key, value)
        return value

    def known(self, key: Hashable) -> V | None:
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keep the value, unless the key has one or it is too large."""
        if self._size(value) > self._max_bytes:
            return
        with self._guard:
            if key in self._kept:
                return
            self._kept[key] = value
            self.nbytes += self._size(value)
            while self.nbytes > self._max_bytes:
                _, evicted = self._kept.popitem(last=False)
                self.nbytes -= self._size(evicted)
