from functools import partial

import numba
import numpy as np
import pytest
import torch

from core.chunks import Chunks
from core.kernels import reference
from core.progress import run
from core.solvers import hals
from core.solvers.alternating import in_turn, update_codes, update_concepts
from tests.core.problems import planted, started


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


@pytest.mark.parametrize(
    ("rows", "d", "k"), [(1, 1, 1), (3, 40, 5), (31, 24, 16), (64, 33, 17), (65, 8, 40), (150, 40, 8)]
)
def test_an_iteration_at_once_is_one_in_turn(rows: int, d: int, k: int) -> None:
    chunks, Z, D = started(rows, d, k, size=rows)
    assert hals.is_small(chunks)
    ahead, codes = D.T.contiguous(), Z.clone()
    one = run(hals.at_once(chunks, Z, ahead))
    other = run(in_turn(hals.CODES, hals.CONCEPTS, chunks, codes, ahead.clone()))
    torch.testing.assert_close(Z, codes, rtol=1e-3, atol=1e-3 * float(codes.max()))
    torch.testing.assert_close(one.concepts, other.concepts, rtol=1e-3, atol=1e-3 * float(other.concepts.max()))
    assert float(one.of_codes) == pytest.approx(float(other.of_codes), rel=1e-3)
    assert float(one.of_concepts) == pytest.approx(float(other.of_concepts), rel=1e-2)
    assert torch.equal(ahead, D.T)


def test_many_concepts_are_not_swept_at_once() -> None:
    for k, is_small in ((256, True), (257, False)):
        assert hals.is_small(started(30, 30, k, size=30)[0]) == is_small


@pytest.mark.parametrize(("rows", "d", "k"), [(1797, 200, 24), (700, 30, 64), (97, 49, 3)])
def test_an_iteration_at_once_is_the_same_on_any_number_of_threads(rows: int, d: int, k: int) -> None:
    told = []
    of_numba, of_torch = numba.get_num_threads(), torch.get_num_threads()
    try:
        for threads in (1, min(2, of_numba)):
            numba.set_num_threads(threads)
            torch.set_num_threads(threads)
            chunks, Z, D = started(rows, d, k, size=rows)
            assert hals.is_small(chunks)
            told.append((run(hals.at_once(chunks, Z, D.T.contiguous())), Z))
    finally:
        numba.set_num_threads(of_numba)
        torch.set_num_threads(of_torch)
    (one, of_one), (other, of_other) = told
    assert torch.equal(of_one, of_other)
    assert torch.equal(one.concepts, other.concepts)
    assert (one.loss, one.of_codes, one.of_concepts) == (other.loss, other.of_codes, other.of_concepts)


@pytest.mark.parametrize(("rows", "d", "k"), [(200, 40, 8), (1797, 200, 24), (700, 30, 64)])
def test_the_loss_of_an_iteration_at_once_is_as_near_as_told(rows: int, d: int, k: int) -> None:
    """Also of equal values, whose rounding errors do not cancel."""
    for A in (torch.from_numpy(planted(rows, d, k, noise=0)[0]), torch.full((rows, d), 0.1)):
        chunks = Chunks(A, k)
        run(chunks.survey())
        _, Z, D = started(rows, d, k, size=rows)
        done, codes = run(hals.at_once(chunks, Z, D.T.contiguous())), Z.double()
        direct = 0.5 * float((A.double() - codes @ done.concepts.double().T).square().sum())
        assert done.loss == pytest.approx(direct, abs=5e-7 * chunks.energy)


def test_what_has_vanished_or_is_unused_is_so_at_once_as_in_turn() -> None:
    chunks, Z, D = started(size=150)
    chunks.A[:, :20] = 0
    run(chunks.survey())
    D[0], D[1] = 1e-19, 0  # the square of the first, times that of a code, would be no float32
    D[2, 20:] = 0  # nothing wants what is left of it
    Z[:, 3] = 1e-19
    codes = Z.clone()
    one = run(hals.at_once(chunks, Z, D.T.contiguous()))
    other = run(in_turn(hals.CODES, hals.CONCEPTS, chunks, codes, D.T.contiguous()))
    torch.testing.assert_close(Z, codes, rtol=1e-3, atol=1e-3 * float(codes.max()))
    torch.testing.assert_close(one.concepts, other.concepts, rtol=1e-3, atol=1e-3 * float(other.concepts.max()))
    assert not Z[:, 2].any()
    assert one.dead.tolist() == other.dead.tolist() == [False, False, True, False, False, False, False, False]


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
