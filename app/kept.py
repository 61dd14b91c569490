"""Dictionaries in memory that are kept from growing without end."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

KEPT = 4096  # records, and lists of versions


def keep(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) >= KEPT:
        kept.clear()
    kept[key] = value
