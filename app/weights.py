"""The weights file of a version: D alone, in safetensors, known by its SHA-256."""

import hashlib

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from app.errors import DictionaryDamaged

TENSOR = "dictionary"
WEIGHTS_FILE = "dictionary.safetensors"


def written(D: np.ndarray) -> tuple[bytes, str]:
    """The file of D and its SHA-256."""
    weights: bytes = safetensors.numpy.save({TENSOR: np.ascontiguousarray(D)})
    return weights, sha256(weights)


def sha256(weights: bytes) -> str:
    return hashlib.sha256(weights).hexdigest()


def require_whole(weights: bytes, expected: str, where: str) -> None:
    """Raises DictionaryDamaged where it is not the file with this SHA-256."""
    if sha256(weights) != expected:
        raise DictionaryDamaged(
            f"{WEIGHTS_FILE} of {where} is not what was written (its SHA-256 differs); "
            "restore it, or use another version"
        )


def read(weights: bytes, shape: tuple[int, int], where: str) -> np.ndarray:
    """D, float32 of this shape, from a file that is whole."""
    try:
        D: np.ndarray = safetensors.numpy.load(weights)[TENSOR]
    except (SafetensorError, KeyError):
        raise DictionaryDamaged(f"{WEIGHTS_FILE} of {where} holds no tensor {TENSOR!r}") from None
    if D.shape != shape or D.dtype != np.float32:
        raise DictionaryDamaged(f"{WEIGHTS_FILE} of {where} does not hold what its meta.json tells of")
    return D
