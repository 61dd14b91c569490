import numpy as np
import torch

from core.solvers import mu
from tests.core.problems import planted


def test_a_step_is_lee_and_seungs_update_several_times() -> None:
    A, Z, D = planted(30, 40, 8)
    Z, D = Z + np.float32(0.1), D + np.float32(0.01)
    a, z, d = (x.astype(np.float64) for x in (A, Z, D))
    for _ in range(5):
        z *= (a @ d.T) / (z @ d @ d.T)
    updated = torch.from_numpy(Z)
    mu.updates(torch.from_numpy(D @ D.T), count=5)(updated, torch.from_numpy(A @ D.T))
    np.testing.assert_allclose(updated.numpy(), z, rtol=1e-4)


def test_exact_zeros_are_the_datas_alone() -> None:
    A, Z, D = planted(30, 40, 8)
    A[3], Z[3] = 0, 1
    Z[5] = 0
    updated, C = torch.from_numpy(Z), torch.from_numpy(A @ D.T)
    step = mu.updates(torch.from_numpy(D @ D.T), count=5)
    for _ in range(40):
        step(updated, C)
    assert bool((updated[3] == 0).all())
    rest = torch.arange(30) != 3
    assert bool((updated[rest] > 0).all())
    # and a row that was all zero has grown to what it would be from anywhere
    started_positive = torch.ones(1, 8)
    for _ in range(40):
        step(started_positive, C[5:6])
    torch.testing.assert_close(updated[5:6], started_positive, atol=1e-2, rtol=1e-2)


def test_concepts_of_norm_zero_and_codes_that_vanish() -> None:
    B = torch.tensor([[0.0, 0, 0], [0, 1e-30, 0], [0, 0, 1]])
    Z, C = torch.tensor([[1.0, 1e-20, 1e-38]]), torch.tensor([[0.0, 1e-15, 2]])
    for _ in range(20):
        mu.updates(B, count=3)(Z, C)
    torch.testing.assert_close(Z, torch.tensor([[0.0, 1e15, 2]]))


def test_updates_are_as_many_as_their_cost_allows() -> None:
    counts = [mu.multiplicative(width, k).products // 2 for width, k in ((512, 64), (10, 100), (10**6, 8))]
    assert counts == [19, 3, 40]
