"""One table of solvers × starts × data that every property of a fit is tested on."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import NMF, errors
from core.initial import STARTS
from core.progress import run
from core.solvers import SOLVERS, solver_named
from demo.digits import digits_activations
from tests.core.problems import planted, relative_error, started

# The loss told before the last comes from products in float32; as a share of ‖A‖².
ROUNDING = 1e-6
# hals goes beyond each update, and back where that raises the loss; the others never raise it.
MONOTONE = [name for name in SOLVERS if name != "hals"]


def damaged(damage: Callable[[np.ndarray], None]) -> np.ndarray:
    A = planted(40, 30, 6)[0] + np.float32(0.01)
    damage(A)
    return A


def rank_one(A: np.ndarray) -> None:
    A[:] = np.outer(A[:, 0], A[0])


def one_value(A: np.ndarray) -> None:
    A[:] = 0
    A[-1, -1] = 1


# name → activations, nb_concepts, and whether the data has a use for so many concepts
DATA: dict[str, tuple[np.ndarray, int, bool]] = {
    "planted": (planted(200, 40, 10)[0], 10, True),
    "one row": (planted(1, 20, 3)[0], 1, True),
    "one feature": (planted(20, 1, 3)[0] + np.float32(0.1), 1, True),
    "one concept": (planted(30, 20, 3)[0], 1, True),
    "more concepts than rows": (planted(10, 40, 6)[0], 15, False),
    "more concepts than features": (planted(60, 10, 6)[0], 15, False),
    "rank below the concepts": (planted(60, 30, 4, noise=0)[0], 8, False),
    "rank one": (damaged(rank_one), 5, False),
    "one value": (damaged(one_value), 3, False),
    "zero rows": (damaged(lambda A: A[::2].fill(0)), 6, True),
    "zero columns": (damaged(lambda A: A[:, ::2].fill(0)), 6, True),
    "constant column": (damaged(lambda A: A[:, 0].fill(7)), 6, True),
}

solvers = pytest.mark.parametrize("solver", SOLVERS)
starts = pytest.mark.parametrize("init", STARTS)
data = pytest.mark.parametrize("name", DATA)


def check_sound(A: np.ndarray, Z: torch.Tensor, D: torch.Tensor, k: int) -> None:
    assert (Z.shape, D.shape) == ((len(A), k), (k, A.shape[1]))
    for tensor in (Z, D):
        assert tensor.dtype == torch.float32
        assert bool(torch.isfinite(tensor).all())
        assert bool((tensor >= 0).all())


def dead_concepts(Z: torch.Tensor, D: torch.Tensor) -> int:
    return int(((Z.amax(dim=0) == 0) | (D.amax(dim=1) == 0)).sum())


# --- every solver, from every start, on every data --------------------------------------------------------------


@cache
def fitted(solver: str, init: str, name: str) -> NMF:
    """What two tests look at: neither may change it."""
    A, k, _ = DATA[name]
    model = NMF(k, solver=solver, init=init, seed=0, tol=0, max_iter=25)
    model.fit(A)
    return model


@solvers
@starts
@data
def test_the_result_is_sound_and_the_loss_told_is_the_loss(solver: str, init: str, name: str) -> None:
    A, k, all_of_use = DATA[name]
    model = fitted(solver, init, name)
    Z, D = model.Z_, model.get_dictionary()
    check_sound(A, Z, D, k)
    assert not all_of_use or dead_concepts(Z, D) == 0
    energy = np.linalg.norm(A.astype(np.float64)) ** 2
    direct = 0.5 * relative_error(A, Z, D) ** 2 * energy
    assert model.loss_history_[-1] == pytest.approx(direct, rel=1e-3, abs=1e-9 * energy)
    assert direct < 0.3 * energy


@starts
@data
def test_data_is_fitted_alike_whether_small_or_not(init: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """hals has a kernel for small data, which all that is here is."""
    A, k, all_of_use = DATA[name]
    monkeypatch.setattr("core.solvers.hals.WORK_AT_ONCE", 0)
    model = NMF(k, init=init, seed=0, tol=0, max_iter=25)
    Z, D = model.fit(A)
    check_sound(A, Z, D, k)
    assert not all_of_use or dead_concepts(Z, D) == 0
    energy = np.linalg.norm(A.astype(np.float64)) ** 2
    for one, other in zip(model.loss_history_[:5], fitted("hals", init, name).loss_history_, strict=False):
        assert one == pytest.approx(other, rel=1e-3, abs=ROUNDING * energy)


@pytest.mark.parametrize("solver", MONOTONE)
@starts
@data
def test_the_loss_never_rises(solver: str, init: str, name: str) -> None:
    rises = np.diff(fitted(solver, init, name).loss_history_)
    assert rises.max(initial=0) <= ROUNDING * np.linalg.norm(DATA[name][0].astype(np.float64)) ** 2


@pytest.mark.parametrize("solver", ["mu", "anls"])
@starts
@pytest.mark.parametrize("name", ["zero rows", "zero columns", "one value"])
def test_zero_rows_and_columns_stay_exactly_zero(solver: str, init: str, name: str) -> None:
    A, k, _ = DATA[name]
    Z, D = NMF(k, solver=solver, init=init, seed=0, max_iter=10).fit(A)
    used_rows, used_columns = torch.from_numpy(A.any(axis=1)), torch.from_numpy(A.any(axis=0))
    assert not Z[~used_rows].any()
    assert not D[:, ~used_columns].any()
    if solver == "mu":  # and nothing else is
        assert bool((Z[used_rows] > 0).all())
        assert bool((D[:, used_columns] > 0).all())


@cache
def unscaled(solver: str, init: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    A, k, _ = DATA[name]
    return NMF(k, solver=solver, init=init, seed=0, max_iter=10).fit(A)


@solvers
@starts
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale_changes_nothing(solver: str, init: str, scale: float) -> None:
    scale = 2.0 ** round(np.log2(scale))
    for name in ("planted", "zero rows"):
        (A, k, _), (Z, D) = DATA[name], unscaled(solver, init, name)
        other_Z, other_D = NMF(k, solver=solver, init=init, seed=0, max_iter=10).fit(A * np.float32(scale))
        torch.testing.assert_close(other_D, D, atol=1e-3, rtol=1e-2)
        other_Z = (other_Z.double() / scale).float()
        torch.testing.assert_close(other_Z, Z, atol=1e-3 * float(Z.max()), rtol=1e-2)


@solvers
@starts
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_any_dtype_is_fitted_as_float32(solver: str, init: str, dtype: type[np.generic]) -> None:
    A = (8 * planted(50, 20, 4)[0]).round().astype(dtype)
    results = [NMF(4, solver=solver, init=init, seed=0, max_iter=5).fit(x) for x in (A, A.astype(np.float32))]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=60)
@given(
    solver=st.sampled_from(list(SOLVERS)),
    init=st.sampled_from(list(STARTS)),
    rows=st.integers(1, 30),
    d=st.integers(1, 20),
    k=st.integers(1, 40),
    exponent=st.integers(-66, 66),  # 1e-20 to 1e20
    density=st.sampled_from([0.05, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape_scale_and_sparsity(
    solver: str, init: str, rows: int, d: int, k: int, exponent: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    A = rng.exponential(size=(rows, d)) * (rng.random((rows, d)) < density)
    A = (A * 2.0**exponent).astype(np.float32)
    Z, D = NMF(k, solver=solver, init=init, seed=seed, max_iter=20).fit(A)
    check_sound(A, Z, D, k)
    if A.any():
        assert relative_error(A, Z, D) < 1


# --- every solver, on Z and D as given --------------------------------------------------------------------------


@solvers
def test_chunks_make_no_difference(solver: str) -> None:
    results = []
    for size in (150, 11):
        chunks, Z, D = started(size=size)
        run(SOLVERS[solver](chunks, Z, D, tol=0, max_iter=5))
        results.append((Z, D))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 * float(one.max()))


@solvers
def test_dead_concepts_are_revived(solver: str) -> None:
    """Started with three of eight concepts dead, and enough in the data for all eight."""
    chunks, Z, D = started()
    D[:2], Z[:, 2] = 0, 0
    last = list(SOLVERS[solver](chunks, Z, D, tol=1e-4, max_iter=200))[-1]
    assert dead_concepts(Z, D) == 0
    assert relative_error(chunks.A.numpy(), Z, D) == pytest.approx(last.relative_error, rel=1e-4)
    assert last.relative_error < 0.06


@cache
def stationary_point() -> tuple[torch.Tensor, torch.Tensor]:
    chunks, Z, D = started()
    run(SOLVERS["anls"](chunks, Z, D, tol=0, max_iter=150))
    return Z, D


@solvers
def test_a_stationary_point_is_left_alone(solver: str) -> None:
    chunks = started()[0]
    Z, D = (x.clone() for x in stationary_point())
    before = Z @ D
    told = [p for p in SOLVERS[solver](chunks, Z, D, tol=0, max_iter=3) if p.loss is not None]
    assert told[0].kkt_residual is not None
    assert told[0].kkt_residual < 1e-3
    torch.testing.assert_close(Z @ D, before, atol=1e-3 * float(before.max()), rtol=1e-2)


# --- how good they are ------------------------------------------------------------------------------------------


@cache
def ended(solver: str, init: str) -> float:
    """The loss after half of the usual iterations, of planted factors, or, from no start that is named, of digits."""
    if init:
        model = NMF(16, solver=solver, init=init, seed=0, max_iter=250)
        model.fit(planted(600, 100, 16, noise=0.02)[0])
    else:
        model = NMF(24, solver=solver, seed=0, max_iter=250)
        assert dead_concepts(*model.fit(digits_activations()[::6])) == 0
    return model.loss_history_[-1]


@pytest.mark.parametrize("solver", MONOTONE)
@starts
def test_each_ends_near_hals(solver: str, init: str) -> None:
    assert ended(solver, init) <= 1.05 * ended("hals", init)


@pytest.mark.slow
@pytest.mark.parametrize("solver", MONOTONE)
def test_each_ends_near_hals_on_digits(solver: str) -> None:
    assert ended(solver, "") <= 1.05 * ended("hals", "")


# --- by name ----------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_known_ones() -> None:
    assert all(solver_named(name) is solver for name, solver in SOLVERS.items())
    with pytest.raises(errors.UnknownSolver, match=r"'cd'; available: 'hals', 'mu', 'pgd', 'anls'$"):
        solver_named("cd")


@cache
def of_four_concepts() -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """(A, Z, D) of a fit with half of the concepts that A has."""
    A = planted(120, 40, 8, noise=0)[0]
    return A, *NMF(4, seed=0).fit(A)


@cache
def loss_without_a_start(solver: str) -> float:
    model = NMF(8, seed=0, solver=solver, max_iter=200)
    model.fit(of_four_concepts()[0])
    return model.loss_history_[-1]


@solvers
@pytest.mark.parametrize("given", ["Z", "D", "all of Z", "all of D"])
def test_concepts_that_are_zero_at_the_start_become_different_ones(solver: str, given: str) -> None:
    """Those given next to the four of an earlier fit, say: filled alike they would stay alike for good."""
    A, Z, D = of_four_concepts()
    start = {
        "Z": {"Z": np.hstack([Z, np.zeros((120, 4))])},
        "D": {"D": np.vstack([D, np.zeros((4, 40))])},
        "all of Z": {"Z": np.zeros((120, 8))},
        "all of D": {"D": np.zeros((8, 40))},
    }[given]
    grown = NMF(8, seed=0, solver=solver, max_iter=200)
    _, D = grown.fit(A, **start)
    assert grown.loss_history_[-1] < 2 * loss_without_a_start(solver) + 1e-4 * float((A**2).sum())
    apart = D / D.norm(dim=1, keepdim=True)
    assert float((apart @ apart.T).fill_diagonal_(0).max()) < 0.99
