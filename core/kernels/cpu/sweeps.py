"""One pass over the coordinates of non-negative least squares: of one row, or of sixteen in lockstep.

Given codes z and their gradient g = zB − c, each coordinate in turn goes to its minimum, δ = max(0, z_j − g_j/B_jj) −
z_j, and takes the gradient along, g += δ·B_j (Cichocki, Zdunek & Amari 2007). One row passes over the coordinates
that stay, which is fast where most do; sixteen share the waiting of each coordinate for the one before, which is fast
where most move. Both round alike.
"""

from typing import Any

from core.compiled import Array, compiled
from core.kernels.cpu.lanes import (
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
def _moved(z: Any, g: Any, active: Any, inverse: float) -> Any:
    """A coordinate of the active rows at its minimum."""
    return where_positive(active, positive_part(add_scaled(z, -inverse, g)), z)


@compiled()
def _flipped(flips: Any, z: Any, moved: Any, nothing: Any) -> Any:
    """`flips`, above zero also where the coordinate joins the support or leaves it."""
    return larger(flips, where_positive(z, where_positive(moved, nothing, z), moved))


@compiled()
def sweep_lanes(z: Array, g: Array, B: Array, inverse: Array, active: Array, flips: Array, progress: Array) -> None:
    """The same for the rows whose lane of `active` (LANES,) is above zero; z and g are (k, LANES).

    `progress` (LANES,) and `flips` (LANES,), which is above zero where the support changed, are answers. Four
    coordinates at a time: the gradient of each after the moves before it, in registers, for each waits for the one
    before; then that of all at once.
    """
    k, here, nothing = B.shape[0], load(active, 0), zeros_of(z)
    flip, total = nothing, nothing
    for j in range(0, k // 4 * 4, 4):
        b0, b1, b2, b3 = B[j], B[j + 1], B[j + 2], B[j + 3]
        z0, z1, z2, z3 = load(z, j), load(z, j + 1), load(z, j + 2), load(z, j + 3)
        m0 = _moved(z0, load(g, j), here, inverse[j])
        d0 = subtract(m0, z0)
        m1 = _moved(z1, add_scaled(load(g, j + 1), b0[j + 1], d0), here, inverse[j + 1])
        d1 = subtract(m1, z1)
        g2 = add_scaled(add_scaled(load(g, j + 2), b0[j + 2], d0), b1[j + 2], d1)
        m2 = _moved(z2, g2, here, inverse[j + 2])
        d2 = subtract(m2, z2)
        g3 = add_scaled(add_scaled(add_scaled(load(g, j + 3), b0[j + 3], d0), b1[j + 3], d1), b2[j + 3], d2)
        m3 = _moved(z3, g3, here, inverse[j + 3])
        d3 = subtract(m3, z3)
        if any_lane(d0) or any_lane(d1) or any_lane(d2) or any_lane(d3):
            store(z, j, m0), store(z, j + 1, m1), store(z, j + 2, m2), store(z, j + 3, m3)
            flip = _flipped(_flipped(flip, z0, m0, nothing), z1, m1, nothing)
            flip = _flipped(_flipped(flip, z2, m2, nothing), z3, m3, nothing)
            total = add_product(total, multiply(d0, d0), splat(b0[j]))
            total = add_product(total, multiply(d1, d1), splat(b1[j + 1]))
            total = add_product(total, multiply(d2, d2), splat(b2[j + 2]))
            total = add_product(total, multiply(d3, d3), splat(b3[j + 3]))
            for m in range(k):
                moved = add_scaled(add_scaled(load(g, m), b0[m], d0), b1[m], d1)
                store(g, m, add_scaled(add_scaled(moved, b2[m], d2), b3[m], d3))
    for j in range(k // 4 * 4, k):
        z0, b0 = load(z, j), B[j]
        m0 = _moved(z0, load(g, j), here, inverse[j])
        d0 = subtract(m0, z0)
        store(z, j, m0)
        flip, total = _flipped(flip, z0, m0, nothing), add_product(total, multiply(d0, d0), splat(b0[j]))
        for m in range(k):
            store(g, m, add_scaled(load(g, m), b0[m], d0))
    store(flips, 0, flip)
    store(progress, 0, total)
