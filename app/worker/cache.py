"""Prepared dictionaries, kept by use and bounded in bytes; one prepared in two dtypes is kept twice."""

from collections import OrderedDict
from collections.abc import Callable

from app.worker.messages import Dtype
from core import Dictionary

Key = tuple[str, int, Dtype]


class DictionaryCache:
    """The least recently used goes first when the bytes run out; the one in use always stays."""

    def __init__(self, max_bytes: int, prepare: Callable[[str, int, Dtype], Dictionary]) -> None:
        self._max_bytes = max_bytes
        self._prepare = prepare
        self._prepared: OrderedDict[Key, Dictionary] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prepared)

    @property
    def nbytes(self) -> int:
        """Of all, on the device and on the CPU. One may come to take more as it is used: the next that is prepared
        makes room for that."""
        return sum(dictionary.nbytes for dictionary in self._prepared.values())

    def clear(self) -> None:
        self._prepared.clear()

    def get(self, name: str, version: int, dtype: Dtype) -> Dictionary:
        key = (name, version, dtype)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(name, version, dtype)
            while self.nbytes > self._max_bytes and len(self._prepared) > 1:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]
