"""Warm starts and callbacks."""

import numpy as np
import pytest
import torch
from scipy import sparse

from core import NMF, FitProgress, errors
from core.solvers import SOLVERS
from tests.core.problems import planted, relative_error

A = planted(150, 40, 8)[0]


@pytest.fixture(scope="module")
def good() -> tuple[torch.Tensor, torch.Tensor]:
    return NMF(8, seed=0, tol=1e-6).fit(A)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("which", ["Z and D", "Z", "D"])
def test_a_warm_start_goes_on_from_where_it_was(
    which: str, solver: str, good: tuple[torch.Tensor, torch.Tensor]
) -> None:
    start = {name: factor for name, factor in zip("ZD", good, strict=True) if name in which}
    kept = {name: factor.clone() for name, factor in start.items()}
    cold, warm = (NMF(8, seed=0, solver=solver, max_iter=2) for _ in range(2))
    cold.fit(A)
    warm.fit(A, **start)
    assert warm.loss_history_[-1] < 0.5 * cold.loss_history_[-1]
    assert relative_error(A, warm.Z_, warm.D) < 1.2 * relative_error(A, *good)
    assert all(torch.equal(factor, kept[name]) for name, factor in start.items())


@pytest.mark.parametrize("which", ["Z and D", "Z", "D"])
@pytest.mark.parametrize("exponents", [(0, 90), (90, 0), (60, -60), (0, -90)])
def test_a_warm_start_of_any_scale(
    which: str, exponents: tuple[int, int], good: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """A·2^e = (Z·2^f)(D·2^(e−f)), and the codes of a fit are in units of A."""
    e, f = exponents
    start = {"Z": good[0] * 2.0**f, "D": good[1] * 2.0 ** (e - f)}
    model = NMF(8, seed=0, max_iter=2)
    Z, D = model.fit(A * np.float32(2.0**e), **{name: x for name, x in start.items() if name in which})
    assert relative_error(A, Z * 2.0**-e, D) < 1.2 * relative_error(A, *good)


def test_a_warm_start_as_arrays_and_from_sparse_or_batches(good: tuple[torch.Tensor, torch.Tensor]) -> None:
    Z, D = good[0].double().numpy(), sparse.csr_array(good[1].numpy())
    expected = NMF(8, max_iter=3).fit(A, Z=Z, D=D)[1]
    for x in (sparse.csr_array(A), [A[:100], A[100:]]):
        torch.testing.assert_close(NMF(8, max_iter=3).fit(x, Z=Z, D=D)[1], expected, atol=1e-5, rtol=1e-3)


def test_zero_concepts_and_codes_in_a_warm_start_are_revived(good: tuple[torch.Tensor, torch.Tensor]) -> None:
    Z, D = good[0].clone(), good[1].clone()
    Z[:, 0], D[1] = 0, 0
    Z, D = NMF(8).fit(A, Z=Z, D=D)
    assert bool((Z.norm(dim=0) > 0).all())
    assert bool((D.norm(dim=1) > 0).all())


def test_zero_data_with_a_warm_start() -> None:
    Z, D = NMF(2).fit(np.zeros((3, 4)), Z=np.ones((3, 2)), D=np.ones((2, 4)))
    assert not Z.any()
    assert not D.any()


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        ({"Z": np.ones((150, 7))}, errors.WrongShape, "codes have 7 columns"),
        ({"Z": np.ones((149, 8))}, errors.WrongShape, "Z has 149 rows; A has 150"),
        ({"Z": -np.ones((150, 8))}, errors.NegativeValues, "codes hold 1200 negative"),
        ({"D": np.ones((7, 40))}, errors.WrongShape, "D has 7 rows; nb_concepts is 8"),
        ({"D": np.ones((8, 41))}, errors.WrongShape, "D has 41 columns; A has 40 features"),
        ({"D": np.full((8, 40), np.nan)}, errors.NotFinite, "concepts hold 320 NaN"),
        ({"D": "none"}, errors.WrongDtype, "concepts"),
    ],
)
def test_wrong_starts_are_refused_by_the_call(start: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NMF(8).fit_steps(A, **start)
    with pytest.raises(error, match=words):
        NMF(8).fit([A[:50], A[50:]], **start)


# --- callback ---------------------------------------------------------------------------------------------------


def test_a_callback_hears_of_each_iteration_once() -> None:
    told: list[FitProgress] = []
    model = NMF(8, seed=0, tol=0, max_iter=6)
    plain = NMF(8, seed=0, tol=0, max_iter=6).fit(A)[1]
    assert torch.equal(model.fit(A, callback=told.append)[1], plain)
    assert [progress.iteration for progress in told] == [1, 2, 3, 4, 5, 6]
    assert [progress.loss for progress in told] == model.loss_history_


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1.0, 2.0**90])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_callback_stops_the_fit_with_what_it_has(stop: int, scale: float, solver: str) -> None:
    model = NMF(8, seed=0, solver=solver, tol=0)
    Z, D = model.fit(A * np.float32(scale), callback=lambda progress: progress.iteration == stop)
    assert len(model.loss_history_) == stop
    direct = 0.5 * (relative_error(A, Z / scale, D) * np.linalg.norm(A.astype(float))) ** 2
    assert direct <= model.loss_history_[-1] / scale**2 * (1 + 1e-3)  # the gram's rounding
    torch.testing.assert_close(D.norm(dim=1), torch.ones(8))
    assert torch.equal(model.get_dictionary(), D)


@pytest.mark.parametrize("solver", ["hals", "anls", "pgd"])
@pytest.mark.parametrize("stop", [9, 30])
def test_a_callback_stops_the_fit_with_the_dictionary_it_was_told_of(stop: int, solver: str) -> None:
    """Of concepts that nearly depend on each other others are hard to find; at the last iteration, too."""
    random = np.random.default_rng(0)
    B = random.random((300, 6)) @ (random.random((6, 60)) * 10.0 ** random.uniform(-4, 2, 60))
    B = B.astype(np.float32)
    model = NMF(40, seed=0, solver=solver, tol=0, max_iter=30)
    Z, D = model.fit(B, callback=lambda progress: progress.iteration == stop)
    assert len(model.loss_history_) == stop
    direct = 0.5 * (relative_error(B, Z, D) * np.linalg.norm(B.astype(float))) ** 2
    rounding = 1e-6 * 0.5 * np.linalg.norm(B.astype(float)) ** 2
    assert direct <= model.loss_history_[-1] * (1 + 1e-3) + rounding


def test_a_callback_that_fails_leaves_the_model_as_it_was() -> None:
    def fail(progress: FitProgress) -> None:
        raise RuntimeError("no more")

    model = NMF(8)
    with pytest.raises(RuntimeError, match="no more"):
        model.fit(A, callback=fail)
    assert not model.fitted


def test_fit_steps_takes_a_callback_too() -> None:
    steps = list(NMF(8, seed=0, tol=0).fit_steps(A, callback=lambda progress: progress.iteration == 2))
    assert max(progress.iteration for progress in steps) == 2
