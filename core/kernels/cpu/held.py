"""Minimisers on supports that change a little from step to step, by one factor that is held.

The factor is that of the gram on an earlier support. What has joined or left since borders its system, a concept that
joined by its products with those held, one that left by a unit vector that keeps its code at zero; the border is
eliminated, a system no larger than the change. That costs two triangular solves, for all of the border at once, each
in a lane of its own; a factor of the new support, as many as a third of its size.

Compiled by numba; all arrays are C-contiguous.
"""

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.cholesky import factor_for_step, pivot, solve, solve_in_lanes
from core.kernels.cpu.lanes import LANES, add_scaled, load, store, zeros_of

# One lane holds the step itself. A factor of fewer concepts than this is made as fast as it is bordered.
MOST_CHANGED = LANES - 1
WORTH_HOLDING = 48
# A pivot of the border that is less than this share of what it was has lost too many digits.
LEAST_PIVOT = 1e-3


@compiled()
def held_none(size: int) -> Array:
    """An empty list of concepts in one array: its length (0) at [0], then room for `size` of them."""
    return np.zeros(size + 1, np.int64)


@compiled()
def _changes(support: Array, held: Array, places: Array, left: Array, joined: Array) -> tuple[int, int]:
    """How many have left and how many have joined, more than `MOST_CHANGED` in all if that is too many.

    `places` becomes where each of the support stands among those held, or -1; `left` where those stood that have
    left; `joined` where those that have joined stand in the support. Both lists rise.
    """
    i = leaving = joining = 0
    for s in range(support.size + 1):
        while i < held[0] and (s == support.size or held[1 + i] < support[s]):
            if leaving + joining == MOST_CHANGED:
                return leaving + 1, joining
            left[leaving] = i
            leaving, i = leaving + 1, i + 1
        if s < support.size:
            if i < held[0] and held[1 + i] == support[s]:
                places[s] = i
                i += 1
            else:
                if leaving + joining == MOST_CHANGED:
                    return leaving, joining + 1
                places[s], joined[joining] = -1, s
                joining += 1
    return leaving, joining


@compiled()
def _eliminate(K: Array, sizes: Array, count: int) -> bool:
    """Row i's border in lane 1 + i and what it is to meet in lane 0, which becomes the solution; whether it can.

    No rows change places: what belongs to those that have joined is positive definite, the rest negative. `sizes` are
    of the pivots before anything was subtracted.
    """
    for i in range(count):
        if not abs(K[i, 1 + i]) > LEAST_PIVOT * sizes[i]:
            return False
        for m in range(count):
            if m != i:
                store(K, m, add_scaled(load(K, m), -K[m, 1 + i] / K[i, 1 + i], load(K, i)))
    for i in range(count):
        K[i, 0] /= K[i, 1 + i]
    return True


@compiled()
def _by_held(B: Array, support: Array, U: Array, held: Array, step: Array) -> bool:
    """`step`, the negative gradient on the support, becomes the way to its minimiser; whether it could."""
    n = held[0]
    places, left, joined = np.empty(support.size, np.int64), np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    leaving, joining = _changes(support, held, places, left, joined)
    count = leaving + joining
    if count > MOST_CHANGED:
        return False
    X, K = np.zeros(((n + 3) // 4 * 4, LANES), B.dtype), np.zeros((LANES, LANES), B.dtype)
    sizes = np.empty(LANES, B.dtype)
    for s in range(support.size):
        if places[s] >= 0:
            X[places[s], 0] = step[s]
    for q in range(joining):
        b = B[support[joined[q]]]
        for i in range(n):
            X[i, 1 + q] = b[held[1 + i]]
    for q in range(leaving):
        X[left[q], 1 + joining + q] = 1
    solve_in_lanes(U, n, X)
    for q in range(joining):
        row, sums = B[support[joined[q]]], zeros_of(K)
        for i in range(n):
            sums = add_scaled(sums, -row[held[1 + i]], load(X, i))
        store(K, q, sums)
        for p in range(joining):
            K[q, 1 + p] += row[support[joined[p]]]
        K[q, 0] += step[joined[q]]
        sizes[q] = row[support[joined[q]]]
    for q in range(leaving):
        for lane in range(LANES):
            K[joining + q, lane] = -X[left[q], lane]
        sizes[joining + q] = X[left[q], 1 + joining + q]
    if not _eliminate(K, sizes, count):
        return False
    for s in range(support.size):
        i = places[s]
        if i >= 0:
            way = X[i, 0]
            for q in range(count):
                way -= X[i, 1 + q] * K[q, 0]
            step[s] = way
    for q in range(joining):
        step[joined[q]] = K[q, 0]
    return True


@compiled()
def way_to_minimiser(B: Array, support: Array, z: Array, U: Array, held: Array, step: Array) -> None:
    """`step`, the negative gradient on the support, becomes the way to its minimiser; z holds all codes.

    By the factor U of the concepts `held`, or by one that is made now, and held from now on. A concept that others of
    the support span goes to zero; a factor that has met such is not held.
    """
    n = support.size
    if held[0] >= WORTH_HOLDING and _by_held(B, support, U, held, step):
        return
    factor_for_step(B, support, z, U, step)
    solve(U, step)
    is_whole = True
    held[1 : 1 + n] = support
    for i in range(n):
        if pivot(U, n, i) == 0:
            step[i] = -z[support[i]]
            is_whole = False
    held[0] = n if is_whole else 0
