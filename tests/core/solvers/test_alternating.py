from functools import partial

import numpy as np
import pytest
import torch

from core import kernels
from core.progress import run
from core.solvers import anls, hals, mu, pgd
from core.solvers.alternating import (
    Half,
    alternate,
    direct_loss,
    in_turn,
    update_codes,
    update_concepts,
)
from core.statistics import loss_from
from tests.core.problems import started

HALVES = {
    "hals": hals.CODES,
    "mu": mu.multiplicative(40, 8),
    "pgd": pgd.CODES,
    "anls": anls.EXACT,
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_statistics_losses_and_violations_are_what_they_are_called(half: Half) -> None:
    chunks, Z, D = started()
    A, z, d = chunks.A.double().numpy(), Z.double().numpy(), D.double().numpy()
    concepts = D.T.contiguous()
    statistics = run(update_codes(half, chunks, Z, concepts))
    assert statistics.violation == pytest.approx(squared_violation(A, z, d), rel=1e-3)
    z = Z.double().numpy()
    np.testing.assert_allclose(statistics.gram.numpy(), z.T @ z, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(statistics.cross.numpy(), A.T @ z, rtol=1e-3, atol=1e-6)

    assert run(update_concepts(half, concepts, statistics)) == pytest.approx(
        squared_violation(A.T, d.T, z.T), rel=1e-2
    )
    loss = loss_from(statistics, concepts, concepts.T @ concepts, chunks.energy)
    assert loss == pytest.approx(0.5 * ((A - z @ concepts.double().numpy().T) ** 2).sum(), rel=1e-3)
    assert run(direct_loss(chunks, Z, concepts)) == pytest.approx(loss, rel=1e-4)


def squared_violation(A: np.ndarray, Z: np.ndarray, D: np.ndarray) -> float:
    G = (Z @ D - A) @ D.T
    V = np.where(Z > 0, G, np.minimum(G, 0)) / np.linalg.norm(D, axis=1)
    return float((V**2).sum())


def test_a_code_at_its_lower_bound_may_want_to_fall() -> None:
    Z, G = torch.tensor([[0.0, 1.0, 0.5, 0.5]]), torch.tensor([[3.0, 3.0, 3.0, -3.0]])
    inverse = torch.tensor([1.0, 0.5, 1.0, 1.0])
    assert kernels.squared_violation(Z, G, inverse).tolist() == [9 / 2 + 9 + 9]
    assert kernels.squared_violation(Z, G, inverse, bound=torch.full((1, 4), 0.5)).tolist() == [9 / 2 + 9]


def test_it_stops_where_the_loss_has_settled_and_not_before() -> None:
    def idle(B: torch.Tensor):
        return lambda Z, C: torch.ones(len(Z))

    chunks, Z, D = started()
    before = D.clone()
    half = Half(idle, products=1)
    told = [
        s for s in alternate(chunks, Z, D, partial(in_turn, half, half), tol=1e-4, max_iter=100) if s.loss is not None
    ]
    assert told[-1].iteration == 12  # ten without progress after the first, and a last one
    assert told[-1].converged
    assert torch.equal(D, before)
