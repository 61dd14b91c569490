"""Products of rows of a few concepts, in one fixed order: a row's do not depend on its neighbours."""

from typing import Any

import numpy as np

from core.compiled import Array, compiled
from core.kernels.cpu.lanes import LANES, add_product, load, load_first, total, zeros_of

Four = tuple[Array, Array, Array, Array]


@compiled()
def four(X: Array, i: int) -> Four:
    """Rows i to i + 3, the last one again where there are none left."""
    last = X.shape[0] - 1
    return X[i], X[min(i + 1, last)], X[min(i + 2, last)], X[min(i + 3, last)]


@compiled()
def four_chosen(X: Array, chosen: Array, i: int) -> Four:
    """The same of the chosen rows."""
    last = chosen.size - 1
    return X[chosen[i]], X[chosen[min(i + 1, last)]], X[chosen[min(i + 2, last)]], X[chosen[min(i + 3, last)]]


@compiled()
def tile(x: Four, y: Four, length: int, products: Array) -> None:
    """The sixteen inner products of the first `length` values."""
    zero = zeros_of(products)
    p0 = p1 = p2 = p3 = (zero, zero, zero, zero)
    whole = length // LANES
    for m in range(whole):
        v = load(y[0], m), load(y[1], m), load(y[2], m), load(y[3], m)
        p0, p1 = _add_products(p0, load(x[0], m), v), _add_products(p1, load(x[1], m), v)
        p2, p3 = _add_products(p2, load(x[2], m), v), _add_products(p3, load(x[3], m), v)
    if length % LANES:
        v = _last(y, whole, length % LANES)
        u = _last(x, whole, length % LANES)
        p0, p1 = _add_products(p0, u[0], v), _add_products(p1, u[1], v)
        p2, p3 = _add_products(p2, u[2], v), _add_products(p3, u[3], v)
    _put(p0, products[0]), _put(p1, products[1]), _put(p2, products[2]), _put(p3, products[3])


@compiled()
def row_of_tile(x: Array, y: Four, length: int, products: Array) -> None:
    """The same of one row with four."""
    zero = zeros_of(products)
    p = (zero, zero, zero, zero)
    whole, left = length // LANES, length % LANES
    for m in range(whole):
        p = _add_products(p, load(x, m), (load(y[0], m), load(y[1], m), load(y[2], m), load(y[3], m)))
    if left:
        p = _add_products(p, load_first(x, whole, left), _last(y, whole, left))
    _put(p, products)


@compiled()
def _add_products(p: Any, x: Any, y: Any) -> Any:
    """Four vectors of sums, each with x's product with one of y more."""
    return (
        add_product(p[0], x, y[0]),
        add_product(p[1], x, y[1]),
        add_product(p[2], x, y[2]),
        add_product(p[3], x, y[3]),
    )


@compiled()
def _last(x: Four, i: int, count: int) -> Any:
    return (
        load_first(x[0], i, count),
        load_first(x[1], i, count),
        load_first(x[2], i, count),
        load_first(x[3], i, count),
    )


@compiled()
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
        d0, d1, d2, d3 = four_chosen(D, concepts, j)
        v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
        for m in range(a.size):
            r[m] += v0 * d0[m] + v1 * d1[m] + v2 * d2[m] + v3 * d3[m]


@compiled()
def norm_of(a: Array) -> float:
    """‖a‖."""
    squares, whole, left = zeros_of(a), a.size // LANES, a.size % LANES
    for m in range(whole):
        squares = add_product(squares, load(a, m), load(a, m))
    if left:
        rest = load_first(a, whole, left)
        squares = add_product(squares, rest, rest)
    return np.sqrt(total(squares))  # type: ignore[no-any-return]


@compiled()
def relative(residual: float, norm: float) -> float:
    """The residual of a row in units of its norm; 0 for an all-zero row. NaN stays."""
    return residual / norm if norm != 0 else residual
