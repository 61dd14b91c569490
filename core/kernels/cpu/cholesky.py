"""Cholesky factor of a few concepts' gram, B = Uᵀ·U, and solves with it, at the rate of the vector units.

Each number of U takes the products of the rows above it one by one, in rising order, and sixteen numbers of a row
do so at once. A factor is kept without its lower triangle, with the reciprocals of the pivots on its diagonal; its
rows are padded to whole vectors, and the last ones to four with the identity.
"""

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.lanes import (
    LANES,
    add_product,
    add_scaled,
    load,
    multiply,
    splat,
    spread,
    store,
    subtract,
    subtract_product,
    zeros_of,
)

# A pivot below this many roundings of its diagonal is nothing: that concept is a combination of those before it.
PIVOT_ROUNDINGS = 100


@compiled()
def room_for(size: int, B: Array) -> Array:
    """Room for the factor of so many concepts' gram, or of fewer: about size² numbers of B's type."""
    vectors = (size + LANES - 1) // LANES
    return np.empty((vectors * LANES * vectors, LANES), B.dtype)


@compiled()
def _gather(B: Array, support: Array, U: Array, width: int) -> None:
    """The upper triangle of B on the support."""
    n, U_flat = support.size, U.ravel()
    for i in range((n + 3) // 4 * 4):
        start = i // LANES * LANES
        U_flat[i * width + start : (i + 1) * width] = 0
        if i < n:
            b, row, rest = B[support[i]], U_flat[i * width + i : i * width + n], support[i:]
            for j in range(rest.size):
                row[j] = b[rest[j]]
        else:
            U_flat[i * width + i] = 1


@compiled()
def _subtract_products(U: Array, top: int, v: int, vectors: int) -> None:
    """Vectors v and v + 1 (or v alone, if last) of the four rows from `top`, less what the rows above contribute."""
    w, width = min(v + 1, vectors - 1), vectors * LANES
    zero = zeros_of(U)
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = zero
    for m in range(top):
        x, y = load(U, m * vectors + v), load(U, m * vectors + w)
        at = m * width + top
        u0, u1, u2, u3 = spread(U, at), spread(U, at + 1), spread(U, at + 2), spread(U, at + 3)
        p0, q0 = add_product(p0, u0, x), add_product(q0, u0, y)
        p1, q1 = add_product(p1, u1, x), add_product(q1, u1, y)
        p2, q2 = add_product(p2, u2, x), add_product(q2, u2, y)
        p3, q3 = add_product(p3, u3, x), add_product(q3, u3, y)
    at = top * vectors
    p0, q0 = subtract(load(U, at + v), p0), subtract(load(U, at + w), q0)
    store(U, at + v, p0), store(U, at + w, q0)
    at += vectors
    p1, q1 = subtract(load(U, at + v), p1), subtract(load(U, at + w), q1)
    store(U, at + v, p1), store(U, at + w, q1)
    at += vectors
    p2, q2 = subtract(load(U, at + v), p2), subtract(load(U, at + w), q2)
    store(U, at + v, p2), store(U, at + w, q2)
    at += vectors
    p3, q3 = subtract(load(U, at + v), p3), subtract(load(U, at + w), q3)
    store(U, at + v, p3), store(U, at + w, q3)


@compiled(inline=True)
def _pivot(value: float, least: float) -> float:
    """Its reciprocal; 0 where it is nothing."""
    return 1 / np.sqrt(value) if value > least else value - value


@compiled()
def _finish(U: Array, U_flat: Array, top: int, v: int, vectors: int, least: Array, r: Array, u: Array) -> None:
    """Vector v of the four rows from `top`, on the diagonal; the reciprocal pivots r, and u the rest, negated.

    By vectors and not by the few numbers that are called for: of numbers, sums may be taken in another order.
    """
    width = vectors * LANES
    for q in range(4):
        at, place = (top + q) * vectors + v, (top + q) * width + top
        row = load(U, at)
        for p in range(q):
            row = add_scaled(row, u[p, q], load(U, (top + p) * vectors + v))
        store(U, at, row)
        r[q] = _pivot(U_flat[place + q], least[top + q])
        store(U, at, multiply(row, splat(r[q])))
        for p in range(q + 1, 4):
            u[q, p] = -U_flat[place + p]


@compiled()
def factor(B: Array, support: Array, U: Array) -> None:
    """U becomes the factor of B on the support; a concept that those before it span gets a row of zeros."""
    n = support.size
    vectors = (n + LANES - 1) // LANES
    width, U_flat = vectors * LANES, U.ravel()
    _gather(B, support, U, width)
    r, u = np.empty(4, B.dtype), np.empty((4, 4), B.dtype)
    least = np.zeros((n + 3) // 4 * 4, B.dtype)
    for i in range(n):
        least[i] = PIVOT_ROUNDINGS * np.finfo(B.dtype).eps * U_flat[i * width + i]
    for top in range(0, n, 4):
        first = top // LANES
        for v in range(first, vectors, 2):
            _subtract_products(U, top, v, vectors)
        _finish(U, U_flat, top, first, vectors, least, r, u)
        for v in range(first + 1, vectors):
            at = top * vectors + v
            w0 = multiply(load(U, at), splat(r[0]))
            w1 = multiply(add_scaled(load(U, at + vectors), u[0, 1], w0), splat(r[1]))
            w2 = add_scaled(add_scaled(load(U, at + 2 * vectors), u[0, 2], w0), u[1, 2], w1)
            w2 = multiply(w2, splat(r[2]))
            w3 = add_scaled(add_scaled(load(U, at + 3 * vectors), u[0, 3], w0), u[1, 3], w1)
            w3 = multiply(add_scaled(w3, u[2, 3], w2), splat(r[3]))
            store(U, at, w0)
            store(U, at + vectors, w1)
            store(U, at + 2 * vectors, w2)
            store(U, at + 3 * vectors, w3)
        for q in range(4):
            U_flat[(top + q) * width + top + q] = r[q]


@compiled()
def pivot(U: Array, n: int, i: int) -> float:
    """The reciprocal of the i-th pivot, 0 for a concept that those before it span."""
    return U[i * ((n + LANES - 1) // LANES) + i // LANES, i % LANES]  # type: ignore[no-any-return]


@compiled()
def factor_for_step(B: Array, support: Array, z: Array, U: Array, step: Array) -> None:
    """U becomes the factor on the support; a concept with no pivot passes its share of zD to those that span it.

    That share goes to `step`, the negative gradient on the support, which `solve` then makes the way from z to the
    minimiser; z holds the codes of all concepts.
    """
    factor(B, support, U)
    for i in range(support.size):
        if pivot(U, support.size, i) == 0:
            dependent, share = B[support[i]], z[support[i]]
            for j in range(support.size):
                step[j] += dependent[support[j]] * share


@compiled()
def _solve_lower(U: Array, x: Array) -> None:
    """x ← U⁻ᵀx, each number taking its terms one by one in rising order; x becomes zero where the pivot is."""
    n, U_flat = x.size, U.ravel()
    width = (n + LANES - 1) // LANES * LANES
    for i in range(n):
        row, rest = U_flat[i * width + i + 1 : i * width + n], x[i + 1 :]
        x[i] *= U_flat[i * width + i]
        value = x[i]
        for j in range(rest.size):
            rest[j] -= row[j] * value


@compiled()
def solve(U: Array, x: Array) -> None:
    """x ← (Uᵀ·U)⁻¹x; x becomes zero where the pivot is."""
    _solve_lower(U, x)
    n, U_flat = x.size, U.ravel()
    width = (n + LANES - 1) // LANES * LANES
    for i in range(n - 1, -1, -1):
        row, rest = U_flat[i * width + i + 1 : i * width + n], x[i + 1 :]
        inner = x[i] - x[i]
        for j in range(rest.size):
            inner += row[j] * rest[j]
        x[i] = (x[i] - inner) * U_flat[i * width + i]


@compiled()
def solve_in_order(U: Array, x: Array) -> None:
    """The same with each number of x taking its terms one by one, which costs more and rounds in one known order."""
    _solve_lower(U, x)
    n, U_flat = x.size, U.ravel()
    width = (n + LANES - 1) // LANES * LANES
    for end in range(n, 0, -4):  # the terms of four numbers at a time, which lie side by side in each row above them
        begin = max(end - 4, 0)
        for i in range(end - 1, begin - 1, -1):
            x[i] *= U_flat[i * width + i]
            for m in range(begin, i):
                x[m] = subtract_product(x[m], U_flat[m * width + i], x[i])
        if begin:
            x0, x1, x2, x3 = x[begin], x[begin + 1], x[begin + 2], x[begin + 3]
            for m in range(begin):
                u = U_flat[m * width + begin : m * width + end]
                less = subtract_product(subtract_product(x[m], u[3], x3), u[2], x2)
                x[m] = subtract_product(subtract_product(less, u[1], x1), u[0], x0)


@compiled()
def solve_in_lanes(U: Array, n: int, X: Array) -> None:
    """X ← (Uᵀ·U)⁻¹X for sixteen columns at once, X being (n padded to four, LANES); four rows of U at a time."""
    padded, width = (n + 3) // 4 * 4, (n + LANES - 1) // LANES * LANES
    for top in range(0, padded, 4):
        u0 = top * width + top  # where four rows of U begin, on the diagonal's block
        u1, u2, u3 = u0 + width, u0 + 2 * width, u0 + 3 * width
        x0 = multiply(load(X, top), spread(U, u0))
        x1 = multiply(subtract_product(load(X, top + 1), spread(U, u0 + 1), x0), spread(U, u1 + 1))
        x2 = subtract_product(load(X, top + 2), spread(U, u0 + 2), x0)
        x2 = multiply(subtract_product(x2, spread(U, u1 + 2), x1), spread(U, u2 + 2))
        x3 = subtract_product(load(X, top + 3), spread(U, u0 + 3), x0)
        x3 = subtract_product(subtract_product(x3, spread(U, u1 + 3), x1), spread(U, u2 + 3), x2)
        x3 = multiply(x3, spread(U, u3 + 3))
        store(X, top, x0), store(X, top + 1, x1), store(X, top + 2, x2), store(X, top + 3, x3)
        for j in range(4, padded - top):
            x = subtract_product(subtract_product(load(X, top + j), spread(U, u0 + j), x0), spread(U, u1 + j), x1)
            x = subtract_product(subtract_product(x, spread(U, u2 + j), x2), spread(U, u3 + j), x3)
            store(X, top + j, x)
    for top in range(padded - 4, -1, -4):
        u0 = top * width + top
        u1, u2, u3 = u0 + width, u0 + 2 * width, u0 + 3 * width
        x0, x1, x2, x3 = load(X, top), load(X, top + 1), load(X, top + 2), load(X, top + 3)
        for j in range(4, padded - top):
            x = load(X, top + j)
            x0, x1 = subtract_product(x0, spread(U, u0 + j), x), subtract_product(x1, spread(U, u1 + j), x)
            x2, x3 = subtract_product(x2, spread(U, u2 + j), x), subtract_product(x3, spread(U, u3 + j), x)
        x3 = multiply(x3, spread(U, u3 + 3))
        x2 = multiply(subtract_product(x2, spread(U, u2 + 3), x3), spread(U, u2 + 2))
        x1 = subtract_product(subtract_product(x1, spread(U, u1 + 3), x3), spread(U, u1 + 2), x2)
        x1 = multiply(x1, spread(U, u1 + 1))
        x0 = subtract_product(subtract_product(x0, spread(U, u0 + 3), x3), spread(U, u0 + 2), x2)
        x0 = multiply(subtract_product(x0, spread(U, u0 + 1), x1), spread(U, u0))
        store(X, top, x0), store(X, top + 1, x1), store(X, top + 2, x2), store(X, top + 3, x3)
