"""One pass over the coordinates of non-negative least squares: of one row, or of sixteen in lockstep.

Given codes z and their gradient g = zB − c, each coordinate in turn goes to its minimum, δ = max(0, z_j − g_j/B_jj) −
z_j, and takes the gradient along, g += δ·B_j (Cichocki, Zdunek & Amari 2007). One row passes over the coordinates
that stay, which is fast where most do; sixteen share the waiting of each coordinate for the one before, which is fast
where most move. Both round alike.
"""

from typing import Any

import numpy as np

from core.compiled import compiled
from core.kernels.lanes import (
    add_product,
    add_scaled,
    any_lane,
    larger,
    load,
    multiply,
    positive_part,
    splat,
    store,
    subtract,
    where_positive,
    zeros_of,
)

Array = np.ndarray[Any, np.dtype[Any]]


@compiled()
def sweep_row(z: Array, g: Array, B: Array, inverse: Array) -> tuple[float, bool]:
    """z (k,) and g (k,) in place; the progress Σ δ²·B_jj, and whether the support changed."""
    progress, changed = 0.0, False
    for j in range(z.size):
        if inverse[j] == 0 or (z[j] == 0 and g[j] >= 0):
            continue
        moved = z[j] - g[j] * inverse[j]
        if moved <= 0:
            moved = z[j] - z[j]
        delta = moved - z[j]
        if delta != 0:
            changed |= z[j] == 0 or moved == 0
            z[j] = moved
            row = B[j]
            for m in range(z.size):
                g[m] += delta * row[m]
            progress += delta * delta * row[j]
    return progress, changed


@compiled()
def _move(z: Array, g: Array, active: Array, flips: Array, j: int, inverse: float):  # type: ignore[no-untyped-def]
    """Coordinate j of the active rows to its minimum: by how much. `flips` grows where it joins or leaves."""
    here = load(z, j)
    moved = where_positive(load(active, 0), positive_part(add_scaled(here, -inverse, load(g, j))), here)
    store(z, j, moved)
    flip = where_positive(here, where_positive(moved, zeros_of(z), here), moved)
    store(flips, 0, larger(load(flips, 0), flip))
    return subtract(moved, here)


@compiled()
def sweep_lanes(z: Array, g: Array, B: Array, inverse: Array, active: Array, flips: Array, progress: Array) -> None:
    """The same for the rows whose lane of `active` (LANES,) is above zero; z and g are (k, LANES).

    `progress` (LANES,) and `flips` (LANES,), which is above zero where the support changed, are answers. Four
    coordinates at a time: the gradient of each after the moves before it, then that of all the rest at once.
    """
    k = B.shape[0]
    flips[:] = 0
    total = zeros_of(z)
    for j in range(0, k // 4 * 4, 4):
        b0, b1, b2, b3 = B[j], B[j + 1], B[j + 2], B[j + 3]
        g1, g2, g3 = load(g, j + 1), load(g, j + 2), load(g, j + 3)
        d0 = _move(z, g, active, flips, j, inverse[j])
        store(g, j + 1, add_scaled(g1, b0[j + 1], d0))
        d1 = _move(z, g, active, flips, j + 1, inverse[j + 1])
        store(g, j + 2, add_scaled(add_scaled(g2, b0[j + 2], d0), b1[j + 2], d1))
        d2 = _move(z, g, active, flips, j + 2, inverse[j + 2])
        store(g, j + 3, add_scaled(add_scaled(add_scaled(g3, b0[j + 3], d0), b1[j + 3], d1), b2[j + 3], d2))
        d3 = _move(z, g, active, flips, j + 3, inverse[j + 3])
        store(g, j + 1, g1)
        store(g, j + 2, g2)
        store(g, j + 3, g3)
        if any_lane(d0) or any_lane(d1) or any_lane(d2) or any_lane(d3):
            total = add_product(total, multiply(d0, d0), splat(b0[j]))
            total = add_product(total, multiply(d1, d1), splat(b1[j + 1]))
            total = add_product(total, multiply(d2, d2), splat(b2[j + 2]))
            total = add_product(total, multiply(d3, d3), splat(b3[j + 3]))
            for m in range(k):
                moved = add_scaled(add_scaled(load(g, m), b0[m], d0), b1[m], d1)
                store(g, m, add_scaled(add_scaled(moved, b2[m], d2), b3[m], d3))
    for j in range(k // 4 * 4, k):
        delta, b = _move(z, g, active, flips, j, inverse[j]), B[j]
        total = add_product(total, multiply(delta, delta), splat(b[j]))
        for m in range(k):
            store(g, m, add_scaled(load(g, m), b[m], delta))
    store(progress, 0, total)
