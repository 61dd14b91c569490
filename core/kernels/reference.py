"""The kernels as definitions: plain loops over numpy arrays of any float dtype. The tests hold the others to these.

`sweep` and `descend` minimise ½‖a − zD‖² over z ≥ 0 for each row a of A by itself. With the gram B = D·Dᵀ and
c = a·Dᵀ the gradient at z is g = zB − c.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


def kkt_residual(z: Array, g: Array, B: Array) -> float:
    """max_j |v_j| / ‖d_j‖ with v_j = g_j where z_j > 0 and min(g_j, 0) elsewhere: zero exactly at the minimum.

    Divided by ‖a‖ it is free of scale: no residual of ‖a‖·‖d_j‖ or more can be missed, whatever the units.
    """
    worst = 0.0
    for j in range(len(z)):
        v = g[j] if z[j] > 0 else min(g[j], 0)
        if B[j, j] > 0:
            worst = max(worst, float(abs(v) / np.sqrt(B[j, j])))
    return worst


def sweep(z: Array, g: Array, B: Array) -> float:
    """Minimise over each coordinate of z in turn, in place, with g kept at zB − c; the sum of δ²·B_jj is returned.

    A concept of norm zero (B_jj = 0) explains nothing and is skipped.
    """
    progress = 0.0
    for j in range(len(z)):
        if B[j, j] > 0:
            delta = max(0, z[j] - g[j] / B[j, j]) - z[j]
            if delta != 0:
                z[j] += delta
                g += delta * B[j]
                progress += float(delta * delta * B[j, j])
    return progress


def descend(Z: Array, G: Array, B: Array, *, max_sweeps: int, progress_ratio: float) -> None:
    """Sweeps over each row of Z, in place, until a sweep's progress falls to `progress_ratio` of the first's."""
    for z, g in zip(Z, G, strict=True):
        first = sweep(z, g, B)
        for _ in range(max_sweeps - 1):
            if sweep(z, g, B) <= progress_ratio * first:
                break
