"""R·Dᵀ by panels, against the definition, and to the same bits whatever rows are beside one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.kernels.cpu.panels import DEPTH, ROWS, gradients, padded, panels_of, width_of


def product(R: np.ndarray, D: np.ndarray) -> np.ndarray:
    """R·Dᵀ; what lies beyond R's rows, and was in G before, is not read."""
    panels = panels_of(torch.from_numpy(D)).numpy()
    room = np.full((padded(len(R)), R.shape[1]), np.nan, R.dtype)
    room[: len(R)] = R
    G = np.full((len(room), panels.shape[0] * panels.shape[2]), np.nan, R.dtype)
    gradients(room, len(R), panels, G)
    return G[: len(R), : len(D)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    rows=st.integers(1, 2 * ROWS + 1),
    k=st.integers(1, 110),  # up to three panels
    d=st.integers(1, 2 * DEPTH + 3),
    seed=st.integers(0, 1000),
)
def test_it_is_the_product(dtype: type, rows: int, k: int, d: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    R, D = random.standard_normal((rows, d)).astype(dtype), random.standard_normal((k, d)).astype(dtype)
    G = product(R, D)
    exact = R.astype(np.float64) @ D.T.astype(np.float64)
    norms = np.linalg.norm(R, axis=1)[:, None] * np.linalg.norm(D, axis=1)
    assert float((np.abs(G - exact) / norms).max()) <= 8 * np.finfo(dtype).eps
    alone = np.concatenate([product(row, D) for row in np.split(R, rows)])
    np.testing.assert_array_equal(G, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_panels_hold_each_concept_once_and_zeros(dtype: torch.dtype) -> None:
    width = width_of(dtype.itemsize)
    D = torch.rand(width + 1, 7, dtype=dtype)
    panels = panels_of(D)
    assert panels.shape == (2, 7, width)
    assert torch.equal(panels[0].T, D[:width])
    assert torch.equal(panels[1, :, 0], D[width])
    assert not bool(panels[1, :, 1:].any())
