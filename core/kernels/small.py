"""One row's problem on a few concepts: non-negative codes z, their gradient g and the concepts' gram B, all in cache.

Sweeps of coordinate descent find most of the support; exact solves on it (Cholesky, as in block principal pivoting:
Kim & Park 2011) alternate with a few sweeps that correct it. What of a row does not end in float32, since its
concepts nearly depend on each other, does in float64: a factor in float32 loses the pivots that matter.

Compiled by numba; all arrays are C-contiguous. As for `core.kernels.lanes`, numba's disk cache of what calls this
does not see that this file has changed.
"""

from typing import Any

import numpy as np

from core.kernels.cholesky import factor_for_step, pivot, room_for, solve
from core.kernels.products import four_chosen, row_of_tile, tile
from core.kernels.sweeps import sweep_row
from core.threads import compiled

Array = np.ndarray[Any, np.dtype[Any]]

# Sweeps find most of the support; from then on exact solves on it alternate with a few sweeps that correct it.
# On digits activations at k = 64 to 256, 4 to 20 and 1 to 2 cost the same within a tenth.
SWEEPS_AT_FIRST = 8
SWEEPS_BETWEEN = 2
# An exact step cut short sets a concept or more to zero, and sweeps soon put that right. Rows that are not done
# after so many sweeps (dependent concepts, as a rule) take up to so many exact steps in a row instead.
PATIENCE = 40
EXACT_STEPS = 64
# Those that still are not done after so many go on in float64, where this share of the support joins it at once.
DEPENDENT = 80
JOINING = 0.25
# Supports beyond this are left to the sweeps: their factor (here 4 MiB in float32) would not fit a core's cache.
LARGEST_SUPPORT = 1024


@compiled()
def gram_of(chosen: Array, D: Array, B: Array, gram: Array) -> None:
    """Gram of the chosen concepts: from B where it is held, else from D."""
    n = chosen.size
    if B.size:
        for i in range(n):
            row, b, before = gram[i], B[chosen[i]], chosen[: i + 1]
            for j in range(before.size):
                row[j] = gram[j, i] = b[before[j]]
        return
    products = np.zeros((4, 4), D.dtype)
    for j in range(0, n, 4):
        for i in range(j, n, 4):
            tile(four_chosen(D, chosen, i), four_chosen(D, chosen, j), D.shape[1], products)
            for p in range(i, min(i + 4, n)):
                for q in range(j, min(j + 4, n)):
                    gram[p, q] = gram[q, p] = products[p - i, q - j]


@compiled()
def kkt_residual(z: Array, g: Array, inverse: Array) -> float:
    """As the definition; every comparison is one that NaN does not pass unseen."""
    worst = 0.0
    for j in range(z.size):
        if z[j] > 0 or not g[j] >= 0:
            relative = g[j] * g[j] * inverse[j]
            if not relative <= worst:
                worst = relative
    return np.sqrt(worst)  # type: ignore[no-any-return]


@compiled()
def _try(z: Array, g: Array, B: Array, trial: Array, trial_g: Array) -> float:
    """The gradient at the trial codes, and by how much the objective changes from z to them."""
    trial_g[:] = g
    for j in range(z.size):
        delta = trial[j] - z[j]
        if delta != 0:
            row = B[j]
            for m in range(z.size):
                trial_g[m] += delta * row[m]
    change = 0.0
    for j in range(z.size):
        change += (trial[j] - z[j]) * (g[j] + trial_g[j])
    return 0.5 * change


@compiled()
def _exact_step(z: Array, g: Array, B: Array, U: Array, trial: Array, trial_g: Array) -> bool:
    """Towards the minimiser on the support of z, in place, never uphill.

    A concept that others of the support span goes to zero, so that supports do not outgrow the rank. The step is
    taken whole, negative coordinates set to zero, where that lowers the objective (it nearly always does); else it
    is cut short where the first coordinate reaches zero (Lawson & Hanson 1974), which is what is returned.
    """
    support = np.nonzero(z)[0]
    step = np.empty(support.size, z.dtype)
    for i in range(support.size):
        step[i] = -g[support[i]]
    factor_for_step(B, support, z, U, step)
    solve(U, step)
    for i in range(support.size):
        if pivot(U, support.size, i) == 0:
            step[i] = -z[support[i]]

    trial[:] = 0
    reach = 1.0
    for i in range(support.size):
        j = support[i]
        if z[j] + step[i] > 0:
            trial[j] = z[j] + step[i]
        elif step[i] < 0:
            reach = min(reach, -z[j] / step[i])
    cut_short = _try(z, g, B, trial, trial_g) > 0 and reach < 1
    if cut_short:
        for i in range(support.size):
            j = support[i]
            trial[j] = max(z[j] + reach * step[i], 0)
        _try(z, g, B, trial, trial_g)
    z[:] = trial
    g[:] = trial_g
    return cut_short


