"""A whole iteration of coordinate descent on small data, in one call.

What Python and torch do around each of its operations takes, for some hundred rows, ten times what the operations
themselves do. Here a block of rows at a time is multiplied, swept and summed up while it is in the core's cache, on
the caller's thread alone. The iterates are those of `core.solvers.alternating.in_turn`, to rounding; sums over rows
and over features are float64 throughout, so that the loss follows from them to all its digits.

Products are made in vectors of concepts: arrays of `width` columns have k of them and zeros up to a multiple of
sixteen. Compiled by numba; all arrays are C-contiguous.
"""

from typing import Any

import numpy as np

from core.compiled import compiled
from core.kernels.descent import descend_tile
from core.kernels.lanes import LANES, add_scaled, load, store

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 64  # rows


@compiled()
def iterate(
    A: Array,
    Z: Array,
    D: Array,
    dead: Array,
    energy: float,
    vanished: float,
    code_sweeps: int,
    concept_sweeps: int,
    share: float,
) -> tuple[float, float, float]:
    """See `core.kernels.iterate`; D (d, k) are the concepts, and which of them are zero or unused goes into `dead`.

    (To return an array, Numba would unpickle its dtype, and nothing is unpickled here: docs/operations.md.)
    """
    k, d = Z.shape[1], D.shape[0]
    width = (k + LANES - 1) // LANES * LANES
    gram, cross = np.zeros((k, width)), np.zeros((d, width))  # ZᵀZ and AᵀZ
    of_concepts = _gram_of(D, width)
    _drop(of_concepts, D, vanished)
    violation_of_codes = _improve_codes(A, Z, D, of_concepts, code_sweeps, share, gram, cross)
    _drop(gram, cross, vanished)
    violation_of_concepts = _improve_concepts(D, gram, cross, concept_sweeps, share)

    of_concepts = _gram_of(D, width)
    inner = outer = 0.0
    for f in range(d):
        for j in range(k):
            inner += cross[f, j] * D[f, j]
    for i in range(k):
        dead[i] = gram[i, i] == 0 or of_concepts[i, i] == 0
        for j in range(k):
            outer += gram[i, j] * of_concepts[i, j]
    loss = 0.5 * energy - inner + 0.5 * outer
    # NaN is to be seen
    return 0.0 if loss < 0 else loss, violation_of_codes, violation_of_concepts


@compiled()
def _improve_codes(
    A: Array, Z: Array, D: Array, of_concepts: Array, max_sweeps: int, share: float, gram: Array, cross: Array
) -> float:
    """Z (rows, k) in place, for concepts D (d, k) and their gram; ZᵀZ and AᵀZ are added to `gram` and `cross`.

    Returns:
        The squared violation of Z before that.
    """
    (rows, k), (d, width) = Z.shape, cross.shape
    B = of_concepts.astype(D.dtype)
    inverse, concepts = _inverse_of(B), _widened(D, width)
    z_wide, a_wide = np.zeros((BLOCK, width)), np.zeros((BLOCK, d))
    violation = 0.0
    for start in range(0, rows, BLOCK):
        a, z = A[start : start + BLOCK], Z[start : start + BLOCK]
        here = z.shape[0]
        C = np.zeros((here, width), D.dtype)
        _add_product(a, concepts, C)
        violation += _descend(z, B, C, inverse, max_sweeps, share)
        for s in range(here):
            for j in range(k):
                z_wide[s, j] = z[s, j]
            for f in range(d):
                a_wide[s, f] = a[s, f]
        _add_product(z_wide[:here, :k].T, z_wide, gram)
        _add_product(a_wide[:here].T, z_wide, cross)
    return violation


@compiled()
def _improve_concepts(D: Array, gram: Array, cross: Array, max_sweeps: int, share: float) -> float:
    B, C = gram.astype(D.dtype), cross.astype(D.dtype)
    return _descend(D, B, C, _inverse_of(B), max_sweeps, share)


