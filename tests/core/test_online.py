"""Online fits: near full-batch ones, repeatable, gone on with from a state, and whole on whatever data."""

import itertools
from collections.abc import Generator, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.decomposition import MiniBatchNMF
from torch.utils.data import DataLoader, IterableDataset

from core import NMF, errors
from core.checks import Form, activations_form
from core.online import Memory, OnlineFit, learn_steps
from core.progress import run
from core.solvers.alternating import update_concepts
from core.solvers.hals import CONCEPTS
from core.state import State
from core.statistics import Statistics
from tests.core.fresh import run_each
from tests.core.problems import digits_split, planted
from tests.core.test_state import copied

A = planted(600, 40, 8)[0]


def loss(A: np.ndarray, model: NMF) -> float:
    error = A.astype(np.float64) - model.decode(model.encode(A)).double().numpy()
    return float(0.5 * (error**2).sum())


def mapped(tmp_path: object, x: np.ndarray) -> np.ndarray:
    path = f"{tmp_path}/A.npy"
    np.save(path, x)
    array: np.ndarray = np.load(path, mmap_mode="r")
    return array


# --- what comes of it -------------------------------------------------------------------------------------------


def test_within_three_per_cent_of_a_full_batch_fit_on_digits() -> None:
    data = np.vstack(digits_split())
    whole, online = NMF(64, seed=0), NMF(64, seed=0)
    whole.fit(data)
    online.fit_online(data, 3, batch_rows=1024)
    assert loss(data, online) <= 1.03 * loss(data, whole)


@pytest.mark.slow
def test_within_one_per_cent_after_one_epoch_where_batches_are_many() -> None:
    data = planted(20_000, 96, 24)[0]
    whole, online = NMF(24, seed=0), NMF(24, seed=0)
    whole.fit(data)
    online.fit_online(data, 1, batch_rows=512)
    assert loss(data, online) <= 1.01 * loss(data, whole)


def test_no_worse_than_scikit_learns_in_as_many_epochs() -> None:
    data = planted(3000, 40, 8)[0]
    theirs = MiniBatchNMF(8, batch_size=256, max_iter=3, tol=0, max_no_improvement=None, random_state=0).fit(data)
    ours, by_parts = NMF(8, seed=0, tol=0), NMF(8, seed=0)
    ours.fit_online(data, 3, batch_rows=256)
    sk = MiniBatchNMF(8, random_state=0)
    for _ in range(3):
        for start in range(0, len(data), 256):
            by_parts.partial_fit(data[start : start + 256])
            sk.partial_fit(data[start : start + 256])
    of = NMF(8)
    for components, model in ((theirs.components_, ours), (sk.components_, by_parts)):
        of.D = torch.from_numpy(components.astype(np.float32))
        assert loss(data, model) <= loss(data, of)


def test_one_batch_is_half_an_iteration_of_a_full_batch_fit() -> None:
    """Nothing is forgotten of nothing: statistics are of the exact codes of all rows, and D is updated by them."""
    rng = np.random.default_rng(0)
    D = torch.from_numpy(rng.random((8, 40), np.float32))
    memory = Memory.of(D)
    told = run(learn_steps(memory, torch.from_numpy(A)))
    of = NMF(8)
    of.D = Memory.of(D).D
    Z = of.encode(A)
    gram, cross = (Z.T @ Z).double(), (torch.from_numpy(A).T @ Z).double()
    concepts = of.D.T.contiguous()
    run(update_concepts(CONCEPTS, concepts, Statistics(gram, cross)))
    torch.testing.assert_close(memory.D, Memory.of(concepts.T).D, rtol=1e-3, atol=1e-5)
    assert told == pytest.approx(loss(A, of), rel=1e-4)
    assert memory.weight == memory.rows == len(A)


