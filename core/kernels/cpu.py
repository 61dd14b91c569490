"""The kernels for the CPU: rows in parallel, each row and its gradient in cache, unchanged coordinates for free.

Compiled by numba; all arrays are C-contiguous and of one float dtype. `core.kernels.reference` defines what is
computed. Everything compiled calls only into this file: numba renews its disk cache when the file of the
outermost function changes, and at no other time.
"""

from typing import Any

import numba
import numpy as np
import torch

from core.threads import compiled, threads_for

Array = np.ndarray[Any, np.dtype[Any]]

# Sweeps find most of the support; from then on exact solves on it alternate with a few sweeps that correct it.
# On digits activations at k = 64 to 256, 4 to 20 and 1 to 2 cost the same within a tenth.
SWEEPS_AT_FIRST = 8
SWEEPS_BETWEEN = 2
# An exact step cut short sets a concept or more to zero, and sweeps soon put that right. Rows that are not done
# after so many sweeps (dependent concepts, as a rule) take up to so many exact steps in a row instead.
PATIENCE = 40
EXACT_STEPS = 16
# Supports beyond this are left to the sweeps: their factor would not fit a core's cache.
LARGEST_SUPPORT = 1024
# A pivot below this share of its diagonal is rounding: that concept is a combination of those before it.
PIVOT_SHARE = 1e-5


def descend(
    Z: torch.Tensor, G: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor, max_sweeps: int, share: float
) -> torch.Tensor:
    """See `core.kernels.descend`."""
    violation = Z.new_empty(len(Z))
    with threads_for(Z.numel() * B.shape[0]):
        _descend(Z.numpy(), G.numpy(), B.numpy(), inverse.numpy(), violation.numpy(), max_sweeps, share)
    return violation


