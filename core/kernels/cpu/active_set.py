"""Exact non-negative least squares on the CPU: for each row a working set of concepts, and exact solves on it.

A round for a row: the gradient of all concepts through the residual, g = (zD − a)·Dᵀ; the working set, which is the
support and the concepts that violate most or come nearest to it; a solve of that small problem on its gram, from the
gradient just taken (sweeps of coordinate descent find the support, Cholesky solves on it do the rest); the residual
afresh. Where no violator was left out, the gradient of the working set alone is taken afresh, too, and exact steps
repeated until it is as small as asked: the gradient of all concepts, which is what costs, then mostly has nothing
to add. A gradient is as exact as the residual is small, so that data that the dictionary meets exactly is met to
rounding.

Everything computed for a row is computed from that row alone in a fixed order, products included: its codes are
the same to the last bit whatever the batch. Rows share only the reading of D: a thread has a few rows in hand, takes
their gradients together at the rate of a matrix product, and puts the next row in the place of one that is done.

Compiled by numba; all arrays are C-contiguous and of one float dtype.
"""

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.cholesky import room_for
from core.kernels.cpu.held import held_none, way_to_minimiser
from core.kernels.cpu.lanes import (
    LANES,
    add,
    larger,
    load,
    load_first,
    multiply,
    root,
    splat,
    store,
    subtract,
    total,
    where_positive,
    zeros_of,
)
from core.kernels.cpu.panels import gradients, padded
from core.kernels.cpu.products import four_chosen, norm_of, relative, residual_of, row_of_tile
from core.kernels.cpu.small import (
    LARGEST_SUPPORT,
    PATIENCE,
    gram_of,
    is_beyond,
    kkt_residual,
    solve_small,
    stride_for,
)
from core.kernels.encode_rules import ADDED, LAST_SHARE, ROUND_SHARE
from core.kernels.prepared import Prepared

# The score that lets as many join as are to is found by halving: at most so often, or once this share of them is in.
HALVINGS = 50
ENOUGH = 0.9
# Rows that a thread has in hand at once: D is read once for all of them, in parts that stay in the core's cache.
ROWS_IN_HAND = 16


