"""Concepts matched: against every permutation, and by what must hold."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.matching import match


def random(k: int, d: int, seed: int, density: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((k, d)) * (rng.random((k, d)) < density)).astype(np.float32)


def cosines(D_a: np.ndarray, D_b: np.ndarray) -> np.ndarray:
    units = [
        D.astype(np.float64) / (np.linalg.norm(D.astype(np.float64), axis=1, keepdims=True) + 1e-300)
        for D in (D_a, D_b)
    ]
    return units[0] @ units[1].T


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6))
def test_no_other_pairs_are_better(k_a: int, k_b: int, d: int, seed: int) -> None:
    D_a, D_b = random(k_a, d, seed), random(k_b, d, seed + 1)
    found, scores = match(D_a, D_b), cosines(D_a, D_b)
    if k_a > k_b:
        scores = scores.T
    few, many = scores.shape
    best = max(sum(scores[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(many), few))
    assert found.cosines.sum() == pytest.approx(best, abs=1e-5)
    np.testing.assert_allclose(found.cosines, cosines(D_a, D_b)[found.a, found.b], atol=1e-5)
    assert len(set(found.a)) == len(set(found.b)) == len(found.a) == few
    assert (np.diff(found.cosines) <= 0).all()
    assert found.stability == pytest.approx((found.cosines > 0.9).sum() / many)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_it_is_the_same_both_ways(k_a: int, k_b: int, seed: int) -> None:
    D_a, D_b = random(k_a, 10, seed), random(k_b, 10, seed + 1)
    one, other = match(D_a, D_b), match(D_b, D_a)
    assert one.cosines.sum() == pytest.approx(other.cosines.sum(), abs=1e-5)
    assert one.stability == pytest.approx(other.stability)


def test_concepts_in_another_order_and_size_are_found_again() -> None:
    rng = np.random.default_rng(0)
    D = random(64, 100, 0)
    order = rng.permutation(64)
    found = match(D, D[order] * rng.uniform(1e-30, 1e30, (64, 1)).astype(np.float32))
    np.testing.assert_array_equal(order[found.b], found.a)
    np.testing.assert_allclose(found.cosines, 1, atol=1e-6)
    assert found.stability == 1


def test_a_concept_of_zeros_is_like_none() -> None:
    D = np.eye(4, 6, dtype=np.float32)
    D[1] = 0
    found = match(D, D)
    assert found.cosines.tolist() == [1, 1, 1, 0]
    assert (found.a[-1], found.b[-1]) == (1, 1)
    assert found.stability == 0.75


def test_the_smaller_one_is_matched_whole() -> None:
    D = random(20, 30, 3)
    found = match(D, D[[3, 7]])
    assert dict(zip(found.b.tolist(), found.a.tolist(), strict=True)) == {0: 3, 1: 7}
    assert found.stability == 0.1
