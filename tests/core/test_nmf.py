import copy
import io
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import NMF as ScikitNMF  # noqa: N811
from threadpoolctl import threadpool_limits

from core import NMF, Dictionary, FitProgress, errors
from core.chunks import chunk_size
from tests.core.problems import digits_split, planted, relative_error


def steps_of(model: NMF, A: np.ndarray, max_iter: int | None = None) -> list[FitProgress]:
    return list(model.fit_steps(A, max_iter))


@pytest.fixture(scope="module")
def fitted() -> NMF:
    model = NMF(10, seed=0)
    model.fit(planted(200, 40, 10)[0])
    return model


# --- how good ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_scikit_learn() -> tuple[float, float]:
    """Its relative errors on digits, on the rows fitted and on held-out ones."""
    fit, held_out = digits_split()
    peer = ScikitNMF(64, init="nndsvda", solver="cd", max_iter=200, random_state=0)
    with threadpool_limits(1):  # else numpy's other threads spin beside the one that works
        with pytest.warns(match="Maximum number of iterations"):
            Z = peer.fit_transform(fit)
        D, codes = (torch.from_numpy(x) for x in (peer.components_, peer.transform(held_out)))
    return relative_error(fit, torch.from_numpy(Z), D), relative_error(held_out, codes, D)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_are_fitted_better_than_by_scikit_learn(seed: int, of_scikit_learn: tuple[float, float]) -> None:
    """On the rows fitted and on held-out ones, and with no dead concept."""
    fit, held_out = digits_split()
    model = NMF(64, seed=seed)
    Z, D = model.fit(fit)
    assert relative_error(fit, Z, D) <= of_scikit_learn[0]
    assert relative_error(held_out, model.encode(held_out), D) <= of_scikit_learn[1]
    assert int((Z.norm(dim=0) == 0).sum()) == 0
    assert int((D.norm(dim=1) == 0).sum()) == 0


def test_planted_factors_are_found() -> None:
    A, _, D = planted(1500, 100, 20, noise=0)
    Z, found = NMF(20, seed=0, tol=1e-6).fit(A)
    assert relative_error(A, Z, found) < 0.01
    cosines = torch.from_numpy(D / np.linalg.norm(D, axis=1, keepdims=True)) @ found.T
    assert float(cosines.amax(dim=1).min()) > 0.99


@pytest.mark.parametrize("init", ["nndsvda", "random"])
def test_the_loss_told_is_the_loss(init: str) -> None:
    A = planted(300, 50, 12)[0]
    model = NMF(12, seed=1, init=init, max_iter=25)
    last = steps_of(model, A)[-1]
    direct = relative_error(A, model.Z_, model.D)
    assert last.relative_error == pytest.approx(direct, rel=1e-4)
    assert last.loss == pytest.approx(0.5 * (direct * np.linalg.norm(A.astype(float))) ** 2, rel=2e-4)
    assert model.loss_history_[-1] == last.loss


def test_tightly_fitted_is_near_stationary() -> None:
    A = planted(300, 50, 8)[0]
    loose = steps_of(NMF(8, seed=0, max_iter=3), A)[-1]
    tight = steps_of(NMF(8, seed=0, tol=0, max_iter=500), A)[-1]
    assert tight.kkt_residual < 1e-4 < loose.kkt_residual


def test_the_loss_falls_to_the_last() -> None:
    A = planted(300, 50, 12)[0]
    losses = [s.loss for s in steps_of(NMF(12, seed=0), A) if s.loss is not None]
    rounding = 1e-7 * np.linalg.norm(A) ** 2  # of the losses before the last
    assert losses[-1] <= min(losses) + rounding


def test_a_loss_that_is_little_beside_the_activations_is_told_and_lowered_to_the_end() -> None:
    """The rounding of the statistics, a hundredth of it or more, neither tells the loss nor ends the fit."""
    random = np.random.default_rng(0)
    for A, k in (
        ((100 + random.random((600, 100))).astype(np.float32), 10),
        ((random.random((600, 8)) @ random.random((8, 100))).astype(np.float32), 16),
    ):
        model = NMF(k, seed=0)
        steps, reached = model.fit_steps(A), 0
        for told in steps:
            state = steps.state()
            if state is not None and told.iteration > reached:
                reached = told.iteration
                direct = relative_error(A, state["Z"], state["D"])
                assert told.relative_error == pytest.approx(direct, rel=0.03)
        best = relative_error(A, *NMF(k, seed=0, tol=0).fit(A))
        assert relative_error(A, model.Z_, model.D) <= max(1.01 * best, 1e-5)