@compiled()
def _score(z: Array, g: Array, inverse: Array, scores: Array) -> tuple[int, int, int, float, float]:
    """Scores become −g_j/‖d_j‖ of concepts that are free to join and −∞ elsewhere, which there is room for.

    Returns:
        How many are in use, free, and violating; the least score of one that is free, and the largest; 0 where
        those would be above or below.
    """
    zero, one, nothing = zeros_of(z), splat(z.dtype.type(1)), splat(z.dtype.type(-np.inf))
    used = free = violating = lowest = most = zero
    whole, left = z.size // LANES, z.size % LANES
    for i in range(scores.size // LANES):
        if i < whole:
            codes, slopes, squares = load(z, i), load(g, i), load(inverse, i)
        else:
            at = i * LANES
            codes, slopes, squares = load_first(z, at, left), load_first(g, at, left), load_first(inverse, at, left)
        score = multiply(subtract(zero, slopes), root(squares))
        used = add(used, where_positive(codes, one, zero))
        counts = where_positive(codes, zero, where_positive(squares, one, zero))
        free = add(free, counts)
        violating = add(violating, where_positive(counts, where_positive(score, one, zero), zero))
        told = where_positive(counts, score, zero)
        most, lowest = larger(most, told), larger(lowest, subtract(zero, told))
        store(scores, i, where_positive(counts, score, nothing))
    lanes = np.empty((2, LANES), z.dtype)
    store(lanes, 0, most), store(lanes, 1, lowest)
    return int(total(used)), int(total(free)), int(total(violating)), -lanes[1].max(), lanes[0].max()


@compiled()
def _count(scores: Array, least: float) -> int:
    count = 0
    for j in range(scores.size):
        count += scores[j] >= least
    return count


@compiled()
def choose(z: Array, g: Array, inverse: Array) -> tuple[Array, bool]:
    """The support of z in rising order, then those that join, in rising order too; whether all violators are in.

    Those with the least g_j/‖d_j‖ join, whether they violate or come close to it (which after the round they may).
    A few less join than may: the score that lets in no more is found by halving, which costs less than sorting.
    """
    scores = np.empty((z.size + LANES - 1) // LANES * LANES, z.dtype)
    used, open_to, violating, least, most = _score(z, g, inverse, scores)
    joining = min(open_to, ADDED if violating < ADDED else max(ADDED, used))
    if joining < open_to:
        too_low, least = least, most
        for _ in range(HALVINGS):
            middle = (least + too_low) / 2
            count = _count(scores, middle)
            if count > joining:
                too_low = middle
            else:
                least = middle
                if count >= ENOUGH * joining:
                    break
    chosen = np.empty(used + joining, np.int64)
    first, then = 0, used
    for j in range(z.size):
        if z[j] > 0:
            chosen[first] = j
            first += 1
        elif scores[j] >= least and then < chosen.size and inverse[j] > 0:
            chosen[then] = j
            then += 1
            violating -= scores[j] > 0
    return chosen[:then], violating == 0


@compiled()
def _refine(
    z: Array,
    g: Array,
    B: Array,
    inverse: Array,
    U: Array,
    held: Array,
    aim: float,
    a: Array,
    norm: float,
    chosen: Array,
    D: Array,
    r: Array,
) -> None:
    """Exact steps on the support of z, from gradients of the chosen concepts through r, for as long as they help.

    r is left as the residual of z. Where a step would leave z ≥ 0 the next round is a better remedy.
    """
    support = np.nonzero(z)[0]
    step, products = np.empty(support.size, z.dtype), np.empty(4, z.dtype)
    before = np.inf
    while True:
        residual_of(a, z, chosen, D, r)
        for i in range(0, chosen.size, 4):
            row_of_tile(r, D, four_chosen(chosen, i), products)
            g[i : i + 4] = products[: chosen.size - i]
        reached = kkt_residual(z, g, inverse)
        if reached <= aim or not reached < before / 2 or support.size > LARGEST_SUPPORT:
            return
        before = reached
        for i in range(support.size):
            step[i] = -g[support[i]]
        way_to_minimiser(B, support, z, U, held, step)
        for i in range(support.size):
            j = support[i]
            if not z[j] + step[i] > 0 or is_beyond(z[j] + step[i], norm, inverse[j]):
                return
        for i in range(support.size):
            z[support[i]] += step[i]


@compiled()
def solve_some(
    A: Array, prepared: Prepared, tol: float, Z: Array, residual: Array, max_sweeps: int, first: int, last: int
) -> None:
    """See `core.kernels.solve`, in place on rows first to last of Z (zeros) and residual."""
    D, B, inverse, panels = prepared.D, prepared.B, prepared.inverse, prepared.panels
    k, hand = D.shape[0], min(ROWS_IN_HAND, last - first)
    R = np.zeros((padded(hand), A.shape[1]), A.dtype)
    G = np.zeros((R.shape[0], panels.shape[0] * panels.shape[2]), A.dtype)
    rows, sweeps, norms = np.arange(first, first + hand), np.zeros(hand, np.int64), np.zeros(hand, A.dtype)
    room, U = np.empty(0, D.dtype), room_for(0, D)  # for the gram of a small problem and its factor
    for s in range(hand):
        R[s] = -A[rows[s]]
        norms[s] = norm_of(R[s])
    waiting = first + hand
    while hand:
        gradients(R, hand, panels, G)
        s = 0
        while s < hand:
            i = rows[s]
            z, g = Z[i], G[s, :k]
            reached = kkt_residual(z, g, inverse)
            if relative(reached, norms[s]) > tol and sweeps[s] < max_sweeps:
                aim = LAST_SHARE * tol * norms[s]
                new, all_in = choose(z, g, inverse)
                columns = stride_for(new.size)
                if new.size * columns > room.size:
                    room = np.empty(new.size * columns, D.dtype)
                    U = room_for(min(new.size, LARGEST_SUPPORT), D)
                gram = room[: new.size * columns].reshape(new.size, columns)
                gram_of(new, D, B, gram)
                z_new, g_new, h = z[new], g[new], inverse[new]
                round_aim = max(aim, ROUND_SHARE * reached)
                until = min(sweeps[s] + PATIENCE, max_sweeps)
                held = held_none(new.size)
                sweeps[s] = solve_small(z_new, g_new, gram, h, norms[s], U, held, round_aim, sweeps[s], until)
                if not kkt_residual(z_new, g_new, h) <= round_aim:
                    sweeps[s] = max_sweeps  # left to `core.kernels.cpu.dependent`
                if all_in:
                    _refine(z_new, g_new, gram, h, U, held, aim, A[i], norms[s], new, D, R[s])
                else:
                    residual_of(A[i], z_new, new, D, R[s])
                for m in range(new.size):
                    z[new[m]] = z_new[m]
                s += 1
                continue
            residual[i] = relative(reached, norms[s])
            if waiting < last:
                rows[s], sweeps[s] = waiting, 0
                R[s] = -A[waiting]
                norms[s] = norm_of(R[s])
                waiting += 1
                s += 1
            else:  # the last in hand takes its place
                hand -= 1
                rows[s], sweeps[s], norms[s] = rows[hand], sweeps[hand], norms[hand]
                R[s], G[s] = R[hand], G[hand]
