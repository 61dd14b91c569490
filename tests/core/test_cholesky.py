import numpy as np
import pytest

from core.kernels import cholesky
from core.kernels.lanes import LANES


def concepts(k: int, d: int) -> np.ndarray:
    return np.random.default_rng(k).random((k, d))


@pytest.mark.parametrize("size", [1, 3, 4, 5, LANES - 1, LANES, LANES + 1, 2 * LANES, 50, 90])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_solves_with_the_gram_of_the_support(size: int, dtype: type[np.floating]) -> None:
    D = concepts(100, 300)
    B = (D @ D.T).astype(dtype)
    support = np.random.default_rng(size).permutation(100)[:size]
    room = cholesky.room_for(95, B)
    room[:] = np.nan  # nothing is read before it is written
    x = B[0, :size].copy()
    expected = np.linalg.solve(B[np.ix_(support, support)].astype(float), x)
    cholesky.factor(B, support, room)
    cholesky.solve(room, x)
    np.testing.assert_allclose(x, expected, atol=1e3 * float(np.finfo(dtype).eps) * np.abs(expected).max())
    assert all(cholesky.pivot(room, size, i) > 0 for i in range(size))


@pytest.mark.parametrize("dependent", [4, 7, 20])
def test_what_earlier_concepts_span_gets_no_pivot(dependent: int) -> None:
    D = concepts(24, 60)
    D[dependent] = D[1] + 2 * D[3]
    B, support = D @ D.T, np.arange(24)
    room = cholesky.room_for(24, B)
    cholesky.factor(B, support, room)
    assert [i for i in support if cholesky.pivot(room, 24, i) == 0] == [dependent]
    x = np.ones(24)
    cholesky.solve(room, x)
    rest = np.delete(support, dependent)
    assert x[dependent] == 0
    np.testing.assert_allclose(x[rest], np.linalg.solve(B[np.ix_(rest, rest)], np.ones(23)), rtol=1e-8)
