"""Rows that are to be encoded or decoded: on which dictionary, and what to do where memory does not suffice."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from app.worker import device
from app.worker.cache import DictionaryCache
from app.worker.messages import Key
from app.worker.transfers import Transfers

logger = logging.getLogger("dictserve.worker")


class Solving:
    """Answers with the arrays of ``Solved``."""

    def __init__(self, cache: DictionaryCache, of: torch.device) -> None:
        self._cache = cache
        self._device = of
        self._transfers = Transfers(of)

    def answer(self, key: Key, rows: np.ndarray) -> list[np.ndarray]:
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
        halves = [half for half in np.array_split(rows, 2) if len(half)]
        return [np.concatenate(parts) for parts in zip(*(self._at_once(key, half) for half in halves), strict=True)]

    def _at_once(self, key: Key, rows: np.ndarray) -> list[np.ndarray]:
        dictionary = self._cache.get(key.name, key.version, key.dtype)

        def encode(A: torch.Tensor) -> Sequence[torch.Tensor]:
            encoded = dictionary.encode(A)
            answer = encoded.codes, encoded.converged.to(torch.uint8)
            return (*answer, _relative_errors(A, dictionary.decode(encoded.codes))) if key.reconstruct else answer

        def decode(Z: torch.Tensor) -> Sequence[torch.Tensor]:
            return (dictionary.decode(Z),)

        return self._transfers.through(rows, encode if key.task == "encode" else decode)


def _relative_errors(A: torch.Tensor, approximation: torch.Tensor) -> torch.Tensor:
    """‖a − zD‖ / ‖a‖ of each row, in A's dtype; 0 for an all-zero row. In float64, whose range squares stay in."""
    norms = torch.linalg.vector_norm(A, dim=1, dtype=torch.float64)
    errors = torch.linalg.vector_norm(A - approximation, dim=1, dtype=torch.float64)
    return torch.where(norms > 0, errors / norms, 0).to(A.dtype)