@compiled()
def solve_small(
    z: Array, g: Array, B: Array, inverse: Array, U: Array, aim: float, sweeps: int, max_sweeps: int
) -> int:
    """Lower the residual to `aim`, in place; from `sweeps` made before to those made after, at most `max_sweeps`."""
    trial, trial_g = np.empty_like(z), np.empty_like(z)
    allowed = SWEEPS_AT_FIRST
    while sweeps < max_sweeps:
        for _ in range(min(allowed, max_sweeps - sweeps)):
            sweeps += 1
            if not sweep_row(z, g, B, inverse)[1]:
                break
        if np.count_nonzero(z) <= LARGEST_SUPPORT:
            for _ in range(1 if sweeps < PATIENCE else EXACT_STEPS):
                if not _exact_step(z, g, B, U, trial, trial_g):
                    break
        if not kkt_residual(z, g, inverse) > aim:
            break
        allowed = SWEEPS_BETWEEN
    return sweeps


@compiled()
def _build_up(
    z: Array, g: Array, B: Array, inverse: Array, U: Array, aim: float, sweeps: int, max_sweeps: int
) -> int:
    """As `solve_small`, of zero codes: the support grows by what violates most, and exact steps keep it independent.

    (Lawson & Hanson 1974, where one concept joins at a time.) Sweeps would fill it with concepts that can stand for
    each other, of which every exact step then takes out one.
    """
    trial, trial_g = np.empty_like(z), np.empty_like(z)
    while sweeps < max_sweeps and kkt_residual(z, g, inverse) > aim:
        sweeps += 1
        for _ in range(max(1, int(JOINING * np.count_nonzero(z)))):
            most, joining = 0.0, -1
            for j in range(z.size):
                if z[j] == 0 and g[j] < 0 and g[j] * g[j] * inverse[j] > most:
                    most, joining = g[j] * g[j] * inverse[j], j
            if joining < 0:
                break
            z[joining] = -g[joining] * inverse[joining]
            for m in range(z.size):
                g[m] += z[joining] * B[joining, m]
        for _ in range(EXACT_STEPS):
            if np.count_nonzero(z) > LARGEST_SUPPORT or not _exact_step(z, g, B, U, trial, trial_g):
                break
    return sweeps


@compiled()
def in_float64(chosen: Array, D: Array) -> tuple[Array, Array]:
    """The chosen concepts and their gram."""
    n = chosen.size
    exact, gram = np.empty((n, D.shape[1])), np.empty((n, n))
    for i in range(n):
        exact[i] = D[chosen[i]]
    gram_of(np.arange(n), exact, np.empty((0, 0)), gram)
    return exact, gram


@compiled()
def solve_in_float64(
    z: Array, a: Array, exact: Array, gram: Array, inverse: Array, aim: float, sweeps: int, max_sweeps: int
) -> int:
    """As `solve_small`, of the row a and the concepts in float64 alone; z is what is found, whatever it was."""
    n, row = z.size, np.empty(a.size)
    everything, products = np.arange(n), np.empty(4)
    codes, g, h = np.zeros(n), np.empty(n), np.empty(n)
    row[:], h[:] = a, inverse
    for i in range(0, n, 4):
        row_of_tile(row, four_chosen(exact, everything, i), row.size, products)
        g[i : i + 4] = -products[: n - i]
    U = room_for(min(n, LARGEST_SUPPORT), exact)
    sweeps = _build_up(codes, g, gram, h, U, aim, sweeps, max_sweeps)
    z[:] = codes
    return sweeps
