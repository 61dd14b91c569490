"""The figures file of a version: what is known of each concept (`core.figures`), in safetensors."""

from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from app.errors import DictionaryDamaged

FIGURES_FILE = "figures.safetensors"

INTEGERS, CODES = np.dtype(np.int64), np.dtype(np.float32)
# dtype, and whether there are several of each concept
TENSORS = {
    "nearest": (INTEGERS, True),
    "cosines": (CODES, True),
    "uses": (INTEGERS, False),
    "largest": (CODES, False),
    "histogram": (INTEGERS, True),
    "top_rows": (INTEGERS, True),
    "top_codes": (CODES, True),
    "together": (INTEGERS, True),
    "overlap": (CODES, True),
}

Figures = Mapping[str, np.ndarray]  # of k concepts, by name; what is not known is not there


def written(figures: Figures) -> bytes:
    content: bytes = safetensors.numpy.save({name: figures[name] for name in TENSORS if name in figures})
    return content


def read(content: bytes, nb_concepts: int, where: str) -> Figures:
    """The figures of so many concepts, from a file that is whole."""
    try:
        found: dict[str, np.ndarray] = safetensors.numpy.load(content)
    except SafetensorError:
        raise DictionaryDamaged(f"{FIGURES_FILE} of {where} holds no tensors") from None
    for name, array in found.items():
        if name not in TENSORS:
            continue
        dtype, are_several = TENSORS[name]
        if array.dtype != dtype or array.ndim != 1 + are_several or len(array) != nb_concepts:
            raise DictionaryDamaged(f"{name!r} in {FIGURES_FILE} of {where} is not of {nb_concepts} concepts")
    return {name: found[name] for name in TENSORS if name in found}
