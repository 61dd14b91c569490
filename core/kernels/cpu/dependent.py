"""Rows whose concepts nearly depend on each other: non-negative least squares in float64, each row by itself.

A gram's factor in float32 loses the pivots that matter, and sweeps fill the support with concepts that can stand for
each other. So what `core.kernels.cpu.dense` and `core.kernels.cpu.active_set` leave undone is solved here: of a
working set the concepts and their gram in float64, and a support that grows by what violates most while exact steps
keep it independent (Lawson & Hanson 1974, where one concept joins at a time).

Compiled by numba; all arrays are C-contiguous; A, D, Z are of one float dtype, working sets and their grams in
float64.
"""

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.active_set import choose
from core.kernels.cpu.cholesky import room_for
from core.kernels.cpu.held import held_none
from core.kernels.cpu.panels import gradients, padded
from core.kernels.cpu.products import four, norm_of, relative, residual_of, row_of_tile
from core.kernels.cpu.small import (
    CUT_SHORT,
    LARGEST_SUPPORT,
    STEPS_IN_A_ROW,
    WHOLE,
    exact_step,
    gram_of,
    is_beyond,
    kkt_residual,
    stride_for,
)
from core.kernels.encode_rules import FEW_CONCEPTS, LAST_SHARE, ROUND_SHARE
from core.kernels.prepared import Prepared

# This share of the support joins it at once: one by one takes ten times as long where 250 are in use.
JOINING = 0.25
# Of such concepts a small residual says little of the loss. So a row goes on to this share of what is asked for, as
# long as one of some rounds halves what is left: others may only bring in the concepts that the next one wants. (Of
# 300 smooth concepts the worst excess is a hundredth of that where the first such round ends it, for half the time
# more.)
FURTHER_SHARE = 0.003
STALE = 6
# A row that has not arrived goes on for longer, though not for good: float32 codes may not allow what was asked for.
STALE_BEFORE = 16


@compiled()
def _join(z: Array, g: Array, B: Array, inverse: Array) -> None:
    """What violates most joins the support, each at its own minimum."""
    for _ in range(max(1, int(JOINING * np.count_nonzero(z)))):
        most, joining = 0.0, -1
        for j in range(z.size):
            if z[j] == 0 and g[j] < 0 and g[j] * g[j] * inverse[j] > most:
                most, joining = g[j] * g[j] * inverse[j], j
        if joining < 0:
            return
        z[joining] = -g[joining] * inverse[joining]
        for m in range(z.size):
            g[m] += z[joining] * B[joining, m]


@compiled()
def _build_up(
    z: Array,
    g: Array,
    B: Array,
    inverse: Array,
    norm: float,
    U: Array,
    held: Array,
    aim: float,
    sweeps: int,
    max_sweeps: int,
) -> int:
    """Lower the residual to `aim`, in place; what joins at once counts as a sweep."""
    trial, trial_g = np.empty_like(z), np.empty_like(z)
    least, best, stale = np.inf, z.copy(), 0
    while True:
        reached = kkt_residual(z, g, inverse)
        stale = 0 if reached < least / 2 else stale + 1
        if reached < least:
            least, best[:] = reached, z
        if not reached > aim or stale == STALE_BEFORE or sweeps >= max_sweeps:
            break
        sweeps += 1
        _join(z, g, B, inverse)
        for _ in range(STEPS_IN_A_ROW):
            if np.count_nonzero(z) > LARGEST_SUPPORT:
                break
            if exact_step(z, g, B, inverse, norm, U, held, trial, trial_g) != CUT_SHORT:
                break
    z[:] = best  # concepts that float64, too, can hardly tell apart come and go
    return sweeps


@compiled()
def _in_float64(chosen: Array, D: Array) -> tuple[Array, Array]:
    """The chosen concepts and their gram."""
    n = chosen.size
    exact, gram = np.empty((n, D.shape[1])), np.empty((n, stride_for(n)))
    for i in range(n):
        exact[i] = D[chosen[i]]
    gram_of(np.arange(n), exact, np.empty((0, 0)), gram)
    return exact, gram