@compiled()
def _descend(Z: Array, B: Array, C: Array, inverse: Array, max_sweeps: int, share: float) -> float:
    """Rows Z (rows, k) in place, given B (k, width) and C (rows, width); their squared violation before that."""
    (rows, k), ZB = Z.shape, np.zeros_like(C)
    _add_product(Z, B, ZB)
    G, violation, total = np.empty_like(Z), np.empty(rows, Z.dtype), 0.0
    for i in range(rows):
        for j in range(k):
            G[i, j] = ZB[i, j] - C[i, j]
    for first in range(0, rows, LANES):
        last = min(rows, first + LANES)
        descend_tile(Z[first:last], G[first:last], B, inverse, violation[first:last], max_sweeps, share)
    for i in range(rows):
        total += violation[i]
    return total


@compiled()
def _drop(gram: Array, X: Array, vanished: float) -> None:
    """Concepts that have vanished by their gram (k, width) become zero, there and in X (d, k or more)."""
    for j in range(gram.shape[0]):
        if gram[j, j] < vanished:
            for i in range(gram.shape[0]):
                gram[i, j] = gram[j, i] = 0
            for f in range(X.shape[0]):
                X[f, j] = 0


@compiled()
def _gram_of(D: Array, width: int) -> Array:
    """Dᵀ·D (k, width) of D (d, k), float64."""
    whole, gram = D.astype(np.float64), np.zeros((D.shape[1], width))
    _add_product(whole.T, _widened(whole, width), gram)
    return gram


@compiled()
def _widened(X: Array, width: int) -> Array:
    """X (n, k) with columns of zeros up to this width."""
    wide = np.zeros((X.shape[0], width), X.dtype)
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            wide[i, j] = X[i, j]
    return wide


@compiled()
def _inverse_of(B: Array) -> Array:
    inverse = np.zeros(B.shape[0], B.dtype)
    for j in range(B.shape[0]):
        if B[j, j] > 0:
            inverse[j] = 1 / B[j, j]
    return inverse


@compiled()
def _add_product(X: Array, Y: Array, G: Array) -> None:
    """G (n, width) grows by X (n, m), which may lie in memory as it likes, times Y (m or more, width)."""
    (n, m), vectors = X.shape, G.shape[1] // LANES
    for v in range(vectors):
        for i in range(0, n // 8 * 8, 8):
            at = i * vectors + v
            g0, g1 = load(G, at), load(G, at + vectors)
            g2, g3 = load(G, at + 2 * vectors), load(G, at + 3 * vectors)
            g4, g5 = load(G, at + 4 * vectors), load(G, at + 5 * vectors)
            g6, g7 = load(G, at + 6 * vectors), load(G, at + 7 * vectors)
            for s in range(m):
                y = load(Y, s * vectors + v)
                g0, g1 = add_scaled(g0, X[i, s], y), add_scaled(g1, X[i + 1, s], y)
                g2, g3 = add_scaled(g2, X[i + 2, s], y), add_scaled(g3, X[i + 3, s], y)
                g4, g5 = add_scaled(g4, X[i + 4, s], y), add_scaled(g5, X[i + 5, s], y)
                g6, g7 = add_scaled(g6, X[i + 6, s], y), add_scaled(g7, X[i + 7, s], y)
            store(G, at, g0), store(G, at + vectors, g1)
            store(G, at + 2 * vectors, g2), store(G, at + 3 * vectors, g3)
            store(G, at + 4 * vectors, g4), store(G, at + 5 * vectors, g5)
            store(G, at + 6 * vectors, g6), store(G, at + 7 * vectors, g7)
        for i in range(n // 8 * 8, n):
            g = load(G, i * vectors + v)
            for s in range(m):
                g = add_scaled(g, X[i, s], load(Y, s * vectors + v))
            store(G, i * vectors + v, g)
