"""A fit that goes on from a state ends where it would have ended: to the bit, for every solver of the table."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from core import NMF, errors
from core.solvers import SOLVERS
from core.state import State
from tests.core.problems import planted

A = planted(150, 40, 8)[0]


def copied(state: State) -> State:
    return {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in state.items()}


def interrupted(model: NMF, data: object, iteration: int) -> State | None:
    """The state after that iteration; None where the fit ends no later."""
    steps = model.fit_steps(data)  # type: ignore[arg-type] - any kind of data
    for progress in steps:
        if progress.iteration == iteration and (state := steps.state()) is not None:
            return copied(state)
    return None


def check_goes_on(model: NMF, data: object, state: State, whole: NMF) -> None:
    told = list(model.fit_steps(data, state=state))  # type: ignore[arg-type]
    assert told[0].iteration == state["iteration"]
    assert told[0].loss == whole.loss_history_[int(state["iteration"]) - 1]
    assert torch.equal(model.get_dictionary(), whole.get_dictionary())
    assert torch.equal(model.Z_, whole.Z_)
    assert model.loss_history_ == whole.loss_history_


@settings(max_examples=40)
@given(
    solver=st.sampled_from(list(SOLVERS)),
    rows=st.integers(1, 40),
    d=st.integers(1, 20),
    k=st.integers(1, 12),
    exponent=st.sampled_from([0, -66, 66]),
    density=st.sampled_from([0.05, 0.3, 1.0]),
    iteration=st.integers(1, 22),
    seed=st.integers(0, 1000),
)
def test_a_fit_goes_on_as_if_nothing_had_come_between(
    solver: str, rows: int, d: int, k: int, exponent: int, density: float, iteration: int, seed: int
) -> None:
    """Of any shape and scale, with dead concepts to revive, before and after the loss has settled."""
    rng = np.random.default_rng(seed)
    data = (rng.exponential(size=(rows, d)) * (rng.random((rows, d)) < density) * 2.0**exponent).astype(np.float32)

    def model() -> NMF:
        return NMF(k, solver=solver, seed=seed, max_iter=24)

    whole = model()
    whole.fit(data)
    state = interrupted(model(), data, iteration)
    if state is not None:
        check_goes_on(model(), data, state, whole)
    elif data.any():
        assert len(whole.loss_history_) <= iteration


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, lambda x: [x[:60], x[60:]]])
def test_it_does_so_at_each_iteration_and_with_a_state_of_a_state(solver: str, kind: object, tmp_path: Path) -> None:
    """Through a file, as people keep it."""

    def model() -> NMF:
        return NMF(8, solver=solver, seed=0, max_iter=12)

    data = kind(A)  # type: ignore[operator]
    whole = model()
    whole.fit(data)
    states: list[State] = []
    steps = model().fit_steps(data)
    for _ in steps:
        if (state := steps.state()) is not None:
            torch.save(state, tmp_path / "state.pt")
            states.append(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [state["iteration"] for state in states] == list(range(1, len(whole.loss_history_)))
    for state in states[::4]:
        check_goes_on(model(), data, state, whole)
    again = model().fit_steps(data, state=copied(states[2]))
    for _ in again:
        if (state := again.state()) is not None and state["iteration"] == 6:
            break
    check_goes_on(model(), data, copied(state), whole)


def test_dead_concepts_are_revived_as_they_would_have_been() -> None:
    """The start of each of them decides the rest of the fit."""
    generator = torch.Generator().manual_seed(0)
    Z, D = torch.rand(150, 8, generator=generator), torch.rand(8, 40, generator=generator)
    D[:2], Z[:, 2] = 0, 0
    whole, cut, resumed = (NMF(8, seed=0, max_iter=40) for _ in range(3))
    whole.fit(A, Z=Z, D=D)
    steps = cut.fit_steps(A, Z=Z, D=D)
    states = [copied(state) for _ in steps if (state := steps.state()) is not None]
    for state in states[3:6]:
        check_goes_on(resumed, A, state, whole)


def test_a_state_is_to_be_had_between_iterations_alone() -> None:
    """Not before the first, in the midst of one, or after the last; and it is the fit's own memory."""
    steps = NMF(8, seed=0, max_iter=5, tol=0).fit_steps(np.tile(A, (600, 1)))
    with_state, without = [], []
    for progress in steps:
        (without if steps.state() is None else with_state).append(progress.iteration)
    assert with_state == [1, 2, 3, 4]
    assert set(without) == {0, 1, 2, 3, 4, 5}


def test_fit_takes_a_state_too_and_calls_back_from_there_on() -> None:
    state = interrupted(NMF(8, seed=0), A, 5)
    assert state is not None
    whole, model, told = NMF(8, seed=0), NMF(8, seed=0), []
    whole.fit(A)
    D = model.fit(A, state=state, callback=told.append)[1]
    assert torch.equal(D, whole.get_dictionary())
    assert [progress.iteration for progress in told] == list(range(6, len(whole.loss_history_) + 1))


def without(name: str) -> object:
    return lambda state: {key: x for key, x in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (without("Z"), {}, "the state lacks 'Z'"),
        (without("energy"), {}, "the state lacks 'energy'"),
        (lambda state: state | {"Z": state["Z"][1:]}, {}, r"Z of the state is torch.float32 of shape \(149, 8\)"),
        (lambda state: state | {"ahead": state["D"].double()}, {}, "ahead of the state is torch.float64"),
        (lambda state: state | {"D": 1.0}, {}, "D of the state is no tensor"),
        (lambda state: state | {"iteration": 4}, {}, "losses of the state"),
        (lambda state: state | {"iteration": "five"}, {}, "iteration of the state is no finite number"),
        (lambda state: state | {"energy": float("nan")}, {}, "energy of the state is no finite number"),
        (lambda state: state | {"energy": state["losses"]}, {}, "energy of the state is no finite number"),
        (lambda state: state | {"extrapolation_x": None}, {}, "extrapolation_x of the state is no finite number"),
        (lambda state: state | {"losses": [1.0]}, {}, "losses of the state is no tensor"),
        (lambda state: list(state.items()), {}, "state is of list; pass one as"),
        (dict, {"max_iter": 5}, "after iteration 5; max_iter is 5"),
        (dict, {"D": A[:8]}, "along with Z or D"),
    ],
)
def test_what_is_no_state_of_this_fit_is_refused_by_the_call(change: object, options: dict, words: str) -> None:
    state = interrupted(NMF(8, seed=0), A, 5)
    with pytest.raises(errors.InvalidParameter, match=words):
        NMF(8).fit_steps(A, state=change(state), **options)  # type: ignore[operator]
    with pytest.raises(errors.InvalidParameter, match=words):  # of batches some is only known once they are read
        NMF(8).fit([A[:60], A[60:]], state=change(state), **options)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["Z", "D", "ahead"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_state_with_values_that_no_fit_comes_to_is_refused(name: str, value: float) -> None:
    state = interrupted(NMF(8, seed=0), A, 5)
    assert state is not None
    state[name][3, 2] = value  # type: ignore[index]
    with pytest.raises(errors.InvalidParameter, match="negative, NaN or infinite"):
        NMF(8).fit(A, state=state)


@pytest.mark.parametrize("other", [A + 1, np.zeros_like(A)])
def test_a_state_of_other_activations_is_refused(other: np.ndarray) -> None:
    state = interrupted(NMF(8, seed=0), A, 5)
    model = NMF(8)
    with pytest.raises(errors.InvalidParameter, match="other activations"):
        model.fit(other, state=state)
    assert not model.fitted
