import numpy as np
import pytest
import torch

from core.chunks import Chunks
from core.kernels import reference
from core.progress import run
from core.solvers import SOLVERS, hals
from tests.core.problems import planted, relative_error


def problem(n: int = 150, d: int = 40, k: int = 8, size: int = 40) -> tuple[Chunks, torch.Tensor, torch.Tensor]:
    """Chunks of A, and random Z and D of its size."""
    A = planted(n, d, k)[0]
    chunks = Chunks(torch.from_numpy(A), k)
    chunks.size = size
    run(chunks.survey())
    generator = torch.Generator().manual_seed(0)
    scale = (A.mean() / k) ** 0.5
    return chunks, torch.rand(n, k, generator=generator) * scale, torch.rand(k, d, generator=generator) * scale


def test_one_step_is_coordinate_descent_on_each_factor() -> None:
    chunks, Z, D = problem()
    A, z, dt = chunks.A.double().numpy(), Z.double().numpy(), D.double().numpy().T.copy()
    reference.descend(z, z @ (dt.T @ dt) - A @ dt, dt.T @ dt, max_sweeps=4, progress_ratio=0.01)
    concepts = D.T.contiguous()
    statistics = run(hals.update_codes(chunks, Z, concepts))
    np.testing.assert_allclose(Z.numpy(), z, rtol=1e-3, atol=1e-3 * z.max())
    np.testing.assert_allclose(statistics.gram.numpy(), z.T @ z, rtol=1e-3)
    np.testing.assert_allclose(statistics.cross.numpy(), A.T @ z, rtol=1e-3)

    reference.descend(dt, dt @ (z.T @ z) - A.T @ z, z.T @ z, max_sweeps=8, progress_ratio=0.01)
    run(hals.update_concepts(concepts, statistics))
    np.testing.assert_allclose(concepts.numpy(), dt, rtol=1e-3, atol=1e-3 * dt.max())

    loss = hals.loss_from(statistics, concepts, concepts.T @ concepts, chunks.energy)
    assert loss == pytest.approx(0.5 * ((A - z @ dt.T) ** 2).sum(), rel=1e-3)
    assert run(hals.direct_loss(chunks, Z, concepts)) == pytest.approx(loss, rel=1e-4)


def test_the_violation_is_the_projected_gradient() -> None:
    chunks, Z, D = problem()
    A, z, d = chunks.A.double().numpy(), Z.double().numpy(), D.double().numpy()
    G = (z @ d - A) @ d.T
    V = np.where(z > 0, G, np.minimum(G, 0)) / np.linalg.norm(d, axis=1)
    statistics = run(hals.update_codes(chunks, Z, D.T.contiguous()))
    assert statistics.violation == pytest.approx((V**2).sum(), rel=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_chunks_make_no_difference(solver: str) -> None:
    results = []
    for size in (150, 11):
        chunks, Z, D = problem(size=size)
        list(SOLVERS[solver](chunks, Z, D, tol=0, max_iter=5))
        results.append((Z, D))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 * float(one.max()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_dead_concepts_are_revived(solver: str) -> None:
    """Started with three of eight concepts dead, and enough in the data for all eight."""
    chunks, Z, D = problem()
    D[:2], Z[:, 2] = 0, 0
    last = list(SOLVERS[solver](chunks, Z, D, tol=1e-4, max_iter=100))[-1]
    assert bool((Z.norm(dim=0) > 0).all())
    assert bool((D.norm(dim=1) > 0).all())
    assert relative_error(chunks.A.numpy(), Z, D) == pytest.approx(last.relative_error, rel=1e-4)
    assert last.relative_error < 0.05


def test_extrapolation_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def iterations() -> int:
        chunks, Z, D = problem(400, 60, 20, 400)
        return list(hals.solve(chunks, Z, D, tol=1e-4, max_iter=1000))[-1].iteration

    with_extrapolation = iterations()
    monkeypatch.setattr(hals, "FIRST_WEIGHT", 0.0)
    assert with_extrapolation < 0.8 * iterations()
