import numpy as np
import pytest

from core.kernels.cpu import cholesky, dense
from core.kernels.cpu.lanes import LANES


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dependent", [None, 9])
def test_a_step_is_the_same_alone_and_in_lanes(dependent: int | None, dtype: type[np.floating]) -> None:
    """So that a row's codes do not depend on how many rows are left beside it."""
    rng, sizes = np.random.default_rng(0), [37, 40, 3, 17, 1]
    D = concepts(40, 60)
    if dependent is not None:
        D[dependent] = D[1] + 2 * D[3]
    B = (D @ D.T).astype(dtype)
    B = np.tril(B) + np.tril(B, -1).T
    support, used = np.zeros((44, LANES), np.int64), np.zeros(LANES, np.int64)
    z, step = rng.random((40, LANES)).astype(dtype), np.zeros((41, LANES), dtype)
    for s, n in enumerate(sizes):
        support[:n, s], used[s] = np.sort(rng.permutation(40)[:n]), n
        step[:n, s] = rng.standard_normal(n)
    given, room = step.copy(), np.empty((40 * 40, LANES), dtype)
    dropped = np.zeros((41, LANES), bool)
    dense._step_in_lanes(B, support, used, z, room, step, dropped)
    for s, n in enumerate(sizes):
        alone, spanned = given[:n, s].copy(), np.zeros(n, bool)
        dense._step_alone(B, support[:n, s].copy(), z[:, s].copy(), room, alone, spanned)
        np.testing.assert_array_equal(alone, step[:n, s])
        np.testing.assert_array_equal(spanned, dropped[:n, s])
    assert dropped.any() == (dependent is not None)
