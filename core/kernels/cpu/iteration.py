"""A whole iteration of coordinate descent on data of small or middling size, in one call.

What Python and torch do around each of its operations takes, for some hundred rows, ten times what the operations
themselves do; and for some thousand, each of them would wake a second thread, which takes up to half a millisecond
where it has gone to sleep. Here threads are woken twice: each improves the codes of some rows, and then the concepts
in some features. A block of rows at a time is multiplied, swept and summed up while it is in the core's cache. The
iterates are those of `core.solvers.alternating.in_turn`, to rounding, and the same on any number of threads. Sums are
float32 over a block and float64 beyond.

Products are made in vectors of concepts: arrays of `width` columns have k of them and zeros up to a multiple of
sixteen. Compiled by numba; all arrays are C-contiguous.
"""

import numba
import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.descent import descend_tile
from core.kernels.cpu.lanes import LANES, add_scaled, load, store

BLOCK = 96  # rows: tiles of sixteen to sweep, and groups of six to multiply
FEATURES = 48  # that are improved together, likewise
PARTS = 16  # of the rows, at most, each with a gram of its own


@compiled()
def iterate(
    A: Array,
    Z: Array,
    concepts: Array,
    dead: Array,
    energy: float,
    vanished: float,
    code_sweeps: int,
    concept_sweeps: int,
    progress_ratio: float,
) -> tuple[float, float, float]:
    """See `core.kernels.iterate`; which of the concepts (d, k) are zero or unused goes into `dead`.

    (To return an array, Numba would unpickle its dtype, and nothing is unpickled here: docs/operations.md.)
    """
    (rows, k), d = Z.shape, concepts.shape[0]
    width = (k + LANES - 1) // LANES * LANES
    concept_gram = _gram_of(concepts, width)
    _drop(concept_gram, vanished)
    _follow(concept_gram, concepts)
    wide = Z if k == width else np.zeros((rows, width), Z.dtype)
    blocks = (rows + BLOCK - 1) // BLOCK
    parts = max(1, min(PARTS, blocks, 2 * rows // k))
    grams, of_parts = np.zeros((parts, k, width)), np.zeros(parts)
    _improve_codes(A, Z, wide, concepts, concept_gram, code_sweeps, progress_ratio, grams, of_parts)
    code_gram = grams[0]
    for part in range(1, parts):
        _add(grams[part], code_gram)
    _drop(code_gram, vanished)

    of_pieces = np.zeros((2, (d + FEATURES - 1) // FEATURES))
    _improve_concepts(A, wide, concepts, code_gram, concept_sweeps, progress_ratio, of_pieces)
    concept_gram = _gram_of(concepts, width)
    outer = 0.0
    for i in range(k):
        dead[i] = code_gram[i, i] == 0 or concept_gram[i, i] == 0
        for j in range(k):
            outer += code_gram[i, j] * concept_gram[i, j]
    loss = 0.5 * energy - of_pieces[0].sum() + 0.5 * outer
    # NaN is to be seen
    return 0.0 if loss < 0 else loss, of_parts.sum(), of_pieces[1].sum()


@compiled(parallel=True)
def _improve_codes(
    A: Array,
    Z: Array,
    wide: Array,
    concepts: Array,
    concept_gram: Array,
    max_sweeps: int,
    progress_ratio: float,
    grams: Array,
    violations: Array,
) -> None:
    """Z (rows, k) in place, also as `wide` (rows, width), for concepts (d, k) and their gram.

    ZᵀZ goes into `grams` (parts, k, width), and the squared violation before that into `violations` (parts,).
    """
    minus_concepts, B = -_widened(concepts, wide.shape[1]), concept_gram.astype(concepts.dtype)
    inverse, parts, blocks = _inverse_of(B), len(grams), (len(Z) + BLOCK - 1) // BLOCK
    for part in numba.prange(parts):
        first, last = part * blocks // parts * BLOCK, min(len(Z), (part + 1) * blocks // parts * BLOCK)
        violations[part] = _improve_rows(
            A[first:last],
            Z[first:last],
            wide[first:last],
            minus_concepts,
            B,
            inverse,
            max_sweeps,
            progress_ratio,
            grams[part],
        )


@compiled()
def _improve_rows(
    A: Array,
    Z: Array,
    wide: Array,
    minus_concepts: Array,
    B: Array,
    inverse: Array,
    max_sweeps: int,
    progress_ratio: float,
    gram: Array,
) -> float:
    """`_improve_codes` of some rows, given the concepts times −1, (d, width); returns their squared violation."""
    (rows, k), width = Z.shape, wide.shape[1]
    G, violation = np.empty((BLOCK, width), Z.dtype), 0.0
    for start in range(0, rows, BLOCK):
        stop = min(rows, start + BLOCK)
        z, g = Z[start:stop], G[: stop - start]
        g[:] = 0
        _add_product(A[start:stop], minus_concepts, g)
        violation += _descend(z, g, B, inverse, max_sweeps, progress_ratio)
        if k < width:
            _copy(z, wide[start:stop])
    _add_gram(wide, gram)
    return violation


@compiled(parallel=True)
def _improve_concepts(
    A: Array, wide: Array, concepts: Array, code_gram: Array, max_sweeps: int, progress_ratio: float, of_pieces: Array
) -> None:
    """Concepts (d, k) in place, for codes `wide` (rows, width) and their gram (k, width).

    For each piece of the features ⟨AᵀZ, concepts⟩ goes into `of_pieces[0]`, and their squared violation before into
    `of_pieces[1]`.
    """
    B = code_gram.astype(concepts.dtype)
    inverse, pieces = _inverse_of(B), of_pieces.shape[1]
    for piece in numba.prange(pieces):
        first, last = piece * FEATURES, min(len(concepts), (piece + 1) * FEATURES)
        of_pieces[0, piece], of_pieces[1, piece] = _improve_features(
            A, first, wide, concepts[first:last], B, inverse, max_sweeps, progress_ratio
        )


@compiled()
def _improve_features(
    A: Array,
    first: int,
    wide: Array,
    concepts: Array,
    B: Array,
    inverse: Array,
    max_sweeps: int,
    progress_ratio: float,
) -> tuple[float, float]:
    """`_improve_concepts` of some features of A, from the first on; returns their part of each sum."""
    (features, k), width = concepts.shape, wide.shape[1]
    cross, G = np.zeros((features, width)), np.empty((features, width), concepts.dtype)
    # what lies whole rows apart would be of few sets of a cache
    together = np.empty((BLOCK, features), concepts.dtype)
    for start in range(0, len(wide), BLOCK):
        rows = min(BLOCK, len(wide) - start)
        for i in range(rows):
            a = A[start + i, first : first + features]  # of a slice of all rows, numbers would be copied one by one
            for f in range(features):
                together[i, f] = a[f]
        G[:] = 0
        _add_product(together[:rows].T, wide[start : start + rows], G)
        _add(G, cross)
    for f in range(features):
        for j in range(k):
            if inverse[j] == 0:
                cross[f, j] = 0
            G[f, j] = -cross[f, j]
    violation, inner = _descend(concepts, G, B, inverse, max_sweeps, progress_ratio), 0.0
    for f in range(features):
        for j in range(k):
            inner += cross[f, j] * concepts[f, j]
    return inner, violation


@compiled()
def _descend(Z: Array, G: Array, B: Array, inverse: Array, max_sweeps: int, progress_ratio: float) -> float:
    """Rows Z (rows, k) in place, given B (k, width) and −C in G (rows, width), which is used up; returns their
    squared violation before that."""
    (rows, k), total = Z.shape, 0.0
    _add_product(Z, B, G)
    g, violation = np.empty((LANES, k), Z.dtype), np.empty(LANES, Z.dtype)
    for first in range(0, rows, LANES):
        here = min(LANES, rows - first)
        for i in range(here):
            for j in range(k):
                g[i, j] = G[first + i, j]
        descend_tile(Z[first : first + here], g[:here], B, inverse, violation, max_sweeps, progress_ratio)
        for i in range(here):
            total += violation[i]
    return total


@compiled()
def _drop(gram: Array, vanished: float) -> None:
    """What has vanished by its place on the diagonal of a gram (k, width) becomes zero in all of it."""
    for j in range(gram.shape[0]):
        if gram[j, j] < vanished:
            for i in range(gram.shape[0]):
                gram[i, j] = gram[j, i] = 0


@compiled()
def _follow(gram: Array, concepts: Array) -> None:
    """Concepts (d, k) that are zero in their gram become zero."""
    for j in range(gram.shape[0]):
        if gram[j, j] == 0:
            for f in range(concepts.shape[0]):
                concepts[f, j] = 0


@compiled()
def _gram_of(concepts: Array, width: int) -> Array:
    """The gram (k, width) of concepts (d, k), float64."""
    gram = np.zeros((concepts.shape[1], width))
    _add_gram(_widened(concepts, width), gram)
    return gram


@compiled()
def _add_gram(X: Array, gram: Array) -> None:
    """`gram` (k, width), float64, grows by Xᵀ·X of X (rows, width)."""
    k, width = gram.shape
    of_block = np.empty((k, width), X.dtype)
    for start in range(0, len(X), BLOCK):
        x = X[start : start + BLOCK]
        of_block[:] = 0
        _add_product(x[:, :k].T, x, of_block)
        _add(of_block, gram)


@compiled()
def _add(X: Array, to: Array) -> None:
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            to[i, j] += X[i, j]


@compiled()
def _widened(X: Array, width: int) -> Array:
    """X (n, k) with columns of zeros up to this width."""
    wide = np.zeros((X.shape[0], width), X.dtype)
    _copy(X, wide)
    return wide


@compiled()
def _copy(X: Array, to: Array) -> None:
    """X (n, k) into the first columns of another."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            to[i, j] = X[i, j]


@compiled()
def _inverse_of(B: Array) -> Array:
    inverse = np.zeros(B.shape[0], B.dtype)
    for j in range(B.shape[0]):
        if B[j, j] > 0:
            inverse[j] = 1 / B[j, j]
    return inverse


@compiled()
def _add_product(X: Array, Y: Array, G: Array) -> None:
    """G (n, width) grows by X (n, m), which may lie in memory as it likes, times Y (m or more, width).

    Six rows at a time: with AVX2 their sums fill the registers that the vectors leave.
    """
    (n, m), vectors = X.shape, G.shape[1] // LANES
    for v in range(vectors):
        for i in range(0, n // 6 * 6, 6):
            at = i * vectors + v
            g0, g1, g2 = load(G, at), load(G, at + vectors), load(G, at + 2 * vectors)
            g3, g4, g5 = load(G, at + 3 * vectors), load(G, at + 4 * vectors), load(G, at + 5 * vectors)
            for s in range(m):
                y = load(Y, s * vectors + v)
                g0, g1 = add_scaled(g0, X[i, s], y), add_scaled(g1, X[i + 1, s], y)
                g2, g3 = add_scaled(g2, X[i + 2, s], y), add_scaled(g3, X[i + 3, s], y)
                g4, g5 = add_scaled(g4, X[i + 4, s], y), add_scaled(g5, X[i + 5, s], y)
            store(G, at, g0), store(G, at + vectors, g1), store(G, at + 2 * vectors, g2)
            store(G, at + 3 * vectors, g3), store(G, at + 4 * vectors, g4), store(G, at + 5 * vectors, g5)
        for i in range(n // 6 * 6, n):
            g = load(G, i * vectors + v)
            for s in range(m):
                g = add_scaled(g, X[i, s], load(Y, s * vectors + v))
            store(G, i * vectors + v, g)
