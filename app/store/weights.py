"""The weights file of a version: D alone, in safetensors, known by its SHA-256."""

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from app.errors import DictionaryDamaged
from app.store.hashed import Hashed

TENSOR = "dictionary"
WEIGHTS_FILE = "dictionary.safetensors"


def written(D: np.ndarray) -> Hashed:
    """The file of D."""
    return Hashed.of(safetensors.numpy.save({TENSOR: np.ascontiguousarray(D)}))


def read(weights: bytes, shape: tuple[int, int], where: str) -> np.ndarray:
    """D, float32 of this shape, from a file that is whole."""
    try:
        D: np.ndarray = safetensors.numpy.load(weights)[TENSOR]
    except (SafetensorError, KeyError):
        raise DictionaryDamaged(f"{WEIGHTS_FILE} of {where} holds no tensor {TENSOR!r}") from None
    if D.shape != shape or D.dtype != np.float32:
        raise DictionaryDamaged(f"{WEIGHTS_FILE} of {where} does not hold what its meta.json tells of")
    return D
