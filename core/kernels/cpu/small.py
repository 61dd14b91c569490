"""One row's problem on a few concepts: non-negative codes z, their gradient g and the concepts' gram B, all in cache.

Sweeps of coordinate descent find most of the support; exact solves on it (Cholesky, as in block principal pivoting:
Kim & Park 2011) alternate with a few sweeps that correct it.

Compiled by numba; all arrays are C-contiguous.
"""

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.held import way_to_minimiser
from core.kernels.cpu.lanes import (
    LANES,
    add,
    larger,
    load_first,
    load_from,
    most,
    multiply,
    projected_gradient,
    subtract,
    total,
    zeros_of,
)
from core.kernels.cpu.products import four_chosen, tile
from core.kernels.cpu.sweeps import sweep_row

# Sweeps find most of the support; from then on exact solves on it alternate with a few sweeps that correct it.
# On digits activations at k = 64 to 256, 4 to 20 and 1 to 2 cost the same within a tenth.
SWEEPS_AT_FIRST = 8
SWEEPS_BETWEEN = 2
# An exact step cut short sets a concept or more to zero, and sweeps soon put that right. Rows that are not done
# after so many sweeps take up to so many exact steps in a row instead.
PATIENCE = 40
STEPS_IN_A_ROW = 64
# A small problem that takes more than so many in all, or more sweeps than `PATIENCE`, is one of concepts that nearly
# depend on each other. (Of 40 to 80 more is faster on planted data of 4096 concepts; without an end, dependent ones
# take ten times as long.)
MOST_STEPS = 80
# So is one where so many steps were cut short on supports of which some concepts span others, or refused: sweeps then
# add more of them than steps take away. (Of 300 smooth concepts a row took 14 ms without this, and takes 2.2.)
MOST_SPANNED = 3
# An exact step that does not lower the objective is tried again at this share of its length.
SHORTER = 0.5
# No codes that explain a row better than zero does have one that alone makes more than this many times its norm: by
# ‖a − zD‖ ≤ ‖a‖, ‖zD‖ ≤ 2‖a‖, and nothing of it cancels. A step past that comes of a factor that rounding has made of
# concepts that nearly depend on each other; whether it goes uphill, sums of such numbers cannot tell.
MOST_OF_NORM = 2.0
WHOLE, CUT_SHORT, REFUSED = 0, 1, 2  # what becomes of an exact step
# Supports beyond this are left to the sweeps: their factor (here 4 MiB in float32) would not fit a core's cache.
LARGEST_SUPPORT = 1024


