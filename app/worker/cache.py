"""Prepared dictionaries, kept by use and bounded in bytes; one prepared in two dtypes is kept twice."""

from collections import OrderedDict
from collections.abc import Callable

from app.worker.messages import Dtype
from core import Dictionary

CacheKey = tuple[str, int, Dtype]

OVERHEAD_BYTES = 8192  # of an entry beside its numbers: small ones are more of that than of these


class DictionaryCache:
    """The least recently used goes first when the bytes run out; the one in use always stays."""

    def __init__(self, max_bytes: int, prepare: Callable[[str, int, Dtype], Dictionary]) -> None:
        self._max_bytes = max_bytes
        self._prepare = prepare
        self._prepared: OrderedDict[CacheKey, Dictionary] = OrderedDict()
        self._bytes: dict[CacheKey, int] = {}
        self._total = 0  # of these: there may be a hundred thousand, and it is asked for each second

    def __len__(self) -> int:
        return len(self._prepared)

    @property
    def nbytes(self) -> int:
        """Of all, on the device and on the CPU. One may come to take more as it is used: the next that is prepared
        makes room for that."""
        self._measure_latest()
        return self._total

    def clear(self) -> None:
        self._prepared.clear()
        self._bytes.clear()
        self._total = 0

    def get(self, name: str, version: int, dtype: Dtype) -> Dictionary:
        key = (name, version, dtype)
        if key == next(reversed(self._prepared), None):  # as nearly always: a row is not to wait for what it takes
            return self._prepared[key]
        self._measure_latest()
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        self._prepared[key] = self._prepare(name, version, dtype)
        self._measure_latest()
        while self._total > self._max_bytes and len(self._prepared) > 1:
            gone, _ = self._prepared.popitem(last=False)
            self._total -= self._bytes.pop(gone)
        return self._prepared[key]

    def _measure_latest(self) -> None:
        """Anew: it alone can have been used since it was measured."""
        if self._prepared:
            key = next(reversed(self._prepared))
            before = self._bytes.get(key, 0)
            self._bytes[key] = self._prepared[key].nbytes + OVERHEAD_BYTES
            self._total += self._bytes[key] - before
