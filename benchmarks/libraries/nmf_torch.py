"""nmf-torch; its encode is the non-negative least squares of its `bpp` solver, block principal pivoting."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nmf import run_nmf
from nmf.utils import nnls_bpp

DEFAULT_THREADS = torch.get_num_threads()


def fit(A: np.ndarray, nb_concepts: int, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    Z, D, _ = run_nmf(A, nb_concepts, **settings)
    return Z, D


def encoder(D: np.ndarray, *, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    concepts = torch.from_numpy(D)
    gram = concepts @ concepts.T

    def encode(A: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads or DEFAULT_THREADS)
        Z = torch.zeros(len(A), len(concepts))
        if nnls_bpp(gram, (torch.from_numpy(A) @ concepts.T).T, Z.T, "cpu") < 0:
            raise ArithmeticError("its block principal pivoting did not converge")
        return Z.numpy()

    return encode