def solve(
    A: torch.Tensor,
    D: torch.Tensor,
    B: torch.Tensor,
    inverse: torch.Tensor,
    tolerance: torch.Tensor,
    max_sweeps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `core.kernels.solve`; sweeps alternate with exact solves on the support.

    Everything that is computed for a row is computed from that row alone, in a fixed order: its codes are the same
    to the last bit whatever the batch. (A matrix product would round the cross products of a row differently
    in a batch and alone, and an ill-conditioned support enlarges that a hundredfold.)
    """
    Z, residual = A.new_zeros(len(A), len(D)), torch.zeros_like(tolerance)
    given = A.numpy(), D.numpy(), B.numpy(), inverse.numpy(), tolerance.numpy()
    with threads_for(len(A) * len(D) * (A.shape[1] + len(D))):
        _solve(*given, Z.numpy(), residual.numpy(), max_sweeps)
    return Z, residual


# --- one row ----------------------------------------------------------------------------------------------------


@compiled()
def _cross(a: Array, D: Array) -> Array:
    """a·Dᵀ."""
    c = np.empty(D.shape[0], D.dtype)
    for j in range(D.shape[0]):
        d = D[j]
        inner = a[0] - a[0]  # zero of a's dtype
        for m in range(a.size):
            inner += a[m] * d[m]
        c[j] = inner
    return c


@compiled()
def _sweep(z: Array, g: Array, B: Array, inverse: Array) -> tuple[float, bool]:
    """One pass over the coordinates of a row: its progress, and whether the support changed."""
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
            progress += delta * delta / inverse[j]
    return progress, changed


@compiled()
def _kkt_residual(z: Array, g: Array, inverse: Array) -> float:
    """As the definition; every comparison is one that NaN does not pass unseen."""
    worst = 0.0
    for j in range(z.size):
        if z[j] > 0 or not g[j] >= 0:
            relative = g[j] * g[j] * inverse[j]
            if not relative <= worst:
                worst = relative
    return np.sqrt(worst)  # type: ignore[no-any-return]


@compiled()
def _violation(z: Array, g: Array, inverse: Array) -> float:
    total = 0.0
    for j in range(z.size):
        if z[j] > 0 or not g[j] >= 0:
            total += g[j] * g[j] * inverse[j]
    return total


@compiled()
def _objective(z: Array, g: Array, c: Array) -> float:
    """½zBz − cz, from g = zB − c."""
    value = 0.0
    for j in range(z.size):
        value += z[j] * (g[j] - c[j])
    return 0.5 * value


@compiled()
def _gradient(z: Array, c: Array, B: Array, g: Array) -> None:
    """g = zB − c afresh, so that the rounding of many updates is not carried on."""
    for m in range(z.size):
        g[m] = -c[m]
    for j in range(z.size):
        if z[j] != 0:
            row, value = B[j], z[j]
            for m in range(z.size):
                g[m] += value * row[m]


@compiled()
def _factor(B: Array, support: Array, L: Array) -> None:
    """Cholesky factor of B on the support, with reciprocal pivots; a concept that others span gets a zero one."""
    for i in range(support.size):
        b, new = B[support[i]], L[i]
        for j in range(i):
            old = L[j]
            inner = b[0] - b[0]
            for m in range(j):
                inner += new[m] * old[m]
            new[j] = (b[support[j]] - inner) * old[j]
        inner = b[0] - b[0]
        for m in range(i):
            inner += new[m] * new[m]
        pivot = b[support[i]] - inner
        new[i] = 1 / np.sqrt(pivot) if pivot > PIVOT_SHARE * b[support[i]] else 0


@compiled()
def _solve_factored(L: Array, x: Array) -> None:
    """x ← (L·Lᵀ)⁻¹x; x stays zero where the pivot is."""
    for i in range(x.size):
        inner = x[i] - x[i]
        for m in range(i):
            inner += L[i, m] * x[m]
        x[i] = (x[i] - inner) * L[i, i]
    for i in range(x.size - 1, -1, -1):
        x[i] *= L[i, i]
        for m in range(i):
            x[m] -= L[i, m] * x[i]


@compiled()
def _exact_step(z: Array, g: Array, c: Array, B: Array, trial: Array, trial_g: Array) -> bool:
    """Towards the minimiser on the support of z, in place, never uphill.

    A concept that others of the support span goes to zero, so that supports do not outgrow the rank. The step is
    taken whole, negative coordinates set to zero, where that lowers the objective (it nearly always does); else it
    is cut short where the first coordinate reaches zero (Lawson & Hanson 1974), which is what is returned.
    """
    support = np.nonzero(z)[0]
    L, step = np.empty((support.size, support.size), z.dtype), np.empty(support.size, z.dtype)
    _factor(B, support, L)
    for i in range(support.size):
        step[i] = -g[support[i]]
    for i in range(support.size):
        if L[i, i] == 0:  # its share of zD passes to the concepts that span it
            dependent = B[support[i]]
            for j in range(support.size):
                step[j] += dependent[support[j]] * z[support[i]]
    _solve_factored(L, step)
    for i in range(support.size):
        if L[i, i] == 0:
            step[i] = -z[support[i]]

    trial[:] = 0
    reach = 1.0
    for i in range(support.size):
        j = support[i]
        if z[j] + step[i] > 0:
            trial[j] = z[j] + step[i]
        elif step[i] < 0:
            reach = min(reach, -z[j] / step[i])
    _gradient(trial, c, B, trial_g)

    cut_short = reach < 1 and _objective(trial, trial_g, c) > _objective(z, g, c)
    if cut_short:
        for i in range(support.size):
            j = support[i]
            trial[j] = max(z[j] + reach * step[i], 0)
        _gradient(trial, c, B, trial_g)
    z[:] = trial
    g[:] = trial_g
    return cut_short


@compiled()
def _descend_row(z: Array, g: Array, B: Array, inverse: Array, max_sweeps: int, share: float) -> None:
    first, _ = _sweep(z, g, B, inverse)
    for _ in range(max_sweeps - 1):
        progress, _ = _sweep(z, g, B, inverse)
        if progress <= share * first:
            break


@compiled()
def _solve_row(z: Array, c: Array, B: Array, inverse: Array, tolerance: float, max_sweeps: int) -> float:
    """Solve one row from z = 0 and return its residual, never above `tolerance` unless the sweeps are used up."""
    g, trial, trial_g = -c, np.empty_like(c), np.empty_like(c)
    residual = _kkt_residual(z, g, inverse)
    sweeps, allowed = 0, SWEEPS_AT_FIRST
    while residual > tolerance and sweeps < max_sweeps:
        for _ in range(min(allowed, max_sweeps - sweeps)):
            sweeps += 1
            if not _sweep(z, g, B, inverse)[1]:
                break
        if np.count_nonzero(z) <= LARGEST_SUPPORT:
            for _ in range(1 if sweeps < PATIENCE else EXACT_STEPS):
                if not _exact_step(z, g, c, B, trial, trial_g):
                    break
        else:
            _gradient(z, c, B, g)
        residual = _kkt_residual(z, g, inverse)
        allowed = SWEEPS_BETWEEN
    return residual


# --- all rows ---------------------------------------------------------------------------------------------------


@compiled(parallel=True)
def _descend(Z: Array, G: Array, B: Array, inverse: Array, violation: Array, max_sweeps: int, share: float) -> None:
    for i in numba.prange(Z.shape[0]):
        violation[i] = _violation(Z[i], G[i], inverse)
        _descend_row(Z[i], G[i], B, inverse, max_sweeps, share)


@compiled(parallel=True)
def _solve(
    A: Array, D: Array, B: Array, inverse: Array, tolerance: Array, Z: Array, residual: Array, max_sweeps: int
) -> None:
    for i in numba.prange(A.shape[0]):
        residual[i] = _solve_row(Z[i], _cross(A[i], D), B, inverse, tolerance[i], max_sweeps)
