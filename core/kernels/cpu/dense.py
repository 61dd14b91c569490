"""Exact non-negative least squares on the CPU for few concepts: sixteen rows in lockstep, one in each lane.

With at most a few hundred concepts the codes are often dense, and every concept is in the problem of every row:
sweeps of coordinate descent find most of the support, then exact solves on it (Cholesky, as in block principal
pivoting: Kim & Park 2011) alternate with a few sweeps that correct it. The gradient of all concepts is then taken
afresh through the residual, (zD − a)·Dᵀ, which certifies the codes or starts another round.

A row alone is bound by latency: each coordinate waits for the one before, each pivot for its column. Sixteen rows
share those waits; their supports differ, and the shorter ones are padded with the identity. Where few rows are left,
they are swept by themselves. What is computed for a row does not depend on the rows beside it, to the last bit.

Compiled by numba; all arrays are C-contiguous and of one float dtype.
"""

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.cholesky import PIVOT_ROUNDINGS, factor_for_step, pivot, solve_in_order
from core.kernels.cpu.lanes import (
    LANES,
    add,
    add_product,
    add_scaled,
    any_lane,
    larger,
    load,
    multiply,
    projected_gradient,
    reciprocal_root,
    splat,
    store,
    subtract,
    subtract_product,
    zeros_of,
)
from core.kernels.cpu.panels import gradients, padded
from core.kernels.cpu.products import norm_of, relative, residual_of
from core.kernels.cpu.small import MOST_SPANNED, SHORTER, is_beyond
from core.kernels.cpu.sweeps import sweep_lanes, sweep_row
from core.kernels.encode_rules import LAST_SHARE
from core.kernels.prepared import Prepared
from core.levels import has

# Sweeps find most of the support; from then on exact solves on it alternate with a few sweeps that correct it.
SWEEPS_AT_FIRST = 12
SWEEPS_BETWEEN = 3
# Whether registers hold sixteen vectors and more; else sums of a quarter as many are made at a time, twice as fast.
HOLDS_SIXTEEN = has("avx512f")
# So few rows are swept one by one: each passes over the coordinates that stay, and lanes would be idle.
FEW = 3


@compiled()
def _copy(X: Array, Y: Array) -> None:
    """Y becomes X. (What checks the shapes of slices, and puts them in words, compiles longer than many a kernel.)"""
    for i in range(X.shape[0]):
        store(Y, i, load(X, i))


# --- sweeps -----------------------------------------------------------------------------------------------------


@compiled()
def _sweep(
    z: Array, g: Array, B: Array, inverse: Array, active: Array, sweeps: Array, count: int, max_sweeps: int
) -> None:
    """Up to `count` sweeps of each active row, until its support stays; `sweeps` counts them up to `max_sweeps`."""
    sweeping, flips, progress = active.copy(), np.empty_like(active), np.empty_like(active)
    left = np.count_nonzero(sweeping)
    while left > FEW and count > 0:
        sweep_lanes(z, g, B, inverse, sweeping, flips, progress)
        count -= 1
        for s in range(LANES):
            if sweeping[s] > 0:
                sweeps[s] += 1
                if flips[s] == 0 or sweeps[s] >= max_sweeps:
                    sweeping[s] = 0
                    left -= 1
    for s in range(LANES):
        if sweeping[s] > 0 and count > 0:
            z_row, g_row = z[:, s].copy(), g[:, s].copy()
            for _ in range(min(count, max_sweeps - sweeps[s])):
                sweeps[s] += 1
                if not sweep_row(z_row, g_row, B, inverse)[1]:
                    break
            z[:, s], g[:, s] = z_row, g_row


# --- exact steps ------------------------------------------------------------------------------------------------