def test_rows_of_three_features_are_many_slices() -> None:
    """Their sums are float32 within a chunk; so much of them that a fit would settle above its minimum."""
    assert chunk_size(3, 1, torch.device("cpu")) == 1 << 18


@pytest.mark.parametrize("signal", [1e-3, 1e-4])
def test_what_varies_little_about_a_mean_is_fitted_to_the_end(signal: float) -> None:
    """By its own loss the fit ends, not by that of the mean, of which the first iterations leave next to nothing."""
    random = np.random.default_rng(5)
    varying = random.random((300, 4)) @ random.random((4, 60)) + 0.1 * random.random((300, 60))
    A = (1 + signal * varying).astype(np.float32)
    reached, best = (relative_error(A, *NMF(4, seed=0, tol=tol, max_iter=300).fit(A)) for tol in (1e-4, 0))
    assert reached <= 1.002 * best


@pytest.mark.parametrize("offset", [0, 10])
def test_a_fit_that_cannot_gain_ends_at_once(offset: float) -> None:
    A = planted(300, 60, 4)[0] + np.float32(offset)
    Z, D = NMF(4, seed=0, tol=1e-6).fit(A)
    for scale in (1, 2.0**-40):
        again = NMF(4, seed=0)
        again.fit(A * np.float32(scale), Z=Z * scale, D=D)
        assert len(again.loss_history_) <= 3


def test_a_fit_that_has_come_to_rounding_ends() -> None:
    A = planted(300, 60, 4, noise=0)[0]
    model = NMF(4, seed=0)
    assert relative_error(A, *model.fit(A)) <= 2e-6
    assert len(model.loss_history_) <= 40


# --- every shape and scale --------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    rows=st.integers(1, 30),
    d=st.integers(1, 20),
    k=st.integers(1, 40),
    exponent=st.integers(-66, 66),  # 1e-20 to 1e20
    init=st.sampled_from([None, "nndsvda", "random"]),
    damage=st.sampled_from(["none", "zero rows", "zero columns", "constant column", "rank one", "one value"]),
    seed=st.integers(0, 1000),
)
def test_any_shape_scale_and_degeneracy(
    rows: int, d: int, k: int, exponent: int, init: str | None, damage: str, seed: int
) -> None:
    A = planted(rows, d, 3, seed=seed)[0] + np.float32(0.01)
    match damage:
        case "zero rows":
            A[::2] = 0
        case "zero columns":
            A[:, ::2] = 0
        case "constant column":
            A[:, 0] = 7
        case "rank one":
            A = np.outer(A[:, 0], A[0]).astype(np.float32)
        case "one value":
            A[:] = 0
            A[-1, -1] = 1
    model = NMF(k, seed=seed, init=init, max_iter=30)
    Z, D = model.fit((A * 2.0**exponent).astype(np.float32))
    assert Z.shape == (rows, k)
    assert D.shape == (k, d)
    for tensor in (Z, D, model.encode((A * 2.0**exponent).astype(np.float32))):
        assert bool(torch.isfinite(tensor).all())
        assert bool((tensor >= 0).all())
    norms = D.norm(dim=1)
    torch.testing.assert_close(norms[norms > 0], torch.ones(int((norms > 0).sum())), atol=1e-5, rtol=0)
    if not A.any():
        assert not Z.any()
        return
    # never worse than the best single concept, which is the first singular vector (Perron and Frobenius)
    scaled = A.astype(np.float64) * 2.0**exponent
    best_of_one = np.linalg.norm(np.linalg.svd(scaled, compute_uv=False)[1:])
    slack = 1e-5 if init != "random" else 5e-4  # from anywhere, the fall may be below `tol` while there is some left
    error = np.linalg.norm(scaled - Z.double().numpy() @ D.double().numpy())
    assert error <= best_of_one + slack * np.linalg.norm(scaled)


@pytest.mark.parametrize(("rows", "d", "k"), [(1, 10, 1), (10, 1, 1), (30, 20, 5), (40, 30, 10)])
def test_scale_changes_nothing(rows: int, d: int, k: int) -> None:
    A = planted(rows, d, k)[0]
    Z, D = NMF(k, seed=0).fit(A)
    for exponent in (-90, 90):
        scaled_Z, scaled_D = NMF(k, seed=0).fit(A * np.float32(2.0**exponent))
        torch.testing.assert_close(scaled_D, D, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            scaled_Z.double() * 2.0**-exponent, Z.double(), atol=1e-3 * float(Z.max()), rtol=1e-3
        )


def test_zero_data() -> None:
    model = NMF(3)
    Z, D = model.fit(np.zeros((5, 4), np.float32))
    assert not Z.any()
    assert not D.any()
    assert not model.encode(np.ones((2, 4), np.float32)).any()


