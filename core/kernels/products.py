"""Products of rows, as fast as a matrix product's and in one fixed order: a row's do not depend on its neighbours.

As for `core.kernels.lanes`, numba's disk cache of what calls this does not see that this file has changed.
"""

from typing import Any

import numpy as np

from core.threads import compiled

Array = np.ndarray[Any, np.dtype[Any]]
Four = tuple[Array, Array, Array, Array]

CONCEPTS_AT_ONCE = 64  # their rows of D stay in the core's cache while other rows are multiplied with them


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
    """The sixteen inner products of the first `length` values: in one fixed order."""
    x0, x1, x2, x3 = x
    y0, y1, y2, y3 = y
    zero = products[0, 0] - products[0, 0]
    p00 = p01 = p02 = p03 = p10 = p11 = p12 = p13 = zero
    p20 = p21 = p22 = p23 = p30 = p31 = p32 = p33 = zero
    for m in range(length):
        p00 += x0[m] * y0[m]
        p01 += x0[m] * y1[m]
        p02 += x0[m] * y2[m]
        p03 += x0[m] * y3[m]
        p10 += x1[m] * y0[m]
        p11 += x1[m] * y1[m]
        p12 += x1[m] * y2[m]
        p13 += x1[m] * y3[m]
        p20 += x2[m] * y0[m]
        p21 += x2[m] * y1[m]
        p22 += x2[m] * y2[m]
        p23 += x2[m] * y3[m]
        p30 += x3[m] * y0[m]
        p31 += x3[m] * y1[m]
        p32 += x3[m] * y2[m]
        p33 += x3[m] * y3[m]
    products[0, 0], products[0, 1], products[0, 2], products[0, 3] = p00, p01, p02, p03
    products[1, 0], products[1, 1], products[1, 2], products[1, 3] = p10, p11, p12, p13
    products[2, 0], products[2, 1], products[2, 2], products[2, 3] = p20, p21, p22, p23
    products[3, 0], products[3, 1], products[3, 2], products[3, 3] = p30, p31, p32, p33


@compiled()
def gradients(R: Array, D: Array, G: Array) -> None:
    """G = R·Dᵀ, for rows and columns of G in multiples of four."""
    k = D.shape[0]
    for start in range(0, k, CONCEPTS_AT_ONCE):
        for i in range(0, R.shape[0], 4):
            for j in range(start, min(k, start + CONCEPTS_AT_ONCE), 4):
                tile(four(R, i), four(D, j), R.shape[1], G[i : i + 4, j : j + 4])


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
