"""scikit-learn's names, and scikit-learn's own machinery around the class."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import NMF as Theirs  # noqa: N811 - a class, whatever its letters
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils._set_output import ADAPTERS_MANAGER

from core import NMF, errors
from tests.core.problems import planted

A = planted(80, 20, 5)[0]
y = (A[:, 0] > np.median(A[:, 0])).astype(int)


def test_components_are_to_be_read() -> None:
    model = NMF(4, seed=0)
    model.fit(A)
    with pytest.raises(ValueError, match="read-only"):
        model.components_[:] *= 2
    model.D.mul_(2)  # as whoever knows torch does it
    torch.testing.assert_close(model.decode(torch.eye(4)), model.get_dictionary())


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), 3])
def test_a_seed_is_any_whole_number(seed: int) -> None:
    model = NMF(4, seed=seed)
    assert torch.equal(model.fit(A)[1], NMF(4, seed=3).fit(A)[1])
    search = GridSearchCV(make_pipeline(NMF(2, max_iter=3), LogisticRegression()), {"nmf__seed": np.arange(2)}, cv=2)
    search.fit(A, y)


@pytest.mark.parametrize("seed", [1.5, "a", True, 2**64, -1])
def test_what_is_no_seed_is_refused_at_once(seed: object) -> None:
    with pytest.raises(errors.InvalidParameter, match="seed is"):
        NMF(4, seed=seed)  # type: ignore[arg-type]


def test_fit_as_people_know_it() -> None:
    model = NMF(4, seed=0, tol=0)
    Z, D = model.fit(A, 3)
    assert isinstance(Z, torch.Tensor)
    assert (Z.shape, D.shape) == ((80, 4), (4, 20))
    assert len(model.loss_history_) == 3
    model.fit(A, max_iter=2)
    assert len(model.loss_history_) == 2


@pytest.mark.parametrize(
    "labels", [y, y.tolist(), [[int(label)] * (1 + label % 2) for label in y], torch.from_numpy(y), None]
)
def test_labels_are_ignored(labels: object) -> None:
    expected = NMF(4, seed=0, max_iter=3).fit(A)[1]
    assert torch.equal(NMF(4, seed=0, max_iter=3).fit(A, labels)[1], expected)  # type: ignore[arg-type]
    assert torch.equal(NMF(4, seed=0, max_iter=3).fit(A, y=labels)[1], expected)
    model = NMF(4, seed=0, max_iter=3)
    np.testing.assert_array_equal(model.fit_transform(A, labels), model.Z_.numpy())


def test_names() -> None:
    model = NMF(4, seed=0, max_iter=5)
    codes = model.fit_transform(A)
    assert isinstance(codes, np.ndarray)
    assert (model.n_components_, model.n_features_in_) == (4, 20)
    np.testing.assert_array_equal(model.components_, model.get_dictionary().numpy())
    np.testing.assert_array_equal(model.transform(A), model.encode(A).numpy())
    np.testing.assert_allclose(model.inverse_transform(codes), codes @ model.components_, rtol=1e-5, atol=1e-5)


def test_before_a_fit() -> None:
    model = NMF(4)
    for name in ("components_", "n_components_", "n_features_in_"):
        assert not hasattr(model, name)
    for call in (model.transform, model.inverse_transform):
        with pytest.raises(errors.NotFitted):
            call(A)


def test_parameters_are_those_of_the_constructor() -> None:
    given = {"solver": "mu", "tol": 1e-3, "verbose": False, "init": "random", "seed": 3, "max_iter": 7}
    params = NMF(4, **given).get_params()
    assert list(params) == list(inspect.signature(NMF).parameters)
    assert params == {"nb_concepts": 4, "device": torch.device("cpu")} | given


def test_set_params() -> None:
    model = NMF(4, seed=0, max_iter=5)
    model.fit(A)
    assert model.set_params(nb_concepts=6, tol=0.01, device="cpu") is model
    assert (model.nb_concepts, model.tol) == (6, 0.01)
    assert model.encode(A).shape == (80, 4)  # with what was learned, until the next fit
    assert model.decode(model.encode(A)).shape == (80, 20)
    assert model.fit(A)[1].shape == (6, 20)


@pytest.mark.parametrize(
    ("wrong", "words"), [({"tol": 2}, "tol"), ({"maxiter": 3}, "'maxiter' is not a parameter; those are nb_concepts")]
)
def test_wrong_parameters_change_nothing(wrong: dict, words: str) -> None:
    model = NMF(4)
    before = model.get_params()
    with pytest.raises(errors.InvalidParameter, match=words):
        model.set_params(nb_concepts=9, **wrong)
    assert model.get_params() == before


def test_clone_is_unfitted_and_alike() -> None:
    model = NMF(4, seed=0, solver="pgd", max_iter=3)
    model.fit(A)
    copy = clone(model)
    assert copy is not model
    assert not copy.fitted
    assert copy.get_params() == model.get_params()
    assert torch.equal(copy.fit(A)[1], model.get_dictionary())


@pytest.mark.parametrize("labels", [None, y])
def test_at_the_end_of_a_pipeline(labels: object) -> None:
    pipeline = make_pipeline(MaxAbsScaler(), NMF(4, seed=0, max_iter=10))
    with pytest.raises(NotFittedError):
        pipeline.transform(A)
    assert pipeline.fit(A, labels) is pipeline
    codes = pipeline.transform(A)
    assert isinstance(codes, np.ndarray)
    assert codes.shape == (80, 4)
    assert pipeline.inverse_transform(codes).shape == (80, 20)
    assert pipeline.fit_transform(A, labels).shape == (80, 4)
    assert clone(pipeline).get_params()["nmf__max_iter"] == 10


def test_in_the_middle_of_a_pipeline() -> None:
    pipeline = Pipeline([("nmf", NMF(4, seed=0, max_iter=10)), ("classifier", LogisticRegression())])
    assert pipeline.fit(A, y).score(A, y) > 0.6
    assert pipeline.n_features_in_ == 20
    assert pipeline["nmf"].components_.shape == (4, 20)


def test_a_pipeline_names_the_columns_of_the_codes() -> None:
    pipeline = make_pipeline(MaxAbsScaler(), NMF(3, seed=0, max_iter=3)).fit(A)
    assert list(pipeline.get_feature_names_out()) == ["nmf0", "nmf1", "nmf2"]
    with pytest.raises(errors.NotFitted):
        NMF(3).get_feature_names_out()


def test_a_grid_search_over_concepts() -> None:
    pipeline = make_pipeline(NMF(2, seed=0, max_iter=5), LogisticRegression())
    search = GridSearchCV(pipeline, {"nmf__nb_concepts": [1, 6], "nmf__init": ["random", None]}, cv=2)
    search.fit(A, y)
    assert search.best_params_["nmf__nb_concepts"] == 6
    assert search.predict(A).shape == (80,)
    assert len(search.best_estimator_["nmf"].components_) == 6


# -- frames -------------------------------------------------------------------------------------------------


class Frame:
    """Rows with names for their columns, as pandas and polars have them, neither of which is needed here."""

    def __init__(self, values: np.ndarray, columns: Sequence[object]) -> None:
        self.values, self.columns, self.shape, self.ndim = values, columns, values.shape, values.ndim

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype)

    def of(self, *columns: str) -> "Frame":
        return Frame(self.values[:, [self.columns.index(name) for name in columns]], columns)


class Frames:
    """What scikit-learn asks of a library of frames."""

    container_lib = "frames"

    def create_container(self, X_output: object, _: object, columns: Callable[[], Sequence[str]]) -> Frame:
        return Frame(np.asarray(X_output), list(columns()))

    def is_supported_container(self, X: object) -> bool:
        return isinstance(X, Frame)

    def rename_columns(self, X: Frame, columns: Sequence[str]) -> Frame:
        return Frame(X.values, columns)

    def hstack(self, Xs: Sequence[Frame]) -> Frame:
        return Frame(np.hstack([X.values for X in Xs]), [name for X in Xs for name in X.columns])


@pytest.fixture
def frames() -> Iterator[str]:
    """The name by which scikit-learn knows them."""
    ADAPTERS_MANAGER.register(Frames())
    yield Frames.container_lib
    del ADAPTERS_MANAGER.adapters[Frames.container_lib]


LETTERS = "abcdefghijklmnopqrst"
NAMED = Frame(A, list(LETTERS))
SWAPPED = NAMED.of("b", "a", *LETTERS[2:])


def test_a_pipeline_answers_frames(frames: str) -> None:
    pipeline = make_pipeline(MaxAbsScaler(), NMF(3, seed=0, max_iter=3)).set_output(transform=frames)
    for told in (pipeline.fit_transform(A), pipeline.transform(A), clone(pipeline).fit(A).transform(A)):
        assert isinstance(told, Frame)
        assert list(told.columns) == ["nmf0", "nmf1", "nmf2"]
    codes = pipeline["nmf"].encode(pipeline["maxabsscaler"].transform(A))
    np.testing.assert_array_equal(pipeline.transform(A).values, codes.numpy())
    assert isinstance(pipeline.set_output(transform="default").fit_transform(A), np.ndarray)


def test_a_column_transformer_answers_frames(frames: str) -> None:
    parts = [("some", NMF(2, seed=0, max_iter=3), [0, 1, 2]), ("rest", NMF(1, seed=0, max_iter=3), [3, 4])]
    told = ColumnTransformer(parts).set_output(transform=frames).fit_transform(A)
    assert list(told.columns) == ["some__nmf0", "some__nmf1", "rest__nmf0"]


def test_frames_wherever_scikit_learn_is_told_so(frames: str) -> None:
    model = NMF(2, seed=0, max_iter=3)
    with sklearn.config_context(transform_output=frames):
        assert isinstance(model.fit_transform(A), Frame)
        assert isinstance(model.transform(torch.from_numpy(A)), Frame)
        assert isinstance(NMF(2).set_output(transform="default").fit_transform(A), np.ndarray)
    assert isinstance(model.transform(A), np.ndarray)
    assert isinstance(model.transform(torch.from_numpy(A)), torch.Tensor)


def test_what_is_no_output_is_refused_at_once(frames: str) -> None:
    model = NMF(2, seed=0, max_iter=3).set_output(transform=frames)
    with pytest.raises(ValueError, match="got nonsense"):
        model.set_output(transform="nonsense")
    assert model.set_output() is model
    assert isinstance(model.fit_transform(A), Frame)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_the_libraries(library: str) -> None:
    there = pytest.importorskip(library)
    columns = {"columns" if library == "pandas" else "schema": list(LETTERS)}
    frame = there.DataFrame(A, **columns)
    pipeline = make_pipeline(MaxAbsScaler(), NMF(3, seed=0, max_iter=3)).set_output(transform=library)
    told = pipeline.fit_transform(frame)
    assert isinstance(told, there.DataFrame)
    assert list(told.columns) == ["nmf0", "nmf1", "nmf2"]
    assert list(pipeline["nmf"].feature_names_in_) == list(LETTERS)
    with pytest.raises(errors.InvalidArray, match="same order"):
        pipeline["nmf"].transform(frame[list(SWAPPED.columns)])


def test_the_index_of_the_rows_is_kept() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(A, columns=list(LETTERS), index=range(100, 180))
    told = NMF(3, seed=0, max_iter=3).set_output(transform="pandas").fit_transform(frame)
    assert list(told.index) == list(range(100, 180))


def test_columns_are_known_by_their_names() -> None:
    model = NMF(3, seed=0, max_iter=3)
    codes = model.fit_transform(NAMED)
    assert model.feature_names_in_.tolist() == list(LETTERS)
    np.testing.assert_array_equal(model.transform(NAMED), model.transform(Frame(A, LETTERS)))
    assert isinstance(codes, np.ndarray)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - made here
        for call in (same.transform, same.encode, same.partial_fit):
            with pytest.raises(errors.InvalidArray, match="Feature names must be in the same order as they were in"):
                call(SWAPPED)
    assert not hasattr(clone(model), "feature_names_in_")


def test_other_columns_are_told_in_scikit_learns_words(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = NMF(2, seed=0, max_iter=3), Theirs(2)
    ours.fit(NAMED)
    theirs.fit(A)
    theirs.feature_names_in_ = ours.feature_names_in_
    monkeypatch.setattr("sklearn.utils.validation._get_feature_names", lambda X: np.array(X.columns, dtype=object))
    others = [SWAPPED, NAMED.of(*LETTERS[3:]), Frame(A, [*LETTERS[:-1], "z"]), Frame(A, [f"x{i}" for i in range(20)])]
    for other in others:
        with pytest.raises(ValueError, match="should match") as expected:
            theirs.transform(other)
        with pytest.raises(errors.InvalidArray) as told:
            ours.transform(other)
        assert str(told.value) == str(expected.value)


def test_names_on_one_side_alone_are_told_of() -> None:
    model = NMF(2, seed=0, max_iter=3)
    model.fit(NAMED)
    with pytest.warns(
        UserWarning, match="X does not have valid feature names, but NMF was fitted with feature names"
    ):
        model.transform(A)
    model.fit(A)
    with pytest.warns(UserWarning, match="X has feature names, but NMF was fitted without feature names"):
        model.transform(NAMED)


@pytest.mark.parametrize("columns", [range(20), [*LETTERS[:-1], 3], 20])
def test_names_that_are_no_strings_are_none(columns: Sequence[object]) -> None:
    model = NMF(2, seed=0, max_iter=3)
    model.fit(Frame(A, columns))
    assert not hasattr(model, "feature_names_in_")
    with warnings.catch_warnings(action="error"):
        model.transform(A)


def test_names_are_those_of_the_dictionary() -> None:
    """Of a fit that has ended; gone with another fit, or with a dictionary from elsewhere."""
    model = NMF(2, seed=0, max_iter=3)
    steps = model.fit_steps(NAMED)
    assert not hasattr(model, "feature_names_in_")
    for _ in steps:
        pass
    assert hasattr(model, "feature_names_in_")
    model.load_state_dict(model.state_dict())
    assert not hasattr(model, "feature_names_in_")
    for fit in (model.fit, model.fit_online):
        model.fit(NAMED)
        fit(A)
        assert not hasattr(model, "feature_names_in_")
    batches = NMF(2, seed=0).partial_fit(NAMED)
    assert batches.partial_fit(NAMED).feature_names_in_.tolist() == list(LETTERS)


# -- what is seen of it -------------------------------------------------------------------------------------


def test_a_model_tells_its_parameters() -> None:
    assert repr(NMF(4)) == "NMF(nb_concepts=4)"
    assert repr(NMF(4, device=torch.device("cpu"), max_iter=500)) == "NMF(nb_concepts=4)"
    told = repr(NMF(4, device="meta", tol=0, init="random", seed=3))
    assert told == "NMF(nb_concepts=4, device='meta', tol=0, init='random', seed=3)"
    assert "NMF(nb_concepts=4)" in repr(make_pipeline(MaxAbsScaler(), NMF(4)))