@compiled()
def _quarter(L: Array, width: int, top: int, left: int, columns: int, products: Array, at: int) -> None:
    """Inner products of rows top and top + 1 of L with rows left and left + 1, over the first `columns` columns."""
    p00 = p01 = p10 = p11 = zeros_of(L)
    x, y = top * width, left * width
    for m in range(columns):
        x0, x1 = load(L, x + m), load(L, x + width + m)
        y0, y1 = load(L, y + m), load(L, y + width + m)
        p00, p01 = add_product(p00, x0, y0), add_product(p01, x0, y1)
        p10, p11 = add_product(p10, x1, y0), add_product(p11, x1, y1)
    store(products, at, p00), store(products, at + 1, p01)
    store(products, at + 4, p10), store(products, at + 5, p11)


@compiled()
def _tile(L: Array, width: int, top: int, left: int, products: Array) -> None:
    """Inner products of rows top to top + 3 of L with rows left to left + 3, over the first `left` columns."""
    if not HOLDS_SIXTEEN:
        for at in (0, 2, 8, 10):
            _quarter(L, width, top + at // 8 * 2, left + at % 8, left, products, at)
        return
    zero = zeros_of(L)
    p00 = p01 = p02 = p03 = p10 = p11 = p12 = p13 = zero
    p20 = p21 = p22 = p23 = p30 = p31 = p32 = p33 = zero
    x, y = top * width, left * width
    for m in range(left):
        y0, y1, y2, y3 = (
            load(L, y + m),
            load(L, y + width + m),
            load(L, y + 2 * width + m),
            load(L, y + 3 * width + m),
        )
        x0 = load(L, x + m)
        p00, p01 = add_product(p00, x0, y0), add_product(p01, x0, y1)
        p02, p03 = add_product(p02, x0, y2), add_product(p03, x0, y3)
        x1 = load(L, x + width + m)
        p10, p11 = add_product(p10, x1, y0), add_product(p11, x1, y1)
        p12, p13 = add_product(p12, x1, y2), add_product(p13, x1, y3)
        x2 = load(L, x + 2 * width + m)
        p20, p21 = add_product(p20, x2, y0), add_product(p21, x2, y1)
        p22, p23 = add_product(p22, x2, y2), add_product(p23, x2, y3)
        x3 = load(L, x + 3 * width + m)
        p30, p31 = add_product(p30, x3, y0), add_product(p31, x3, y1)
        p32, p33 = add_product(p32, x3, y2), add_product(p33, x3, y3)
    store(products, 0, p00), store(products, 1, p01), store(products, 2, p02), store(products, 3, p03)
    store(products, 4, p10), store(products, 5, p11), store(products, 6, p12), store(products, 7, p13)
    store(products, 8, p20), store(products, 9, p21), store(products, 10, p22), store(products, 11, p23)
    store(products, 12, p30), store(products, 13, p31), store(products, 14, p32), store(products, 15, p33)


@compiled()
def _gather(B: Array, support: Array, used: Array, size: int, L: Array, least: Array) -> None:
    """The lower triangle of each row's B on its support, the identity beyond it; and the least pivots."""
    k, B_flat = B.shape[0], B.ravel()
    starts, lanes = np.empty(LANES, np.int64), np.nonzero(used)[0]
    for i in range(size):
        row = i * size
        for s in range(LANES):
            starts[s] = support[i, s] * k
        for j in range(i + 1):
            if lanes.size > FEW:
                for s in range(LANES):
                    L[row + j, s] = B_flat[starts[s] + support[j, s]] if i < used[s] else 0
            else:
                store(L, row + j, zeros_of(L))
                for lane in lanes:
                    if i < used[lane]:
                        L[row + j, lane] = B_flat[starts[lane] + support[j, lane]]
        for s in range(LANES):
            if i >= used[s]:
                L[row + i, s] = 1
            least[i, s] = PIVOT_ROUNDINGS * np.finfo(B.dtype).eps * L[row + i, s]


@compiled()
def _factor(L: Array, size: int, least: Array) -> None:
    """Cholesky factors in place, with reciprocal pivots; a concept that those before it span gets a zero one."""
    products = np.empty((16, LANES), L.dtype)
    for top in range(0, size, 4):
        for left in range(0, top + 1, 4):
            _tile(L, size, top, left, products)
            for q in range(4):
                j = left + q
                for p in range(q if left == top else 0, 4):
                    i = top + p
                    value = subtract(load(L, i * size + j), load(products, 4 * p + q))
                    for m in range(left, j):
                        value = subtract_product(value, load(L, i * size + m), load(L, j * size + m))
                    if i == j:
                        store(L, i * size + i, reciprocal_root(value, load(least, i)))
                    else:
                        store(L, i * size + j, multiply(value, load(L, j * size + j)))


@compiled()
def _solve_factored(L: Array, size: int, x: Array) -> None:
    """x ← (L·Lᵀ)⁻¹x; x becomes zero where the pivot is."""
    for i in range(size):
        value = multiply(load(x, i), load(L, i * size + i))
        store(x, i, value)
        for m in range(i + 1, size):
            store(x, m, subtract_product(load(x, m), load(L, m * size + i), value))
    for i in range(size - 1, -1, -1):
        row = i * size
        value = multiply(load(x, i), load(L, row + i))
        store(x, i, value)
        for m in range(i):
            store(x, m, subtract_product(load(x, m), load(L, row + m), value))


@compiled()
def _step_in_lanes(B: Array, support: Array, used: Array, z: Array, room: Array, step: Array, dropped: Array) -> None:
    """`step` (size, LANES), the negative gradient on the supports, becomes the way to the minimisers on them.

    A concept that others of the support span is `dropped`, and its share of zD passes to those others.
    """
    size = (used.max() + 3) // 4 * 4
    L, least = room[: size * size], np.empty((size, LANES), z.dtype)
    _gather(B, support, used, size, L, least)
    _factor(L, size, least)
    for s in range(LANES):
        for i in range(used[s]):
            if L[i * size + i, s] == 0:
                dropped[i, s] = True
                dependent, share = B[support[i, s]], z[support[i, s], s]
                for j in range(used[s]):
                    step[j, s] += dependent[support[j, s]] * share
    _solve_factored(L, size, step)


@compiled()
def _step_alone(B: Array, support: Array, z: Array, U: Array, step: Array, dropped: Array) -> None:
    """The same for one row, to the last bit."""
    factor_for_step(B, support, z, U, step)
    for i in range(support.size):
        dropped[i] = pivot(U, support.size, i) == 0
    solve_in_order(U, step)


@compiled()
def _gradient_at(trial: Array, z: Array, g: Array, B: Array, trial_g: Array, used: Array) -> None:
    """The gradient at the trial codes, which differ from z in the lanes that use something."""
    k = B.shape[0]
    _copy(g, trial_g)
    lanes = np.nonzero(used)[0]
    if lanes.size <= FEW:
        for s in lanes:
            row = g[:, s].copy()
            for j in range(k):
                delta = trial[j, s] - z[j, s]
                if delta != 0:
                    for m in range(k):
                        row[m] += delta * B[j, m]
            trial_g[:, s] = row
        return
    for j in range(0, k // 4 * 4, 4):
        d0, d1 = subtract(load(trial, j), load(z, j)), subtract(load(trial, j + 1), load(z, j + 1))
        d2, d3 = subtract(load(trial, j + 2), load(z, j + 2)), subtract(load(trial, j + 3), load(z, j + 3))
        if any_lane(d0) or any_lane(d1) or any_lane(d2) or any_lane(d3):
            for m in range(k):
                moved = add_scaled(add_scaled(load(trial_g, m), B[j, m], d0), B[j + 1, m], d1)
                store(trial_g, m, add_scaled(add_scaled(moved, B[j + 2, m], d2), B[j + 3, m], d3))
    for j in range(k // 4 * 4, k):
        delta_of_all = subtract(load(trial, j), load(z, j))
        for m in range(k):
            store(trial_g, m, add_scaled(load(trial_g, m), B[j, m], delta_of_all))


@compiled()
def _change(z: Array, g: Array, trial: Array, trial_g: Array, change: Array) -> None:
    """By how much the objective of each row changes from z to the trial codes, twice."""
    total = zeros_of(g)
    for j in range(z.shape[0]):
        total = add_product(total, subtract(load(trial, j), load(z, j)), add(load(g, j), load(trial_g, j)))
    store(change, 0, total)


@compiled()
def _exact_step(
    z: Array,
    g: Array,
    B: Array,
    inverse: Array,
    norms: Array,
    stepping: Array,
    trial: Array,
    trial_g: Array,
    room: Array,
    spanned: Array,
) -> None:
    """Every stepping row towards the minimiser on the support of its z, in place, as `exact_step` in
    `core.kernels.cpu.small`.

    `spanned` counts the steps of a row that were refused, or cut short on a support of which some concepts span
    others. Few rows are factored one by one, at the rate of the vector units too.
    """
    k = B.shape[0]
    support, used = np.zeros((k + 3, LANES), np.int64), np.zeros(LANES, np.int64)
    for s in range(LANES):
        if stepping[s] > 0:
            for j in range(k):
                if z[j, s] > 0:
                    support[used[s], s] = j
                    used[s] += 1
    size = (used.max() + 3) // 4 * 4
    step, dropped = np.zeros((size + 1, LANES), z.dtype), np.zeros((size + 1, LANES), np.bool_)
    for s in range(LANES):
        for i in range(used[s]):
            step[i, s] = -g[support[i, s], s]
    if np.count_nonzero(used) > FEW:
        _step_in_lanes(B, support, used, z, room, step, dropped)
    else:
        for s in range(LANES):
            n = used[s]
            if n > 0:
                way, gone = step[:n, s].copy(), dropped[:n, s].copy()
                _step_alone(B, support[:n, s].copy(), z[:, s].copy(), room, way, gone)
                step[:n, s], dropped[:n, s] = way, gone

    _copy(z, trial)
    reach, share, change = np.ones(LANES, z.dtype), np.ones(LANES, z.dtype), np.empty(LANES, z.dtype)
    for s in range(LANES):
        for i in range(used[s]):
            j = support[i, s]
            if dropped[i, s]:
                step[i, s] = -z[j, s]
            if step[i, s] < 0 and not z[j, s] + step[i, s] > 0:
                reach[s] = min(reach[s], -z[j, s] / step[i, s])
    again, refused = True, np.zeros(LANES, np.bool_)
    while again:
        again, refused[:] = False, False
        for s in range(LANES):
            for i in range(used[s]):
                j = support[i, s]
                stops = step[i, s] < 0 and -z[j, s] / step[i, s] <= share[s]
                trial[j, s] = 0 if stops else max(z[j, s] + share[s] * step[i, s], 0)
                refused[s] |= is_beyond(trial[j, s], norms[s], inverse[j])
        _gradient_at(trial, z, g, B, trial_g, used)
        _change(z, g, trial, trial_g, change)
        for s in range(LANES):
            if (refused[s] or change[s] > 0) and share[s] > reach[s]:
                share[s] = max(SHORTER * share[s], reach[s])
                again = True
    for s in range(LANES):
        spanned[s] += refused[s] or (share[s] < 1 and np.any(dropped[:, s]))
        if refused[s]:
            trial[:, s], trial_g[:, s] = z[:, s], g[:, s]
    _copy(trial, z)
    _copy(trial_g, g)


# --- rows -------------------------------------------------------------------------------------------------------


@compiled()
def _kkt_residuals(z: Array, g: Array, inverse: Array, residuals: Array) -> None:
    """max_j |v_j|/‖d_j‖ of each row; NaN where the gradient is."""
    worst = zeros_of(z)
    for j in range(z.shape[0]):
        v = projected_gradient(load(z, j), load(g, j))
        worst = larger(worst, multiply(multiply(v, v), splat(inverse[j])))
    store(residuals, 0, worst)
    for s in range(LANES):
        residuals[s] = np.sqrt(residuals[s])


@compiled()
def _solve_small(
    z: Array,
    g: Array,
    B: Array,
    inverse: Array,
    norms: Array,
    aims: Array,
    alive: Array,
    sweeps: Array,
    max_sweeps: int,
    room: Array,
) -> None:
    """Lower the residual of the rows that are alive to their aims, in place, in at most `max_sweeps` of each."""
    trial, trial_g = np.empty_like(z), np.empty_like(z)
    active, stepping, residuals, spanned = alive.copy(), alive.copy(), alive.copy(), np.zeros(LANES, np.int64)
    allowed = SWEEPS_AT_FIRST
    while np.any(active > 0):
        for s in range(LANES):
            stepping[s] = active[s]
        _sweep(z, g, B, inverse, active, sweeps, allowed, max_sweeps)
        _exact_step(z, g, B, inverse, norms, stepping, trial, trial_g, room, spanned)
        _kkt_residuals(z, g, inverse, residuals)
        for s in range(LANES):
            if spanned[s] == MOST_SPANNED:
                sweeps[s] = max_sweeps  # left to `core.kernels.cpu.dependent`
            if not (residuals[s] > aims[s] and sweeps[s] < max_sweeps):
                active[s] = 0
        allowed = SWEEPS_BETWEEN


@compiled()
def _solve_tile(
    A: Array, prepared: Prepared, tol: float, Z: Array, residual: Array, max_sweeps: int, first: int, last: int
) -> None:
    """Rows first to last, at most LANES of them."""
    D, panels, k, count = prepared.D, prepared.panels, prepared.D.shape[0], last - first
    z, g = np.zeros((k, LANES), A.dtype), np.zeros((k, LANES), A.dtype)
    R = np.zeros((padded(count), A.shape[1]), A.dtype)
    G = np.zeros((R.shape[0], panels.shape[0] * panels.shape[2]), A.dtype)
    alive, norms = np.zeros(LANES, A.dtype), np.zeros(LANES, A.dtype)
    residuals, aims = np.zeros(LANES, A.dtype), np.zeros(LANES, A.dtype)
    sweeps, rows = np.zeros(LANES, np.int64), np.arange(count)
    room = np.empty((0, LANES), A.dtype)
    for s in range(count):
        R[s] = -A[first + s]
        norms[s] = norm_of(R[s])
        alive[s], aims[s] = 1, LAST_SHARE * tol * norms[s]
    while True:
        gradients(R, rows.size, panels, G)
        for at in range(rows.size):
            g[:, rows[at]] = G[at, :k]
        _kkt_residuals(z, g, prepared.inverse, residuals)
        for s in range(count):
            reached = relative(residuals[s], norms[s])
            if alive[s] > 0 and not (reached > tol and sweeps[s] < max_sweeps):
                alive[s], residual[first + s] = 0, reached
                Z[first + s] = z[:, s]
        rows = np.nonzero(alive)[0]
        if rows.size == 0:
            break
        if room.size == 0:
            room = np.empty(((k + 3) // 4 * 4 * ((k + 3) // 4 * 4), LANES), A.dtype)
        _solve_small(z, g, prepared.B, prepared.inverse, norms, aims, alive, sweeps, max_sweeps, room)
        for at in range(rows.size):
            s = rows[at]
            support = np.nonzero(z[:, s])[0]
            residual_of(A[first + s], z[support, s], support, D, R[at])


@compiled()
def solve_some(
    A: Array, prepared: Prepared, tol: float, Z: Array, residual: Array, max_sweeps: int, first: int, last: int
) -> None:
    """See `core.kernels.solve`, in place on rows first to last of Z (zeros) and residual; the gram is held."""
    tiles = (last - first + LANES - 1) // LANES
    for tile in range(tiles):
        start, stop = first + tile * (last - first) // tiles, first + (tile + 1) * (last - first) // tiles
        _solve_tile(A, prepared, tol, Z, residual, max_sweeps, start, stop)