@compiled()
def _gradient(r: Array, D: Array, g: Array) -> None:
    """g = r·Dᵀ."""
    products = np.empty(4)
    for i in range(0, g.size, 4):
        row_of_tile(r, D, four(i, g.size), products)
        g[i : i + 4] = products[: g.size - i]


@compiled()
def _minimise(
    a: Array,
    z: Array,
    D: Array,
    B: Array,
    inverse: Array,
    norm: float,
    aim: float,
    sweeps: int,
    max_sweeps: int,
    may_be_bad: bool,
) -> int:
    """Codes z of a, of this norm, on these concepts, in place, to a residual of at most `aim`; all in float64.

    Where z may be bad it is what to begin from only if the minimiser on its support is better in one step, and
    neither concepts that depend on others nor codes that would be negative are in the way; else zero is.
    """
    r, g = np.empty(a.size), np.empty(z.size)
    U, held = room_for(min(z.size, LARGEST_SUPPORT), B), held_none(z.size)
    everything = np.arange(z.size)
    residual_of(a, z, everything, D, r)
    _gradient(r, D, g)
    if may_be_bad:
        trial, trial_g = np.empty_like(z), np.empty_like(z)
        bad = np.count_nonzero(z) > LARGEST_SUPPORT
        if bad or exact_step(z, g, B, inverse, norm, U, held, trial, trial_g) != WHOLE:
            z[:] = 0
            _gradient(-a, D, g)
    return _build_up(z, g, B, inverse, norm, U, held, aim, sweeps, max_sweeps)


@compiled()
def solve_some(
    A: Array, prepared: Prepared, tol: float, Z: Array, residual: Array, max_sweeps: int, first: int, last: int
) -> None:
    """See `core.kernels.solve`, in place on rows first to last of Z, which are codes to improve on, and residual.

    The gram is not read: in float32 it is what cannot tell these concepts apart.
    """
    D, inverse, panels = prepared.D, prepared.inverse, prepared.panels
    k, d = D.shape
    R, G = np.zeros((padded(1), d), A.dtype), np.zeros((padded(1), panels.shape[0] * panels.shape[2]), A.dtype)
    enough = tol if k <= FEW_CONCEPTS else FURTHER_SHARE * tol
    chosen, concepts, gram = np.arange(k), np.empty((0, 0)), np.empty((0, 0))
    a, r, h = np.empty(d), np.empty(d), np.empty(k)
    h[:] = inverse
    for i in range(first, last):
        z, g, norm = Z[i], G[0, :k], norm_of(A[i])
        a[:] = A[i]
        for j in range(k):
            if is_beyond(z[j], norm, inverse[j]):
                z[:] = 0  # nothing is to be had from these
                break
        residual_of(A[i], z, np.arange(k), D, R[0])
        sweeps, previous, best, stale, rounds, all_in = 0, np.inf, np.inf, 0, 0, True
        while True:
            gradients(R, 1, panels, G)
            reached = relative(kkt_residual(z, g, inverse), norm)
            residual[i] = reached
            stale = 0 if reached < best / 2 else stale + 1
            stays = reached == previous or stale == (STALE_BEFORE if reached > tol else STALE)
            if not reached > enough or stays or sweeps >= max_sweeps:
                break
            if k > FEW_CONCEPTS:
                chosen, all_in = choose(z, g, inverse)
            if k > FEW_CONCEPTS or concepts.size == 0:
                concepts, gram = _in_float64(chosen, D)
            least = LAST_SHARE * FURTHER_SHARE * tol
            aim = least if all_in else max(least, ROUND_SHARE * reached)
            codes = z[chosen].astype(np.float64)
            sweeps = _minimise(
                a, codes, concepts, gram, h[chosen], np.float64(norm), aim * norm, sweeps + 1, max_sweeps, rounds == 0
            )
            previous, best, rounds = reached, min(best, reached), rounds + 1
            z[chosen] = codes
            codes[:] = z[chosen]  # as they are told, rounded
            residual_of(a, codes, np.arange(codes.size), concepts, r)
            R[0] = r
