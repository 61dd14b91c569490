"""A few sweeps of coordinate descent from given codes, row by row or sixteen in lockstep, whichever is faster.

Compiled by numba; all arrays are C-contiguous and of one float dtype.
"""

import numba
import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.lanes import LANES, load, store
from core.kernels.cpu.sweeps import sweep_lanes, sweep_row

# Sweeping sixteen rows in lockstep costs k·k a row; one by one, for each coordinate that moves, k and as much as this
# many more for the waiting. (Measured at k = 64 to 1024.)
SPARED = 400


@compiled()
def _violation(z: Array, g: Array, inverse: Array) -> float:
    """Σ v²/B_jj; the comparison is one that NaN does not pass unseen."""
    total = 0.0
    for j in range(z.size):
        if z[j] > 0 or not g[j] >= 0:
            total += g[j] * g[j] * inverse[j]
    return total


@compiled()
def _live(Z: Array, G: Array) -> int:
    """Coordinates that a sweep has to do with: above zero, or about to be."""
    live = 0
    for i in range(Z.shape[0]):
        z, g = Z[i], G[i]
        for j in range(z.size):
            live += z[j] > 0 or g[j] < 0
    return live


@compiled()
def _one_by_one(Z: Array, G: Array, B: Array, inverse: Array, max_sweeps: int, progress_ratio: float) -> None:
    for i in range(Z.shape[0]):
        first, _ = sweep_row(Z[i], G[i], B, inverse)
        for _ in range(max_sweeps - 1):
            if sweep_row(Z[i], G[i], B, inverse)[0] <= progress_ratio * first:
                break


@compiled()
def _in_lanes(Z: Array, G: Array, B: Array, inverse: Array, max_sweeps: int, progress_ratio: float) -> None:
    rows, k = Z.shape
    z, g = np.zeros((k, LANES), Z.dtype), np.zeros((k, LANES), Z.dtype)
    active, flips = np.zeros(LANES, Z.dtype), np.zeros(LANES, Z.dtype)
    progress, first = np.zeros(LANES, Z.dtype), np.zeros(LANES, Z.dtype)
    active[:rows] = 1
    for s in range(rows):
        for j in range(k):
            z[j, s], g[j, s] = Z[s, j], G[s, j]
    for sweep in range(max_sweeps):
        sweep_lanes(z, g, B, inverse, active, flips, progress)
        if sweep == 0:
            store(first, 0, load(progress, 0))
        left = False
        for s in range(rows):
            if progress[s] <= progress_ratio * first[s]:
                active[s] = 0
            left |= active[s] > 0
        if not left:
            break
    for s in range(rows):
        for j in range(k):
            Z[s, j], G[s, j] = z[j, s], g[j, s]


@compiled()
def descend_tile(
    Z: Array, G: Array, B: Array, inverse: Array, violation: Array, max_sweeps: int, progress_ratio: float
) -> None:
    """See `core.kernels.descend`, for no more than sixteen rows; `violation` (rows,) is an answer."""
    rows, k = Z.shape
    for i in range(rows):
        violation[i] = _violation(Z[i], G[i], inverse)
    if _live(Z, G) * (k + SPARED) > rows * k * k:
        _in_lanes(Z, G, B, inverse, max_sweeps, progress_ratio)
    else:
        _one_by_one(Z, G, B, inverse, max_sweeps, progress_ratio)


@compiled(parallel=True)
def descend_rows(
    Z: Array, G: Array, B: Array, inverse: Array, violation: Array, max_sweeps: int, progress_ratio: float
) -> None:
    """The same for any number of rows, on several threads."""
    rows = Z.shape[0]
    tiles = (rows + LANES - 1) // LANES
    for tile in numba.prange(tiles):
        first, last = tile * rows // tiles, (tile + 1) * rows // tiles
        descend_tile(Z[first:last], G[first:last], B, inverse, violation[first:last], max_sweeps, progress_ratio)
