"""Every kernel against the definition, and the definition against first principles."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import kernels
from core.kernels import grams, reference, torch_descent
from core.kernels.cpu import interface as cpu
from tests.core.problems import digits_split, excess, kkt_residual, planted

IMPLEMENTATIONS = [cpu, torch_descent]


def problem(
    rows: int, k: int, d: int, seed: int, *, zero_concepts: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(A, D, B, starting codes), float32."""
    A, Z, D = planted(rows, d, k, seed=seed)
    D[:zero_concepts] = 0
    A, Z, D = (torch.from_numpy(x) for x in (A, Z, D))
    return A, D, D @ D.T, Z


def test_reference_sweep_minimises_each_coordinate() -> None:
    A, _, D = planted(1, 30, 6)
    B, c, z = D @ D.T, A[0] @ D.T, np.zeros(6)
    g = z @ B - c
    for j in range(6):
        alone = z.copy()
        reference.sweep(alone[j : j + 1], (g[j : j + 1]).copy(), B[j : j + 1, j : j + 1])
        grid = np.linspace(0, 2 * alone[j] + 1, 2001)
        values = [0.5 * np.sum((A[0] - (z + (t - z[j]) * np.eye(6)[j]) @ D) ** 2) for t in grid]
        assert abs(grid[np.argmin(values)] - alone[j]) <= grid[1]


def test_reference_reaches_exact_least_squares() -> None:
    A, _, D = planted(5, 40, 12)
    Z = np.zeros((5, 12))
    G = (-A @ D.T).astype(np.float64)
    reference.descend(Z, G, (D @ D.T).astype(np.float64), max_sweeps=2000, progress_ratio=0)
    assert excess(A, torch.from_numpy(Z), D).max() < 1e-9
    assert kkt_residual(A, Z, D).max() < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("rows", "k", "d"), [(1, 1, 1), (3, 5, 4), (40, 64, 30), (70, 65, 90), (200, 130, 100)])