def test_losses_fall_from_epoch_to_epoch_and_tell_of_all_rows() -> None:
    model = NMF(8, seed=0, tol=0)
    model.fit_online(A, 6, batch_rows=128)
    batches = len(model.loss_history_) // 6
    ends = model.loss_history_[batches - 1 :: batches]
    assert all(after <= before * 1.001 for before, after in itertools.pairwise(ends))
    assert ends[-1] == pytest.approx(loss(A, model), rel=0.05)


def test_it_ends_once_an_epoch_brings_next_to_nothing() -> None:
    model = NMF(8, seed=0, tol=0.5)
    told = list(model.fit_online_steps(A, 6, batch_rows=128))
    assert told[-1].converged
    assert told[-1].iteration == 2 * told[-1].max_iter // 6 == len(model.loss_history_)


def test_the_same_seed_the_same_dictionary() -> None:
    one, same, other = (NMF(8, seed=seed).fit_online(A, 2, batch_rows=100) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_concepts_have_norm_one_and_there_are_no_codes_left() -> None:
    model = NMF(8, seed=0)
    model.fit(A)
    D = model.fit_online(A, 1)
    torch.testing.assert_close(D.norm(dim=1), torch.ones(8))
    assert D is model.get_dictionary()
    assert not hasattr(model, "Z_")


def test_a_dictionary_to_start_from_takes_the_place_of_the_start() -> None:
    first = NMF(8, seed=0)
    first.fit(A)
    model = NMF(8, seed=1)
    model.fit_online(A, 1, batch_rows=100, D=first.get_dictionary())
    assert loss(A, model) <= 1.02 * loss(A, first)


def test_dead_concepts_are_revived() -> None:
    D = np.ones((8, 40), np.float32)
    D[2:] = 0
    model = NMF(8, seed=0, tol=0)
    model.fit_online(A, 4, batch_rows=100, D=D)
    assert bool((model.get_dictionary().norm(dim=1) > 0).all())
    assert bool((model.encode(A).amax(dim=0) > 0).all())


# --- kinds of data ----------------------------------------------------------------------------------------------


class Slices:
    """What an h5py data set is: a shape, and slices of rows."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.most = x, x.shape, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.most = max(self.most, rows.stop - rows.start)
        return self.x[rows]


def test_a_matrix_of_any_kind_gives_the_same(tmp_path: object) -> None:
    data = np.where(A < 0.5, 0, A)
    slices = Slices(data)
    kinds = [data, torch.from_numpy(data), sparse.csr_array(data), data.astype(np.float64), mapped(tmp_path, data)]
    first, *others = (NMF(8, seed=0).fit_online(kind, 2, batch_rows=100) for kind in [*kinds, slices])
    assert all(torch.equal(first, other) for other in others)
    assert slices.most <= 100


def test_batches_are_taken_in_their_order_and_again_each_epoch() -> None:
    taken = []

    class Told:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[tuple[np.ndarray, str]]:
            for index in range(3):
                taken.append(index)
                yield A[200 * index : 200 * (index + 1)], "label"

    model = NMF(8, seed=0, tol=0)
    model.fit_online(Told(), 2)
    assert taken == [0, 1, 2] * 2
    assert model.loss_history_[-1] == pytest.approx(loss(A, model), rel=0.05)


class Stream(IterableDataset[np.ndarray]):
    """Of which a DataLoader has no length."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(A)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ((row for row in A), errors.WrongDtype, "partial_fit takes a stream"),
        (3, errors.WrongDtype, "iterable of batches that has a length"),
        (DataLoader(Stream(), batch_size=100), errors.WrongDtype, "iterable of batches that has a length"),
        (A[0, 0], errors.WrongShape, "dimensions"),
        ([], errors.WrongShape, "without a single batch"),
        ([A, A[:, 1:]], errors.WrongShape, "batch 1 have 39 columns; batch 0 has 40"),
        ([A, -A], errors.NegativeValues, "batch 1"),
        (np.where(np.arange(600)[:, None] == 333, np.nan, A), errors.NotFinite, "row 333, column 0"),
    ],
)
def test_bad_data_is_told_of_and_leaves_the_model(data: object, error: type, words: str) -> None:
    model = NMF(8, seed=0)
    model.fit(A, max_iter=2)
    before = model.get_dictionary()
    with pytest.raises(error, match=words):
        model.fit_online(data)  # type: ignore[arg-type]
    assert model.get_dictionary() is before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"state": {}}, "the state lacks 'D'"),
        ({"state": {}, "D": A[:8]}, "along with D"),
    ],
)
def test_bad_parameters(options: dict, words: str) -> None:
    with pytest.raises(errors.InvalidParameter, match=words):
        NMF(8).fit_online(A, **options)
    with pytest.raises(errors.InvalidParameter, match="'hals' alone"):
        NMF(8, solver="mu").fit_online(A)
    with pytest.raises(errors.WrongShape, match="D has 7 rows"):
        NMF(8).fit_online(A, D=A[:7])


