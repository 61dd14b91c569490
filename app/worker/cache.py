"""Prepared dictionaries, kept by use and bounded in bytes."""

from collections import OrderedDict
from collections.abc import Callable

from core import Dictionary

Key = tuple[str, int]


class DictionaryCache:
    """The least recently used goes first when the bytes run out; the one in use always stays."""

    def __init__(self, max_bytes: int, prepare: Callable[[str, int], Dictionary]) -> None:
        self._max_bytes = max_bytes
        self._prepare = prepare
        self._prepared: OrderedDict[Key, Dictionary] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._prepared)

    def get(self, name: str, version: int) -> Dictionary:
        key = (name, version)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(name, version)
            self.nbytes += self._prepared[key].nbytes
            while self.nbytes > self._max_bytes and len(self._prepared) > 1:
                _, evicted = self._prepared.popitem(last=False)
                self.nbytes -= evicted.nbytes
        self._prepared.move_to_end(key)
        return self._prepared[key]
