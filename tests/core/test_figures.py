"""Figures of concepts against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.constants import NEIGHBOURS
from core.figures import BINS, NONE, TOP_ROWS, Figures, figure_steps, nearest_steps
from core.progress import run
from tests.core.problems import planted


def figures(Z: np.ndarray, D: np.ndarray) -> Figures:
    norms = np.linalg.norm(D.astype(np.float64), axis=1, keepdims=True)
    unit = torch.from_numpy((D / np.where(norms > 0, norms, 1)).astype(np.float32))
    return run(figure_steps(torch.from_numpy(Z), run(nearest_steps(unit))))


def best_others(scores: np.ndarray) -> list[list[tuple[int, float]]]:
    """For each concept the others with a score above zero, from the best on."""
    told = []
    for j, row in enumerate(scores):
        others = sorted((-score, i) for i, score in enumerate(row) if i != j and score > 0)
        told.append([(i, -score) for score, i in others[:NEIGHBOURS]])
    return told


def same_others(concepts: torch.Tensor, values: torch.Tensor, scores: np.ndarray) -> None:
    for j, (of, to, wanted) in enumerate(zip(concepts, values, best_others(scores), strict=True)):
        count = len(wanted)
        np.testing.assert_allclose(to[:count], [score for _, score in wanted], atol=1e-4)
        # which of equal ones comes first is not promised
        np.testing.assert_allclose([scores[j, i] for i in of[:count]], to[:count], atol=1e-4)
        assert len({int(i) for i in of[:count]} - {j}) == count
        assert (of[count:] == NONE).all()
        assert (to[count:] == 0).all()


def check(Z: np.ndarray, D: np.ndarray, told: Figures) -> None:
    k = Z.shape[1]
    np.testing.assert_array_equal(told.uses, (Z > 0).sum(0))
    np.testing.assert_array_equal(told.largest, Z.max(0))
    for j in range(k):
        codes = Z[:, j][Z[:, j] > 0]
        edges = np.float32(Z[:, j].max() or 1)
        bins = np.minimum((codes / edges * BINS).astype(int), BINS - 1)
        np.testing.assert_array_equal(told.histogram[j], np.bincount(bins, minlength=BINS))
        best = np.sort(codes)[::-1][:TOP_ROWS]
        np.testing.assert_array_equal(told.top_codes[j][: len(best)], best)
        first = np.argsort(-Z[:, j], kind="stable")[: len(best)]
        np.testing.assert_array_equal(told.top_rows[j][: len(best)], first)
        assert (told.top_rows[j][len(best) :] == NONE).all()
    d, z = D.astype(np.float64), Z > 0
    norms = np.linalg.norm(d, axis=1, keepdims=True)
    unit = d / np.where(norms > 0, norms, 1)
    same_others(told.nearest, told.cosines, unit @ unit.T)
    both = (z.T.astype(float) @ z).astype(float)
    either = z.sum(0)[:, None] + z.sum(0) - both
    same_others(told.together, told.overlap, both / np.maximum(either, 1))


def test_against_plain_numpy() -> None:
    _, Z, D = planted(300, 40, 12, noise=0.3)
    Z[np.median(Z) > Z] = 0
    check(Z, D, figures(Z, D))


@settings(max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, 8),
    st.integers(1, 15),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.sampled_from([1, 3, 1 << 20]),
)
def test_any_shape(n: int, d: int, k: int, seed: int, density: float, levels: int) -> None:
    """And codes that are equal, or hardly ever."""
    rng = np.random.default_rng(seed)
    Z = (np.ceil(levels * rng.random((n, k))) * (rng.random((n, k)) < density)).astype(np.float32)
    D = (rng.random((k, d)) * (rng.random((k, d)) < density)).astype(np.float32)
    check(Z, D, figures(Z, D))


def test_more_rows_and_concepts_than_a_slice_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.chunks.SLICE_WORK", 20_000)
    monkeypatch.setattr("core.figures.TOGETHER_BLOCK", 4)
    _, Z, D = planted(500, 20, 9, noise=0.2)
    Z = np.ceil(Z)  # the largest in several slices
    check(Z, D, figures(Z, D))
    assert sum(1 for _ in figure_steps(torch.from_numpy(Z), run(nearest_steps(torch.from_numpy(D))))) > 20


def test_memory_bounds_a_slice_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.figures.MOST_VALUES", 30)
    _, Z, D = planted(50, 20, 9, noise=0.2)
    check(Z, D, figures(Z, D))
