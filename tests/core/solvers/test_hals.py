from functools import partial

import numpy as np
import pytest
import torch

from core.kernels import reference
from core.progress import run
from core.solvers import hals
from core.solvers.alternating import update_codes, update_concepts
from tests.core.problems import started


def test_one_iteration_is_coordinate_descent_on_each_factor() -> None:
    chunks, Z, D = started()
    A, z, dt = chunks.A.double().numpy(), Z.double().numpy(), D.double().numpy().T.copy()
    reference.descend(z, z @ (dt.T @ dt) - A @ dt, dt.T @ dt, max_sweeps=hals.CODE_SWEEPS, progress_ratio=0.01)
    concepts = D.T.contiguous()
    statistics = run(update_codes(hals.CODES, chunks, Z, concepts))
    np.testing.assert_allclose(Z.numpy(), z, rtol=1e-3, atol=1e-3 * z.max())

    reference.descend(dt, dt @ (z.T @ z) - A.T @ z, z.T @ z, max_sweeps=hals.CONCEPT_SWEEPS, progress_ratio=0.01)
    run(update_concepts(hals.CONCEPTS, concepts, statistics))
    np.testing.assert_allclose(concepts.numpy(), dt, rtol=1e-3, atol=1e-3 * dt.max())


def test_extrapolation_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def iterations() -> int:
        chunks, Z, D = started(400, 60, 20, 400)
        return list(hals.solve(chunks, Z, D, tol=1e-4, max_iter=1000))[-1].iteration

    with_extrapolation = iterations()
    monkeypatch.setattr(hals, "FIRST_WEIGHT", 0.0)
    assert with_extrapolation < 0.8 * iterations()


def test_the_weight_follows_the_loss() -> None:
    before, updated = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.2]])
    extrapolation = hals.Extrapolation()
    ahead = partial(extrapolation.start_from, before, updated)
    torch.testing.assert_close(ahead(True), torch.tensor([[2.5, 0.0]]))  # beyond, but never below zero
    grown = extrapolation.weight
    assert grown > hals.FIRST_WEIGHT
    assert torch.equal(ahead(False), updated)
    assert extrapolation.weight < grown
    for _ in range(100):
        ahead(True)
    assert extrapolation.weight <= 1
