import numpy as np
import pytest
import torch

from core.solvers import pgd
from tests.core.problems import excess, planted


def accelerated(z: np.ndarray, c: np.ndarray, B: np.ndarray, L: float, count: int) -> np.ndarray:
    """One row by the definition, in float64."""

    def objective(x: np.ndarray) -> float:
        return float(x @ B @ x - 2 * c @ x)

    last, t = z, 1.0
    for _ in range(count):
        next_t = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y = z + (t - 1) / next_t * (z - last)
        trial = np.maximum(y - (B @ y - c) / L, 0)
        rose = objective(trial) > objective(z)
        last, z, t = z, (z if rose else trial), (1.0 if rose else next_t)
    return z


@pytest.mark.parametrize("count", [1, 2, 10, 25])
def test_a_step_is_nesterovs_with_restart(count: int) -> None:
    A, Z, D = planted(30, 40, 8)
    B, C = (x.astype(np.float64) for x in (D @ D.T, A @ D.T))
    L = np.linalg.eigvalsh(B)[-1]
    expected = np.array([accelerated(z, c, B, L, count) for z, c in zip(Z.astype(np.float64), C, strict=True)])
    improved = torch.from_numpy(Z.copy())
    pgd.accelerated(torch.from_numpy(D @ D.T), count=count)(improved, torch.from_numpy(A @ D.T))
    np.testing.assert_allclose(improved.numpy(), expected, atol=2e-4 * expected.max())


def test_many_steps_reach_exact_least_squares_and_no_row_gets_worse() -> None:
    A, Z, D = planted(20, 40, 8)
    step, C = pgd.accelerated(torch.from_numpy(D @ D.T), count=20), torch.from_numpy(A @ D.T)
    improved, losses = torch.from_numpy(Z), []
    for _ in range(30):
        step(improved, C)
        losses.append(((A.astype(np.float64) - improved.double().numpy() @ D) ** 2).sum(axis=1))
    assert (np.diff(losses, axis=0) <= 1e-5 * (A**2).sum(axis=1)).all()
    assert excess(A, improved, D).max() < 1e-5


@pytest.mark.parametrize("k", [1, 2, 30])
def test_the_largest_eigenvalue_is_bounded_closely_from_above(k: int) -> None:
    D = planted(10, 40, k)[2] + np.float32(0.01)
    D[1::3] = 0
    B = D @ D.T
    largest = np.linalg.eigvalsh(B.astype(np.float64))[-1]
    assert largest * (1 - 1e-6) <= pgd.largest_eigenvalue(torch.from_numpy(B)) <= 1.01 * largest


def test_the_largest_eigenvalue_where_concepts_differ_by_thirty_orders() -> None:
    assert pgd.largest_eigenvalue(torch.tensor([1e-30, 1.0, 0.0]).diag()) == pytest.approx(1)


def test_no_concept_at_all_moves_nothing() -> None:
    Z = torch.ones(3, 2)
    pgd.accelerated(torch.zeros(2, 2), count=5)(Z, torch.zeros(3, 2))
    assert torch.equal(Z, torch.ones(3, 2))
