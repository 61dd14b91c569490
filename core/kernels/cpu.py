"""The kernels for the CPU: rows in parallel, each row and its gradient in cache, unchanged coordinates for free.

Compiled by numba; all arrays are C-contiguous and of one float dtype. `core.kernels.reference` defines what is
computed. Everything compiled calls only into its own file: numba renews its disk cache when the file of the
outermost function changes, and at no other time.
"""

from typing import Any

import numba
import numpy as np
import torch

from core.kernels.active_set import solve_rows as _solve
from core.threads import compiled, threads_for

Array = np.ndarray[Any, np.dtype[Any]]

# No more concepts than this, and than features: the codes are often dense, and every working set holds them all.
WHOLE = 256
# Rows handed to a thread in one piece, so that one held up by another process does not hold up the rest.
ROWS_PER_PIECE = 32


def descend(
    Z: torch.Tensor, G: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor, max_sweeps: int, share: float
) -> torch.Tensor:
    """See `core.kernels.descend`."""
    violation = Z.new_empty(len(Z))
    with threads_for(Z.numel() * B.shape[0]):
        _descend(Z.numpy(), G.numpy(), B.numpy(), inverse.numpy(), violation.numpy(), max_sweeps, share)
    return violation


def solve(
    A: torch.Tensor,
    D: torch.Tensor,
    B: torch.Tensor | None,
    inverse: torch.Tensor,
    tolerance: torch.Tensor,
    max_sweeps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `core.kernels.solve`; each row to the same last bit whatever the batch.

    Holds beside Z, for each of 16 rows a thread, k + 2d numbers and the square of its working set.
    """
    Z, residual = A.new_zeros(len(A), len(D)), torch.zeros_like(tolerance)
    whole = len(D) <= min(WHOLE, D.shape[1])
    if B is None:
        B = D @ D.T if whole else D.new_empty(0, 0)
    given = A.numpy(), D.numpy(), B.numpy(), inverse.numpy(), tolerance.numpy()
    with threads_for(len(A) * len(D) * (A.shape[1] + len(D))):
        threads = numba.get_num_threads()
        pieces = min(len(A), threads * max(1, len(A) // (threads * ROWS_PER_PIECE)))
        _solve(*given, Z.numpy(), residual.numpy(), whole, max_sweeps, pieces)
    return Z, residual


# --- descent ----------------------------------------------------------------------------------------------------


@compiled()
def _sweep(z: Array, g: Array, B: Array, inverse: Array) -> float:
    """One pass over the coordinates of a row: its progress."""
    progress = 0.0
    for j in range(z.size):
        if inverse[j] == 0 or (z[j] == 0 and g[j] >= 0):
            continue
        moved = z[j] - g[j] * inverse[j]
        if moved <= 0:
            moved = z[j] - z[j]
        delta = moved - z[j]
        if delta != 0:
            z[j] = moved
            row = B[j]
            for m in range(z.size):
                g[m] += delta * row[m]
            progress += delta * delta / inverse[j]
    return progress


@compiled()
def _violation(z: Array, g: Array, inverse: Array) -> float:
    """Σ v²/B_jj; the comparison is one that NaN does not pass unseen."""
    total = 0.0
    for j in range(z.size):
        if z[j] > 0 or not g[j] >= 0:
            total += g[j] * g[j] * inverse[j]
    return total


@compiled()
def _descend_row(z: Array, g: Array, B: Array, inverse: Array, max_sweeps: int, share: float) -> None:
    first = _sweep(z, g, B, inverse)
    for _ in range(max_sweeps - 1):
        if _sweep(z, g, B, inverse) <= share * first:
            break


@compiled(parallel=True)
def _descend(Z: Array, G: Array, B: Array, inverse: Array, violation: Array, max_sweeps: int, share: float) -> None:
    for i in numba.prange(Z.shape[0]):
        violation[i] = _violation(Z[i], G[i], inverse)
        _descend_row(Z[i], G[i], B, inverse, max_sweeps, share)