@pytest.mark.parametrize(("rows", "d", "k"), [(200, 30, 60), (50, 100, 80), (400, 64, 64)])
def test_more_concepts_than_rank_allows_stay_alive(rows: int, d: int, k: int) -> None:
    Z, D = NMF(k, seed=0).fit(planted(rows, d, 40)[0])
    assert int((Z.norm(dim=0) == 0).sum()) == 0
    assert int((D.norm(dim=1) == 0).sum()) == 0


# --- repeatable, and in slices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["nndsvda", "random"])
def test_a_seed_makes_it_repeatable(init: str) -> None:
    A = planted(200, 40, 10)[0]
    first, again, other = (NMF(10, seed=seed, init=init, max_iter=5).fit(A)[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_seed_does_not_touch_torch_random_state() -> None:
    state = torch.get_rng_state()
    NMF(3).fit(planted(20, 10, 3)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_progress() -> None:
    A = planted(200, 40, 10)[0]
    model = NMF(10, seed=0, tol=0)
    steps = steps_of(model, A, max_iter=7)
    assert steps[0] == FitProgress(0, 7)
    assert [s.iteration for s in steps] == sorted(s.iteration for s in steps)
    assert {s.iteration for s in steps} == set(range(8))
    assert all((s.loss is None) == (s.iteration == 0) for s in steps)
    assert not steps[-1].converged
    assert len(model.loss_history_) == 7
    with pytest.raises(FrozenInstanceError):
        steps[0].iteration = 3  # type: ignore[misc]


def test_converged_is_told() -> None:
    last = steps_of(NMF(5, seed=0, tol=1e-3), planted(200, 40, 5)[0], max_iter=400)[-1]
    assert last.converged
    assert last.iteration < 400


def test_nothing_changes_before_the_end() -> None:
    A = planted(200, 40, 10)[0]
    model = NMF(10, seed=0)
    steps = model.fit_steps(A)
    for _ in range(5):
        next(steps)
    steps.close()
    with pytest.raises(errors.NotFitted):
        model.get_dictionary()


def test_slices_are_many_where_the_data_is_large() -> None:
    rows = np.random.default_rng(0).random((6000, 512), np.float32)
    steps = steps_of(NMF(256, seed=0, max_iter=2), rows)
    assert sum(s.iteration == 1 for s in steps) >= 6


def test_the_first_bad_value_of_a_large_array_is_told() -> None:
    A = np.ones((5000, 1000), np.float32)
    A[4900, 3] = np.nan
    A[4950, 3] = np.nan
    with pytest.raises(errors.NotFinite, match=r"2 NaN or infinite values.*row 4900, column 3"):
        NMF(2).fit(A)


# --- the class people know --------------------------------------------------------------------------------------


def test_fit_encode_decode(fitted: NMF) -> None:
    A = planted(200, 40, 10)[0]
    Z = fitted.encode(A)
    assert fitted.Z_.shape == Z.shape == (200, 10)
    assert relative_error(A, Z, fitted.D) <= relative_error(A, fitted.Z_, fitted.D) + 1e-6
    torch.testing.assert_close(fitted.decode(Z), Z @ fitted.get_dictionary())
    assert fitted.encode(A[0]).shape == (1, 10)


def test_encode_follows_a_dictionary_written_to(fitted: NMF) -> None:
    A = planted(20, 40, 10)[0]
    model = NMF(10)
    model.load_state_dict(fitted.state_dict())
    before = model.encode(A)
    with torch.no_grad():
        model.D *= 2
    torch.testing.assert_close(model.encode(A), before / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("solver", ["cd", ""])
def test_unknown_solvers(solver: str) -> None:
    for kind in (ValueError, AssertionError, errors.UnknownSolver):
        with pytest.raises(kind, match="available: 'hals'"):
            NMF(3, solver=solver)


@pytest.mark.parametrize(
    "parameters",
    [
        {"nb_concepts": 0},
        {"nb_concepts": 2.5},
        {"nb_concepts": True},
        {"tol": -1e-3},
        {"tol": float("nan")},
        {"init": "svd"},
        {"max_iter": 0},
        {"max_iter": 1.5},
    ],
)
def test_bad_parameters(parameters: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidParameter, match=next(iter(parameters))):
        NMF(**{"nb_concepts": 3} | parameters)  # type: ignore[arg-type]


def test_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="maxiter"):
        NMF(3, maxiter=5)  # type: ignore[call-arg]


def test_not_fitted() -> None:
    model = NMF(3)
    for call in (model.get_dictionary, lambda: model.encode(np.ones((1, 2))), lambda: model.decode(np.ones((1, 3)))):
        with pytest.raises(ValueError, match="fit") as caught:
            call()
        assert isinstance(caught.value, errors.NotFitted)
    assert not model.fitted


def test_the_constructor_max_iter_is_fits_default() -> None:
    A = planted(50, 20, 4)[0]
    model = NMF(4, seed=0, tol=0, max_iter=3)
    model.fit(A)
    assert len(model.loss_history_) == 3
    model.fit(A, max_iter=5)
    assert len(model.loss_history_) == 5


def test_state_dict_and_save(fitted: NMF) -> None:
    A = planted(20, 40, 10)[0]
    model = NMF(10)
    model.load_state_dict(fitted.state_dict())
    assert torch.equal(model.encode(A), fitted.encode(A))
    for weights_only, saved in ((True, fitted.state_dict()), (False, fitted)):
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=weights_only)
        model.load_state_dict(loaded if weights_only else loaded.state_dict())
        assert torch.equal(model.encode(A), fitted.encode(A))
    model = NMF(10)
    model.load_state_dict({"D": fitted.get_dictionary().double()})
    assert model.get_dictionary().dtype == torch.float32
    state = NMF(10).partial_fit(A[:5]).state_dict()
    assert len(state) == 5
    others = {name: x.double() if x.dtype == torch.float32 else x.float() for name, x in state.items()}
    for assign in (False, True):
        model.load_state_dict(others, assign=assign)
        assert [x.dtype for x in model.state_dict().values()] == [x.dtype for x in state.values()]
    with pytest.raises(RuntimeError, match="size mismatch"):
        NMF(11).load_state_dict(fitted.state_dict())


def test_a_state_that_is_loaded_is_another_dictionary(fitted: NMF) -> None:
    """Nothing of the one before is told of it, and who was given that has it as it was."""
    A = planted(20, 40, 10)[0]
    model = NMF(10, seed=0)
    _, D = model.fit(A, max_iter=3)
    before = D.clone()
    model.load_state_dict(fitted.state_dict())
    assert torch.equal(D, before)
    assert not hasattr(model, "Z_")
    assert not hasattr(model, "loss_history_")
    model.partial_fit(A)
    assert len(model.loss_history_) == 1
    with torch.inference_mode():
        model = NMF(10, seed=0)
        model.fit(A, max_iter=3)
    model.load_state_dict(fitted.state_dict())
    assert torch.equal(model.encode(A), fitted.encode(A))


def test_to_moves_it_with_and_without_a_dictionary(fitted: NMF) -> None:
    assert NMF(3).to("meta").device == torch.device("meta")
    model = NMF(10)
    model.load_state_dict(fitted.state_dict())
    model.to("meta")
    assert model.device == model.get_dictionary().device == torch.device("meta")


def test_a_deep_copy_stands_alone(fitted: NMF) -> None:
    A = planted(20, 40, 10)[0]
    before = fitted.encode(A)
    copied = copy.deepcopy(fitted)
    assert torch.equal(copied.encode(A), before)
    with torch.no_grad():
        copied.D *= 2
    assert torch.equal(fitted.encode(A), before)


@pytest.mark.parametrize("change", ["double", "half", "bfloat16"])
def test_the_dictionary_stays_in_float32(change: str, fitted: NMF) -> None:
    A = planted(20, 40, 10)[0]
    model = copy.deepcopy(fitted)
    assert getattr(model, change)() is model
    assert torch.equal(model.get_dictionary(), fitted.get_dictionary())
    assert torch.equal(model.encode(A), fitted.encode(A))
    assert getattr(NMF(3), change)().fit(A)[1].dtype == torch.float32


def test_within_other_modules(fitted: NMF) -> None:
    A = torch.from_numpy(planted(20, 40, 10)[0])
    model = torch.nn.Sequential(torch.nn.ReLU(), fitted, torch.nn.Linear(10, 3))
    assert torch.equal(fitted(A), fitted.encode(A))
    model(A).sum().backward()
    assert model[2].weight.grad is not None
    assert not fitted(A.clone().requires_grad_()).requires_grad
    assert "1.D" in model.state_dict()


def test_initial_values() -> None:
    A = planted(60, 30, 6)[0]
    model = NMF(6, seed=0)
    Z, D = model.init_nndsvda(A)
    assert Z.shape == (60, 6)
    assert D.shape == (6, 30)
    assert relative_error(A, Z, D) < 1
    for tensor, shape in ((model.init_random_z(A), (60, 6)), (model.init_random_d(A), (6, 30))):
        assert tensor.shape == shape
        assert bool((tensor >= 0).all())
    assert float((model.init_random_z(A) @ model.init_random_d(A)).mean()) == pytest.approx(A.mean(), rel=0.5)
    for start in (model.init_random_z, model.init_random_d):
        large = start(A * np.float32(1e20)).double()
        torch.testing.assert_close(large, start(A).double() * 1e10, rtol=1e-5, atol=0)


def test_sanitisers(fitted: NMF) -> None:
    x = fitted.sanitize_np_input(torch.ones(3, 2, dtype=torch.float64))
    assert (x.dtype, x.shape) == (np.float32, (3, 2))
    assert fitted.sanitize_np_codes(torch.ones(3, 10)).shape == (3, 10)
    with pytest.raises(errors.WrongShape):
        fitted.sanitize_np_codes(torch.ones(3, 2))


def test_verbose_shows_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    NMF(4, seed=0, verbose=True, max_iter=3).fit(planted(50, 20, 4)[0])
    assert "loss=" in capsys.readouterr().err
    NMF(4, seed=0, max_iter=3).fit(planted(50, 20, 4)[0])
    assert capsys.readouterr().err == ""


def test_a_slice_of_subnormal_values_alone_is_no_fault() -> None:
    A = np.full((5000, 1000), 1e-40, np.float32)
    A[0] = 1
    assert NMF(1, seed=0, max_iter=1).fit(A.astype(np.float64))[1].shape == (1, 1000)


def test_inference_mode() -> None:
    A = planted(20, 10, 3)[0]
    with torch.inference_mode():
        model = NMF(3, seed=0, max_iter=3)
        model.fit(A)
        inside = model.encode(A)
    assert torch.equal(model.encode(A), inside)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: NMF(4, tol=None), "tol is None; it must be a number"),  # type: ignore[arg-type]
        (lambda: NMF(4, tol=True), "tol is True"),
        (lambda: NMF(4, tol=float("nan")), "tol is nan"),
        (lambda: NMF(4, solver=["hals"]), r"unknown solver \['hals'\]"),  # type: ignore[arg-type]
        (lambda: NMF(4, init=["random"]), r"init is \['random'\]"),  # type: ignore[arg-type]
        (lambda: NMF(2).fit([[1.0, 2.0], [3.0, 4.0]]), "a list of rows; make it one matrix"),
        (lambda: Dictionary(-np.ones((2, 3))), "concepts hold 6 negative values"),
        (lambda: Dictionary(np.array([[1, np.nan]])), "concepts hold 1 NaN"),
        (lambda: Dictionary(np.array([[1, np.inf]])), "concepts hold 1 NaN or infinite value"),
        (lambda: Dictionary(np.array([[1, 1e39]])), r"concepts of a row whose values reach 1e\+39 would exceed"),
        (lambda: NMF(2).fit(np.ma.masked_array([[1.0, 2]], [[True, False]])), r"a masked array; pass x.filled\(0\)"),
    ],
)
def test_what_is_no_value_is_told(make: Callable[[], object], told: str) -> None:
    with pytest.raises(errors.CoreError, match=told):
        make()


