"""Products of rows of a few concepts, in one fixed order: a row's do not depend on its neighbours."""

from typing import Any

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.lanes import LANES, add_product, load_first, load_from, total, zeros_of

Four = tuple[
    int, int, int, int
]  # rows of a matrix: arrays of them would be counted, by all threads, where they are used


@compiled()
def four(i: int, rows: int) -> Four:
    """Rows i to i + 3, the last one again where there are none left."""
    last = rows - 1
    return i, min(i + 1, last), min(i + 2, last), min(i + 3, last)


@compiled()
def four_chosen(chosen: Array, i: int) -> Four:
    """The same of the chosen rows."""
    last = chosen.size - 1
    return chosen[i], chosen[min(i + 1, last)], chosen[min(i + 2, last)], chosen[min(i + 3, last)]


@compiled()
def tile(X: Array, x: Four, y: Four, products: Array) -> None:
    """The sixteen inner products of rows of X with each other."""
    zero = zeros_of(products)
    p0 = p1 = p2 = p3 = (zero, zero, zero, zero)
    length = X.shape[1]
    whole = length // LANES * LANES
    x0, x1, x2, x3 = x[0] * length, x[1] * length, x[2] * length, x[3] * length
    for m in range(0, whole, LANES):
        v = _load_four(X, y, m)
        p0, p1 = _add_products(p0, load_from(X, x0 + m), v), _add_products(p1, load_from(X, x1 + m), v)
        p2, p3 = _add_products(p2, load_from(X, x2 + m), v), _add_products(p3, load_from(X, x3 + m), v)
    for m in range(whole, length, LANES):  # once, or not at all: arrays are counted where there is an `if`
        v, u = _load_last(X, y, m, length - m), _load_last(X, x, m, length - m)
        p0, p1 = _add_products(p0, u[0], v), _add_products(p1, u[1], v)
        p2, p3 = _add_products(p2, u[2], v), _add_products(p3, u[3], v)
    _put(p0, products[0]), _put(p1, products[1]), _put(p2, products[2]), _put(p3, products[3])


@compiled()
def row_of_tile(x: Array, Y: Array, y: Four, products: Array) -> None:
    """The inner products of x with four rows of Y."""
    zero = zeros_of(products)
    p = (zero, zero, zero, zero)
    whole = x.size // LANES * LANES
    for m in range(0, whole, LANES):
        p = _add_products(p, load_from(x, m), _load_four(Y, y, m))
    for m in range(whole, x.size, LANES):
        p = _add_products(p, load_first(x, m, x.size - m), _load_last(Y, y, m, x.size - m))
    _put(p, products)


@compiled(inline=True)
def _add_products(p: Any, x: Any, y: Any) -> Any:
    """Four vectors of sums, each with x's product with one of y more."""
    return (
        add_product(p[0], x, y[0]),
        add_product(p[1], x, y[1]),
        add_product(p[2], x, y[2]),
        add_product(p[3], x, y[3]),
    )


@compiled(inline=True)
def _load_four(X: Array, rows: Four, m: int) -> Any:
    """Of each row of X the vector that begins at column m."""
    length = X.shape[1]
    return (
        load_from(X, rows[0] * length + m),
        load_from(X, rows[1] * length + m),
        load_from(X, rows[2] * length + m),
        load_from(X, rows[3] * length + m),
    )


@compiled(inline=True)
def _load_last(X: Array, rows: Four, m: int, count: int) -> Any:
    length = X.shape[1]
    return (
        load_first(X, rows[0] * length + m, count),
        load_first(X, rows[1] * length + m, count),
        load_first(X, rows[2] * length + m, count),
        load_first(X, rows[3] * length + m, count),
    )


@compiled(inline=True)
def _put(p: Any, products: Array) -> None:
    products[0], products[1], products[2], products[3] = total(p[0]), total(p[1]), total(p[2]), total(p[3])


@compiled()
def residual_of(a: Array, z: Array, chosen: Array, D: Array, r: Array) -> None:
    """r = zD − a, for codes of the chosen concepts."""
    for m in range(a.size):
        r[m] = -a[m]
    used = np.nonzero(z)[0]
    concepts, values = chosen[used], np.zeros(used.size + 3, z.dtype)
    values[: used.size] = z[used]
    for j in range(0, used.size, 4):
        c0, c1, c2, c3 = four_chosen(concepts, j)
        v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
        for m in range(a.size):
            r[m] += v0 * D[c0, m] + v1 * D[c1, m] + v2 * D[c2, m] + v3 * D[c3, m]


@compiled()
def norm_of(a: Array) -> float:
    """‖a‖."""
    squares, whole = zeros_of(a), a.size // LANES * LANES
    for m in range(0, whole, LANES):
        squares = add_product(squares, load_from(a, m), load_from(a, m))
    for m in range(whole, a.size, LANES):
        rest = load_first(a, m, a.size - m)
        squares = add_product(squares, rest, rest)
    return np.sqrt(total(squares))  # type: ignore[no-any-return]


@compiled()
def relative(residual: float, norm: float) -> float:
    """The residual of a row in units of its norm; 0 for an all-zero row. NaN stays."""
    return residual / norm if norm != 0 else residual
