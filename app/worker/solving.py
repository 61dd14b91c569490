"""Rows that are to be encoded or decoded: on which dictionary, for how long in one turn, and what to do where memory
does not suffice.

A row takes from microseconds to seconds, by the size of the dictionary and by how many concepts explain it, which
nobody knows beforehand. On the CPU a turn therefore begins with as few rows as cannot take long, goes on with four
times as many for as long as a second is not over, and leaves the rest for another: the worker that came to nothing
else for a minute would look dead, and hold up everybody. Rows cost as much in small groups as in large ones.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from app.worker import device
from app.worker.cache import DictionaryCache
from app.worker.messages import Key
from app.worker.transfers import Transfers, joined
from core.kernels import encoded_on
from core.scaling import exponents_of, times_power_of_two

logger = logging.getLogger("dictserve.worker")

TURN_SECONDS = 1.0
GROWTH = 4
# That a row may take which all of 1024 concepts explain, with two cores; with others as their number cubed.
FULL_ROW_SECONDS = 0.2

Arrays = list[np.ndarray]


class Solving:
    """Answers with the arrays of ``Solved``, for as many of the rows as it comes to in a turn."""

    def __init__(self, cache: DictionaryCache, of: torch.device, transfers: Transfers) -> None:
        self._cache = cache
        self._device = of
        self._transfers = transfers

    def answer(self, key: Key, rows: np.ndarray) -> Arrays:
        """Where memory does not suffice: once more in halves, when all that was kept for later has been let go of."""
        try:
            return self._at_once(key, rows)
        except Exception as error:
            if not device.is_want_of_memory(error):
                raise
            logger.warning("%d rows need more memory than there is; once more in halves: %s", len(rows), error)
        # Only here, since the error holds on to the tensors that there were.
        self._cache.clear()
        device.release_memory(self._device)
        half = -(-len(rows) // 2)
        first = self._at_once(key, rows[:half])
        if half == len(rows) or len(first[0]) < half:  # the turn was over
            return first
        return joined([first, self._at_once(key, rows[half:])])

    def _at_once(self, key: Key, rows: np.ndarray) -> Arrays:
        dictionary = self._cache.get(key.name, key.version, key.dtype)

        def encode(A: torch.Tensor) -> Sequence[torch.Tensor]:
            encoded = dictionary.encode(A)
            codes = encoded.codes if key.top_k is None else _largest(encoded.codes, key.top_k)
            answer = codes, encoded.converged.to(torch.uint8)
            return (*answer, _relative_errors(A, dictionary.decode(codes))) if key.reconstruct else answer

        def decode(Z: torch.Tensor) -> Sequence[torch.Tensor]:
            return (dictionary.decode(Z),)

        if key.task == "decode":
            return self._transfers.through(rows, decode)
        if encoded_on(dictionary.D).type != "cpu":
            return self._transfers.through(rows, encode)
        smallest = min(dictionary.nb_concepts, dictionary.n_features)  # no row needs more concepts
        surely = TURN_SECONDS / (FULL_ROW_SECONDS * (smallest / 1024) ** 3)
        return in_a_turn(rows, lambda piece: self._transfers.through(piece, encode), max(1, int(surely)))


def in_a_turn(rows: np.ndarray, answer: Callable[[np.ndarray], Arrays], surely: int) -> Arrays:
    """The answer to the first of these rows: to as many as it is come to in a turn, and ``surely`` to so many."""
    begun = time.monotonic()
    parts = [answer(rows[:surely])]
    done = last = min(surely, len(rows))
    while done < len(rows):
        taken = time.monotonic() - begun
        count = min(GROWTH * last, int(done * (TURN_SECONDS - taken) / max(taken, 1e-6)))
        if count < 1:
            break
        piece = rows[done : done + count]
        parts.append(answer(piece))
        last = len(piece)
        done += last
    return joined(parts)


def _largest(Z: torch.Tensor, top_k: int) -> torch.Tensor:
    """Z with the largest codes of each row alone."""
    values, concepts = Z.topk(min(top_k, Z.shape[1]), dim=1)
    return torch.zeros_like(Z).scatter_(1, concepts, values)


def _relative_errors(A: torch.Tensor, approximation: torch.Tensor) -> torch.Tensor:
    """‖a − zD‖ / ‖a‖ of each row, in A's dtype; 0 for an all-zero row.

    Float64's range holds the squares of float32, and its own where a row is in units of its own.
    """
    if A.dtype == torch.float64 and (exponents := exponents_of(A.amax(dim=1))) is not None:
        A, approximation = (times_power_of_two(x, -exponents[:, None]) for x in (A, approximation))
    norms = torch.linalg.vector_norm(A, dim=1, dtype=torch.float64)
    errors = torch.linalg.vector_norm(A - approximation, dim=1, dtype=torch.float64)
    return torch.where(norms > 0, errors / norms, 0).to(A.dtype)
