"""Sums over all numbers of an array, in float64, as fast as they come from memory.

Torch, asked for a sum in float64, has a copy of all in float64 before it adds.

Compiled by numba.
"""

import numpy as np

from core.compiled import Array, compiled


@compiled()
def sums(x: Array) -> tuple[float, float]:
    """Σ x and Σ x² of x (n,)."""
    total, squares = 0.0, 0.0
    for i in range(x.size):
        exact = np.float64(x[i])
        total += exact
        squares += exact * exact
    return total, squares