@settings(max_examples=40)
@given(
    rows=st.integers(1, 50),
    d=st.integers(1, 12),
    k=st.integers(1, 16),
    exponent=st.sampled_from([0, -66, 66, 120]),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    batch_rows=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_any_shape_scale_and_rank(
    rows: int, d: int, k: int, exponent: int, density: float, batch_rows: int, seed: int
) -> None:
    """All zeros and more concepts than rows or features among them: finite, non-negative, at worst as zero codes."""
    rng = np.random.default_rng(seed)
    data = (rng.exponential(size=(rows, d)) * (rng.random((rows, d)) < density) * 2.0**exponent).astype(np.float32)
    model = NMF(k, seed=seed)
    D = model.fit_online(data, 3, batch_rows=batch_rows)
    assert bool(torch.isfinite(D).all() & (D >= 0).all())
    assert np.isfinite(model.loss_history_).all()
    half = 0.5 * (data.astype(np.float64) ** 2).sum()
    assert loss(data, model) <= half * (1 + 1e-5)
    for start in range(0, rows, batch_rows):
        model.partial_fit(data[start : start + batch_rows])
    assert bool(torch.isfinite(model.get_dictionary()).all())


def test_a_start_waits_for_the_first_rows_that_are_not_all_zero() -> None:
    model = NMF(8, seed=0)
    model.fit_online([np.zeros((50, 40), np.float32), *np.split(A, 6)], 3)
    assert loss(A, model) <= 1.2 * loss(A, NMF(8, seed=0).partial_fit(A))


@pytest.mark.parametrize("sizes", [(1,), (2, 3), (7, 1, 1, 1), (15,)])
def test_first_batches_of_few_rows_do_not_settle_where_it_ends(sizes: tuple[int, ...]) -> None:
    parts = np.split(A, np.cumsum([*sizes, *[100] * 5]))
    whole = NMF(8, seed=0)
    whole.fit_online(A, 3, batch_rows=100)
    full = loss(A, whole)
    model = NMF(8, seed=0)
    model.fit_online(parts, 3)
    assert loss(A, model) <= 1.02 * full
    learning = NMF(8, seed=0)
    for part in parts:
        again = NMF(8, seed=0)
        again.load_state_dict(learning.state_dict())
        learning.partial_fit(part)
        assert torch.equal(again.partial_fit(part).get_dictionary(), learning.get_dictionary())
    assert loss(A, learning) <= 1.05 * full
    assert learning.online_first is None


def test_single_rows_cost_a_start_only_each_time_that_they_double(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    start = OnlineFit._start

    def counted(self: OnlineFit, rows: np.ndarray, form: Form) -> Generator[None, None, torch.Tensor]:
        starts.append(len(rows))
        return start(self, rows, form)

    monkeypatch.setattr(OnlineFit, "_start", counted)
    model = NMF(8, seed=0)
    for row in A[:40]:
        model.partial_fit(row)
    assert starts == [1, 2, 4, 8, 16]
    assert len(model.loss_history_) == 40


def test_small_losses_are_told_as_they_are() -> None:
    """By sums of products in float32 they would be noise, or zero."""
    exact = planted(1000, 40, 8, noise=0.0)[0]
    model = NMF(8, seed=0, tol=0)
    model.fit_online(exact, 3, batch_rows=200)
    half = 0.5 * (exact.astype(np.float64) ** 2).sum()
    told, true = model.loss_history_[-1], loss(exact, model)
    assert true < 1e-9 * half
    assert true / 3 < told < max(3 * true, 1e-13 * half)


# --- going on ---------------------------------------------------------------------------------------------------


def interrupted(data: object, iteration: int, **options: object) -> State:
    steps = NMF(8, seed=0, tol=0).fit_online_steps(data, 3, **options)  # type: ignore[arg-type]
    for progress in steps:
        if progress.iteration == iteration and (state := steps.state()) is not None:
            return copied(state)
    raise AssertionError("it ended before")


@pytest.mark.parametrize("iteration", [1, 5, 7, 17])
@pytest.mark.parametrize("data", [A, np.split(A, 6)], ids=["matrix", "batches"])
def test_a_fit_goes_on_from_a_state_as_if_nothing_had_come_between(data: object, iteration: int) -> None:
    whole, resumed = NMF(8, seed=0, tol=0), NMF(8, seed=0, tol=0)
    whole.fit_online(data, 3, batch_rows=100)  # type: ignore[arg-type]
    state = interrupted(data, iteration, batch_rows=100)
    told = list(resumed.fit_online_steps(data, 3, batch_rows=100, state=state))  # type: ignore[arg-type]
    assert told[0].iteration == iteration
    assert resumed.loss_history_ == whole.loss_history_
    torch.testing.assert_close(resumed.get_dictionary(), whole.get_dictionary(), rtol=1e-5, atol=1e-6)


def test_of_rows_that_are_all_zero_there_is_no_state_yet() -> None:
    """Its D is begun with the first others, by a generator that a state does not hold where there is no seed."""
    steps = NMF(2, seed=None, tol=0).fit_online_steps([np.zeros_like(A[:50]), *np.split(A, 6)], 1)
    iterations = {progress.iteration for progress in steps if steps.state() is not None}
    assert iterations == {2, 3, 4, 5, 6}


def test_a_state_of_another_fit_is_refused() -> None:
    state = interrupted(A, 3, batch_rows=100)
    for model, data, words in (
        (NMF(7), A, r"D of the state is torch.float32 of shape \(8, 40\)"),
        (NMF(8), A[:, 1:], r"\(8, 39\)"),
        (NMF(8), A[:20], "after batch 3; 3 epochs of this A have 3 batches"),
    ):
        with pytest.raises(errors.InvalidParameter, match=words):
            model.fit_online(data, 3, state=state)
    state["cross"][0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(errors.InvalidParameter, match="negative, NaN or infinite"):
        NMF(8).fit_online(A, 3, batch_rows=100, state=state)


# --- partial_fit ------------------------------------------------------------------------------------------------


def test_partial_fit_learns_more_with_each_call() -> None:
    model, losses = NMF(8, seed=0), []
    for count, part in enumerate(np.split(A, 6), start=1):
        assert model.partial_fit(part) is model
        assert len(model.loss_history_) == count
        losses.append(loss(A, model))
    assert losses[-1] < losses[0]


def test_partial_fit_goes_on_after_fit_online_after_a_state_dict_and_after_pickling() -> None:
    whole, kept = NMF(8, seed=0), NMF(8, seed=0)
    whole.fit_online(A[:400], 2)
    kept.load_state_dict(whole.state_dict())
    for model in (whole, kept):
        model.partial_fit(A[400:])
    assert torch.equal(whole.get_dictionary(), kept.get_dictionary())
    kept.fit(A, max_iter=2)
    assert list(kept.state_dict()) == ["D"]
    whole.load_state_dict(kept.state_dict())
    assert list(whole.state_dict()) == ["D"]
    assert loss(A, whole.partial_fit(A)) <= loss(A, kept) * 1.001  # from that D on
    kept.load_state_dict(whole.state_dict())
    assert not hasattr(kept, "Z_")  # which were codes of another D


def test_one_row_is_a_matrix_of_one_whatever_it_is_given_as() -> None:
    of_array, of_tensor = (NMF(2, seed=0).fit_online(x) for x in (A[0], torch.from_numpy(A[0])))
    assert torch.equal(of_array, of_tensor)


def test_partial_fit_refuses_another_width_and_keeps_what_it_had() -> None:
    model = NMF(8, seed=0).partial_fit(A)
    before = model.get_dictionary().clone()
    for bad in (A[:, 1:], -A):
        with pytest.raises(errors.InvalidArray):
            model.partial_fit(bad)
    assert torch.equal(model.get_dictionary(), before)
    assert len(model.loss_history_) == 1


@pytest.mark.parametrize("k", [1, 3])
def test_partial_fit_leaves_alone_what_it_gave_out_and_learns_nothing_of_a_refused_call(k: int) -> None:
    model = NMF(k, seed=0).partial_fit(A)
    given_out = model.get_dictionary()
    before = given_out.clone()
    with pytest.raises(errors.InvalidArray):
        model.partial_fit([A**3, np.full_like(A, np.nan)])
    assert torch.equal(model.get_dictionary(), before)
    model.partial_fit(A**2)
    assert torch.equal(given_out, before)
    assert not torch.equal(model.get_dictionary(), before)


def test_partial_fit_starts_afresh_after_a_fit_of_zeros() -> None:
    model = NMF(8, seed=0)
    model.fit(np.zeros_like(A))
    model.partial_fit(A)
    assert torch.equal(model.get_dictionary(), NMF(8, seed=0).partial_fit(A).get_dictionary())


def test_learning_comes_in_slices() -> None:
    data = np.random.default_rng(0).random((4096, 512), np.float32)
    fit = NMF(128, seed=0)._online(1, torch.from_numpy(data[:128]), None)
    assert sum(1 for _ in fit.learn(data, activations_form())) >= 8


FLAT = """
import numpy as np
from core import NMF
from tests.memory import held_bytes

class Made:
    shape = {rows}, 768
    def __getitem__(self, rows):
        return np.random.default_rng(rows.start).random((rows.stop - rows.start, 768), np.float32)

NMF(16, seed=0).fit_online(Made(), 1)
print(held_bytes("VmHWM") / 2**20)
"""


@pytest.mark.slow
def test_memory_is_flat_in_the_rows() -> None:
    """150 MB more of activations take nothing. Large pieces of memory go back at once, which leaves no noise."""
    at_once = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    few, many = map(float, run_each(*(FLAT.format(rows=rows) for rows in (12_000, 62_000)), variables=at_once))
    assert many - few < 10


class Short:
    """Says that it has more rows than its slices give."""

    shape = (98, 12)

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.rows[rows]


class Lists(Short):
    def __getitem__(self, rows: slice) -> list:  # type: ignore[override,type-arg]
        return self.rows[rows].tolist()  # type: ignore[no-any-return]


def test_rows_that_do_not_come_are_no_rows() -> None:
    A = np.random.default_rng(0).random((98, 12))
    with pytest.raises(errors.WrongShape, match=r"rows .* came as .*, not "):
        NMF(3, seed=0).fit_online(Short(A[:-1]), 1, batch_rows=98)
    with pytest.raises(errors.WrongShape, match=r"rows .* to .* came as \(98, 12\)"):
        NMF(3, seed=0).fit_online(
            type("Long", (Short,), {"__getitem__": lambda self, rows: self.rows})(A), 1, batch_rows=8
        )
    with pytest.raises(errors.WrongDtype, match="slices of activations are no matrices"):
        NMF(3, seed=0).fit_online(Lists(A), 1)


class Frame(Short):
    columns = tuple(f"unit {column}" for column in range(12))


def test_names_of_columns_are_kept() -> None:
    model = NMF(3, seed=0)
    model.fit_online(Frame(np.random.default_rng(0).random((98, 12))), 1)
    assert list(model.feature_names_in_) == list(Frame.columns)