@pytest.mark.parametrize("progress_ratio", [0.0, 0.01])
def test_descend_gives_the_iterates_of_the_definition(
    implementation: ModuleType, rows: int, k: int, d: int, progress_ratio: float
) -> None:
    A, D, B, Z = problem(rows, k, d, seed=k, zero_concepts=k // 10)
    G = Z @ B - A @ D.T
    expected, gradient = Z.double().numpy(), G.double().numpy()
    before = (
        np.where(expected > 0, gradient, np.minimum(gradient, 0)) ** 2 * kernels.inverse_diagonal(B).numpy()
    ).sum(1)
    reference.descend(expected, gradient, B.double().numpy(), max_sweeps=3, progress_ratio=progress_ratio)

    violation = implementation.descend(Z, G, B, kernels.inverse_diagonal(B), 3, progress_ratio)

    np.testing.assert_allclose(Z.numpy(), expected, atol=2e-4 * expected.max())
    np.testing.assert_allclose(
        G.numpy(), gradient, atol=2e-4 * np.abs(gradient).max() + 2e-4 * np.abs(A.numpy()).max()
    )
    np.testing.assert_allclose(violation.numpy(), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_descend_keeps_the_gradient(implementation: ModuleType) -> None:
    A, D, B, Z = problem(50, 40, 60, seed=1)
    C = A @ D.T
    G = Z @ B - C
    implementation.descend(Z, G, B, kernels.inverse_diagonal(B), 5, 0.0)
    np.testing.assert_allclose(G.numpy(), (Z @ B - C).numpy(), atol=1e-5 * C.max().item())
    assert bool((Z >= 0).all())


def test_solve_reaches_the_exact_minimum() -> None:
    A, D, _, _ = problem(60, 48, 64, seed=2, zero_concepts=3)
    Z, residual = cpu.solve(A, kernels.prepare(D, hold_gram=True), 1e-6, 5000)
    assert bool((residual <= 1e-6).all())
    assert bool((Z[:, :3] == 0).all())
    assert excess(A.numpy(), Z, D.numpy()).max() < 1e-6
    assert kkt_residual(A.numpy(), Z.numpy(), D.numpy()).max() < 3e-6


def test_solve_says_so_where_it_did_not_arrive() -> None:
    A, D, _, _ = problem(20, 48, 64, seed=3)
    Z, residual = cpu.solve(A, kernels.prepare(D, hold_gram=True), 1e-6, 1)
    assert bool((residual > 1e-6).any())
    direct = kkt_residual(A.numpy(), Z.numpy(), D.numpy())
    np.testing.assert_allclose(residual.numpy(), direct, rtol=1e-2, atol=1e-6)


def test_repeated_and_dependent_concepts() -> None:
    """A singular gram: each concept twice, and sums of pairs. The codes are not unique; the minimum is."""
    A, _, D = planted(30, 40, 10, seed=4)
    D = np.concatenate([D, D, D[:5] + D[5:]])
    prepared = kernels.prepare(torch.from_numpy(D), hold_gram=True)
    Z, residual = cpu.solve(torch.from_numpy(A), prepared, 1e-5, 3000)
    assert bool((residual <= 1e-5).all())
    assert excess(A, Z, D).max() < 1e-5


def test_exact_steps_end_what_sweeps_alone_do_not() -> None:
    """Sweeps alone are at a residual of 1e-3 after 30 of them on digits; exact steps make 30 enough for 1e-6."""
    fit, held_out = digits_split()
    from core import NMF

    D = NMF(64, seed=0, max_iter=20).fit(fit)[1]
    A = torch.from_numpy(held_out[:100].copy())
    prepared = kernels.prepare(D, hold_gram=True)
    exact = cpu.solve(A, prepared, 1e-6, 30)[1]
    assert exact.max() < 1e-6
    Z = torch.zeros(len(A), len(D))
    torch_descent.descend(Z, -A @ D.T, prepared.B, prepared.inverse, 30, 0.0)
    assert np.median(kkt_residual(A.numpy(), Z.numpy(), D.numpy())) > 1e-4


@pytest.mark.parametrize(("k", "d"), [(48, 64), (130, 60), (1, 5)])
def test_solve_without_the_gram(k: int, d: int) -> None:
    """As for devices that have no kernels of their own."""
    A, D, _, _ = problem(13, k, d, seed=7, zero_concepts=k // 10)
    Z, residual = cpu.solve_for_others(A, kernels.prepare(D, hold_gram=False), 1e-6, 300)
    assert bool((residual <= 1e-6).all())
    assert excess(A.numpy(), Z, D.numpy()).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 5, 300, 600])  # 300 and 600 are mirrored in pieces, the last of them smaller
def test_a_gram_is_symmetric_to_the_last_bit(k: int, dtype: torch.dtype) -> None:
    D = torch.rand(k, 77, generator=torch.Generator().manual_seed(k), dtype=dtype)
    B = grams.gram(D)
    torch.testing.assert_close(B, D @ D.T)
    assert torch.equal(B, B.T)


def test_float64_is_computed_in_float64() -> None:
    A, _, D = planted(10, 40, 20, seed=5)
    a, d = torch.from_numpy(A).double(), torch.from_numpy(D).double()
    _, residual = cpu.solve(a, kernels.prepare(d, hold_gram=True), 1e-10, 300)
    assert bool((residual <= 1e-10).all())


def test_nan_is_not_hidden() -> None:
    """The fast-math flags leave NaN alone, so that a wrong input cannot pass for an answer."""
    A, D, B, Z = problem(4, 6, 8, seed=6)
    G = Z @ B - A @ D.T
    G[2, 3] = torch.nan
    violation = cpu.descend(Z, G, B, kernels.inverse_diagonal(B), 3, 0.0)
    assert bool(torch.isnan(violation[2]))
    assert not bool(torch.isnan(violation[[0, 1, 3]]).any())


@settings(max_examples=40)
@given(
    rows=st.integers(1, 12),
    k=st.integers(1, 20),
    d=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    zeros=st.integers(0, 2),
)
def test_blocked_and_row_wise_agree(rows: int, k: int, d: int, seed: int, zeros: int) -> None:
    A, D, B, Z = problem(rows, k, d, seed, zero_concepts=min(zeros, k))
    G = Z @ B - A @ D.T
    other_Z, other_G = Z.clone(), G.clone()
    inverse = kernels.inverse_diagonal(B)
    cpu.descend(Z, G, B, inverse, 3, 0.0)
    torch_descent.descend(other_Z, other_G, B, inverse, 3, 0.0)
    scale = max(float(Z.max()), float(A.max()))
    torch.testing.assert_close(Z, other_Z, atol=1e-3 * scale, rtol=1e-3)


# --- sums -------------------------------------------------------------------------------------------------------


def test_sums_are_exact_where_float32_would_lose_what_is_little() -> None:
    x = torch.full((300, 7), 1e-4)
    x[0, 0] = 1e6
    total, squares = kernels.sums(x)
    assert total == pytest.approx(math.fsum(x.double().ravel().tolist()), rel=1e-14)
    assert squares == pytest.approx(math.fsum(x.double().square().ravel().tolist()), rel=1e-14)


def test_sums_of_nothing_and_of_what_is_no_number() -> None:
    assert kernels.sums(torch.empty(0, 5)) == (0, 0)
    assert all(map(math.isnan, kernels.sums(torch.tensor([1.0, math.nan]))))
