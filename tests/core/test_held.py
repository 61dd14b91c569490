"""Steps by a factor that is held, against NumPy's solve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.kernels.cpu import cholesky
from core.kernels.cpu.held import MOST_CHANGED, WORTH_HOLDING, held_none, way_to_minimiser

CONCEPTS = 120


def gram(dtype: type[np.floating], *, spanned: int | None = None) -> np.ndarray:
    D = np.random.default_rng(0).random((CONCEPTS, 300))
    if spanned is not None:
        D[spanned] = D[1] + 2 * D[3]
    return (D @ D.T).astype(dtype)


def way(B: np.ndarray, support: np.ndarray, U: np.ndarray, of_held: np.ndarray) -> np.ndarray:
    step = np.random.default_rng(1).standard_normal(len(support)).astype(B.dtype)
    expected = np.linalg.solve(B[np.ix_(support, support)].astype(float), step)
    way_to_minimiser(B, support, np.ones(CONCEPTS, B.dtype), U, of_held, step)
    error = np.abs(step - expected).max() / np.abs(expected).max()
    assert error <= 1e4 * np.finfo(B.dtype).eps
    return step


@settings(max_examples=40)
@given(
    size=st.integers(WORTH_HOLDING, 90),
    leave=st.integers(0, 20),
    join=st.integers(0, 20),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_supports_that_change_are_solved_for(size: int, leave: int, join: int, double: bool, seed: int) -> None:
    """By the factor that is held where few concepts have changed, by one of their own where more have."""
    B, random = gram(np.float64 if double else np.float32), np.random.default_rng(seed)
    order = random.permutation(CONCEPTS)
    first, then = np.sort(order[:size]), np.sort(order[leave : size + join])
    U, of_held = cholesky.room_for(CONCEPTS, B), held_none(CONCEPTS)
    way(B, first, U, of_held)
    assert list(of_held[1 : 1 + of_held[0]]) == list(first)
    for _ in range(2):  # what is held serves any number of times
        way(B, then, U, of_held)
        is_held = leave + join <= MOST_CHANGED
        assert list(of_held[1 : 1 + of_held[0]]) == list(first if is_held else then)


def test_a_small_factor_is_made_anew() -> None:
    B, U, of_held = gram(np.float64), cholesky.room_for(CONCEPTS, gram(np.float64)), held_none(CONCEPTS)
    for size in (WORTH_HOLDING - 2, WORTH_HOLDING - 1):
        way(B, np.arange(size), U, of_held)
        assert of_held[0] == size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_others_span_goes_to_zero_and_is_not_held(dtype: type[np.floating]) -> None:
    """Whether the first factor meets it, or it joins what is held, whose border then has no pivot."""
    B = gram(dtype, spanned=70)
    U, of_held = cholesky.room_for(CONCEPTS, B), held_none(CONCEPTS)
    for first in (None, np.arange(60)):
        if first is not None:
            way(B, first, U, of_held)
            assert of_held[0] == 60
        support = np.append(np.arange(60), 70)
        z, step = np.full(CONCEPTS, 3, dtype), np.ones(61, dtype)
        way_to_minimiser(B, support, z, U, of_held, step)
        assert step[60] == -3
        assert of_held[0] == 0


def test_what_is_not_a_number_is_not_hidden() -> None:
    B = gram(np.float64)
    U, of_held = cholesky.room_for(CONCEPTS, B), held_none(CONCEPTS)
    way(B, np.arange(60), U, of_held)
    step = np.ones(61)
    step[7] = np.nan
    way_to_minimiser(B, np.arange(61), np.ones(CONCEPTS), U, of_held, step)
    assert np.isnan(step).any()