def test_a_state_that_is_refused_changes_nothing() -> None:
    A = np.random.default_rng(0).random((30, 8))
    saved, fresh, fitted = NMF(5), NMF(6), NMF(6)
    saved.fit(A)
    D = fitted.fit(A)[1].clone()
    for model in (fresh, fitted):
        with pytest.raises(RuntimeError, match="size mismatch"):
            model.load_state_dict(saved.state_dict())
    assert not fresh.fitted
    assert torch.equal(fitted.get_dictionary(), D)


def test_a_dictionary_that_is_written_to_is_prepared_anew_whatever_the_mode() -> None:
    A = np.random.default_rng(0).random((30, 8))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            model = NMF(3, seed=0)
            model.fit(A)
            codes = model.encode(A)
            model.get_dictionary().mul_(2)
            assert torch.allclose(model.encode(A), codes / 2, atol=1e-5)


def test_codes_in_batches_are_told_nothing_of_clipping() -> None:
    model = NMF(5, seed=0)
    model.fit(np.random.default_rng(0).random((30, 8)))
    for codes in (-np.ones((2, 5)), [-np.ones((2, 5))]):
        with pytest.raises(errors.NegativeValues) as told:
            model.decode(codes)
        assert "clip" not in str(told.value)


def test_a_tolerance_beyond_all_floats_is_refused() -> None:
    with pytest.raises(errors.InvalidParameter, match="tol"):
        NMF(3, tol=10**400)