@compiled()
def stride_for(n: int) -> int:
    """Columns of a gram of n concepts: an odd number of cache lines, so that a column's numbers do not all fall
    where a cache has room for a few. (At 256 columns a gram took seven times as long.)"""
    return ((n + 15) // 16 | 1) * 16


@compiled()
def gram_of(chosen: Array, D: Array, B: Array, gram: Array) -> None:
    """Gram (n, n or more) of the chosen concepts: from B where it is held, else from D."""
    n = chosen.size
    if B.size:
        for i in range(n):  # each number is read once: they lie all over B, which the core's cache does not hold
            row, b, before = gram[i], B[chosen[i]], chosen[: i + 1]
            for j in range(before.size):
                row[j] = gram[j, i] = b[before[j]]
        return
    products = np.zeros((4, 4), D.dtype)
    for j in range(0, n, 4):
        for i in range(j, n, 4):
            tile(D, four_chosen(chosen, i), four_chosen(chosen, j), products)
            for p in range(i, min(i + 4, n)):
                for q in range(j, min(j + 4, n)):
                    gram[p, q] = gram[q, p] = products[p - i, q - j]


@compiled()
def kkt_residual(z: Array, g: Array, inverse: Array) -> float:
    """As the definition; NaN where any of the gradients that count is."""
    worst, unseen, whole = zeros_of(z), zeros_of(z), z.size // LANES * LANES
    for j in range(0, whole, LANES):
        v = projected_gradient(load_from(z, j), load_from(g, j))
        relative = multiply(multiply(v, v), load_from(inverse, j))
        worst, unseen = larger(worst, relative), add(unseen, subtract(relative, relative))
    for j in range(whole, z.size, LANES):
        left = z.size - j
        v = projected_gradient(load_first(z, j, left), load_first(g, j, left))
        relative = multiply(multiply(v, v), load_first(inverse, j, left))
        worst, unseen = larger(worst, relative), add(unseen, subtract(relative, relative))
    return np.sqrt(most(worst)) + total(unseen)  # type: ignore[no-any-return]


@compiled(inline=True)
def is_beyond(z: float, norm: float, inverse: float) -> bool:
    """Whether a code is NaN or larger than any can be of a row with this norm."""
    return not z <= MOST_OF_NORM * norm * np.sqrt(inverse)


@compiled()
def _try(
    z: Array,
    g: Array,
    B: Array,
    inverse: Array,
    norm: float,
    support: Array,
    step: Array,
    share: float,
    trial: Array,
    trial_g: Array,
) -> float:
    """Trial codes by this share of the step, at least zero, and their gradient; by how much the objective changes,
    infinity where a code is beyond what it can be."""
    trial[:], trial_g[:] = z, g
    change = 0.0
    for i in range(support.size):
        j = support[i]
        stops = step[i] < 0 and -z[j] / step[i] <= share  # at zero, and not where rounding leaves a little
        trial[j] = 0 if stops else max(z[j] + share * step[i], 0)
        if is_beyond(trial[j], norm, inverse[j]):
            return np.inf
        delta = trial[j] - z[j]
        if delta != 0:
            for m in range(z.size):
                trial_g[m] += delta * B[j, m]
    for i in range(support.size):
        j = support[i]
        change += (trial[j] - z[j]) * (g[j] + trial_g[j])
    return 0.5 * change


@compiled()
def exact_step(
    z: Array,
    g: Array,
    B: Array,
    inverse: Array,
    norm: float,
    U: Array,
    held: Array,
    trial: Array,
    trial_g: Array,
) -> int:
    """Towards the minimiser on the support of z, the codes of a row of this norm; in place, never uphill.

    A concept that others of the support span goes to zero, so that supports do not outgrow the rank; such a factor is
    not `held`. Negative coordinates are set to zero. Where the whole step would not lower the objective (it nearly
    always does) it is halved until one does, at most to where the first coordinate reaches zero (projected Newton
    steps: Bertsekas 1982). Returned is whether it was taken WHOLE, CUT_SHORT, or REFUSED: then z stays, for even that
    first coordinate would be reached with codes that no row of this norm has.
    """
    support = np.nonzero(z)[0]
    step = np.empty(support.size, z.dtype)
    for i in range(support.size):
        step[i] = -g[support[i]]
    way_to_minimiser(B, support, z, U, held, step)

    reach = 1.0
    for i in range(support.size):
        if step[i] < 0 and not z[support[i]] + step[i] > 0:
            reach = min(reach, -z[support[i]] / step[i])
    share = 1.0
    change = _try(z, g, B, inverse, norm, support, step, share, trial, trial_g)
    while change > 0 and share > reach:
        share = max(SHORTER * share, reach)
        change = _try(z, g, B, inverse, norm, support, step, share, trial, trial_g)
    if change == np.inf:
        return REFUSED
    z[:], g[:] = trial, trial_g
    return CUT_SHORT if share < 1 else WHOLE


@compiled()
def solve_small(
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
    """Lower the residual to `aim`, in place, for a row of this norm; from `sweeps` made before to those made after,
    at most `max_sweeps`.

    It may stop above that, for concepts that nearly depend on each other.
    """
    trial, trial_g = np.empty_like(z), np.empty_like(z)
    allowed, steps, spanned = SWEEPS_AT_FIRST, 0, 0
    while sweeps < max_sweeps and steps < MOST_STEPS and spanned < MOST_SPANNED:
        for _ in range(min(allowed, max_sweeps - sweeps)):
            sweeps += 1
            if not sweep_row(z, g, B, inverse)[1]:
                break
        if np.count_nonzero(z) <= LARGEST_SUPPORT:
            for _ in range(1 if sweeps < PATIENCE else STEPS_IN_A_ROW):
                steps += 1
                how = exact_step(z, g, B, inverse, norm, U, held, trial, trial_g)
                spanned += how == REFUSED or (how == CUT_SHORT and held[0] == 0)
                if how != CUT_SHORT or spanned == MOST_SPANNED:
                    break
        if not kkt_residual(z, g, inverse) > aim:
            break
        allowed = SWEEPS_BETWEEN
    return sweeps
