"""The concepts of a dictionary, all of them in columns or one in full: what is told of them, and from where.

What a fit has counted lies in the version's figures file. Where there is none, what D alone tells is computed when it
is asked for, unless that would take too long.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from app.errors import UnknownConcept
from app.memory_cache import KeptBytes
from app.store.figures_file import Figures
from app.store.records import DictionaryRecord
from app.store.references import Reference
from app.store.store import Store
from core.constants import NEAR_DENSE_SHARE, NEIGHBOURS

KEPT_BYTES = 128 * 1024 * 1024  # of D and figures that were asked for lately
MOST_WORK = 10**9  # multiply-adds that one request is worth
BLOCK_VALUES = 1 << 22  # of what is computed at a time

Told = dict[str, Any]  # numbers, texts, and numpy arrays


class Concepts:
    """Methods block on the disk or a network, and compute; call them from a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._arrays: KeptBytes[np.ndarray] = KeptBytes(KEPT_BYTES // 2, lambda array: array.nbytes)
        self._figures: KeptBytes[Figures] = KeptBytes(KEPT_BYTES // 2, _size)

    def all(self, reference: Reference) -> Told:
        """What is known of every concept, each kind in a column; None where it is not known."""
        return self._store.reading(reference, self._all)

    def _all(self, record: DictionaryRecord) -> Told:
        figures = self._figures_of(record)
        known = figures if "nearest" in figures else self._nearest(record)
        labels = self._store.labels(record.name, record.version).concept_labels
        return {
            **_of(record),
            "nb_concepts": record.nb_concepts,
            "n_features": record.n_features,
            "rows": _rows(record),
            "energy": record.metrics.get("energy"),
            "uses": figures.get("uses"),
            "largest": figures.get("largest"),
            "nearest": None if known is None else np.ascontiguousarray(known["nearest"][:, 0]),
            "cosine": None if known is None else np.ascontiguousarray(known["cosines"][:, 0]),
            "labels": {str(concept): label for concept, label in labels.items()},
        }

    def one(self, reference: Reference, index: int) -> Told:
        """All that is known of a concept.

        Raises:
            UnknownConcept: the dictionary has fewer.
        """
        return self._store.reading(reference, lambda record: self._one(record, index))

    def _one(self, record: DictionaryRecord, index: int) -> Told:
        if index >= record.nb_concepts:
            raise UnknownConcept(f"there is no concept {index}: {record.reference} has {record.nb_concepts}, from 0")
        weights = self._kept("D", record, lambda: self._store.load(record.name, record.version))[index]
        norm = float(np.linalg.norm(weights.astype(np.float64)))
        figures = self._figures_of(record)
        labels = self._store.labels(record.name, record.version).concept_labels
        of_this = {name: array[index] for name, array in figures.items()}
        near = of_this if "nearest" in of_this else self._nearest_to(record, index)
        energy, rows, uses = record.metrics.get("energy"), _rows(record), of_this.get("uses")

        def concepts(of: np.ndarray, to: np.ndarray, score: str) -> list[Told]:
            pairs = zip(of.tolist(), to, strict=True)
            return [{"concept": j, score: x, "label": labels.get(j)} for j, x in pairs if j >= 0]

        told = {
            **_of(record),
            "concept": index,
            "label": labels.get(index),
            "weights": weights,
            "norm": norm,
            "energy": None if energy is None else energy[index],
            "rows": rows,
            "uses": uses,
            "largest": of_this.get("largest"),
            "histogram": of_this.get("histogram"),
            "top_rows": None,
            "nearest": concepts(near["nearest"], near["cosines"], "cosine"),
            "together": None,
            "dead": None if uses is None else bool(uses == 0 or norm == 0),
            "near_dense": None if uses is None or rows is None else bool(uses > NEAR_DENSE_SHARE * rows),
        }
        if "top_rows" in of_this:
            pairs = zip(of_this["top_rows"].tolist(), of_this["top_codes"], strict=True)
            told["top_rows"] = [{"row": row, "code": code} for row, code in pairs if row >= 0]
        if "together" in of_this:
            told["together"] = concepts(of_this["together"], of_this["overlap"], "overlap")
        return told

    # -- what is kept -------------------------------------------------------------------------------------

    def _figures_of(self, record: DictionaryRecord) -> Figures:
        name, version = record.name, record.version
        return self._figures.get((name, version), lambda: self._store.figures(name, version))

    def _kept(self, what: str, record: DictionaryRecord, make: Callable[[], np.ndarray]) -> np.ndarray:
        return self._arrays.get((what, record.name, record.version), make)

    # -- what D alone tells -------------------------------------------------------------------------------

    def _unit(self, record: DictionaryRecord) -> np.ndarray:
        """D with its concepts divided by their norms; zero ones are left so."""
        return self._kept("unit", record, lambda: _divided(self._store.load(record.name, record.version)))

    def _nearest_to(self, record: DictionaryRecord, index: int) -> Figures:
        unit = self._unit(record)
        return {name: array[0] for name, array in _best_others((unit @ unit[index])[None], index).items()}

    def _nearest(self, record: DictionaryRecord) -> Figures | None:
        """The concepts nearest to each; None where that is too much to compute while somebody waits."""
        if record.nb_concepts**2 * record.n_features > MOST_WORK:
            return None
        return self._figures.get(("nearest", record.name, record.version), lambda: self._computed_nearest(record))

    def _computed_nearest(self, record: DictionaryRecord) -> Figures:
        unit = self._unit(record)
        size = max(1, BLOCK_VALUES // len(unit))
        parts = [_best_others(unit[at : at + size] @ unit.T, at) for at in range(0, len(unit), size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of(record: DictionaryRecord) -> Told:
    return {"dictionary": record.name, "version": record.version}


def _rows(record: DictionaryRecord) -> int | None:
    """How many rows the figures are of."""
    rows: int | None = record.metrics.get("metrics_rows", record.data.get("rows"))
    return rows


def _size(figures: Figures) -> int:
    return 1024 + sum(array.nbytes for array in figures.values())  # something for those that are empty, too


def _divided(D: np.ndarray) -> np.ndarray:
    unit = np.empty_like(D)
    size = max(1, BLOCK_VALUES // D.shape[1])
    for at in range(0, len(D), size):
        block = D[at : at + size].astype(np.float64)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        unit[at : at + size] = block / np.where(norms > 0, norms, 1)
    return unit


def _best_others(scores: np.ndarray, first: int) -> Figures:
    """Of cosines (some concepts, k) those of others, from the largest on; the first row is concept ``first``'s."""
    scores[np.arange(len(scores)), first + np.arange(len(scores))] = 0
    count = min(NEIGHBOURS, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
    return {"nearest": np.where(values > 0, best, -1), "cosines": np.clip(values, 0, 1)}
