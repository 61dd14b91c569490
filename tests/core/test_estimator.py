"""scikit-learn's names, and scikit-learn's own machinery around the class."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler

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


@pytest.mark.parametrize("labels", [y, y.tolist(), torch.from_numpy(y), None])
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
