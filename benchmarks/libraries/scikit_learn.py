"""scikit-learn's NMF; its encode is `transform`."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

warnings.simplefilter("ignore", ConvergenceWarning)


def fit(A: np.ndarray, nb_concepts: int, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    model = NMF(nb_concepts, random_state=0, **settings)
    return model.fit_transform(A), model.components_


def encoder(D: np.ndarray, **settings: Any) -> Callable[[np.ndarray], np.ndarray]:
    model = NMF(len(D), **settings)
    model.components_, model.n_features_in_ = D, D.shape[1]  # as after a fit
    return model.transform  # type: ignore[no-any-return]
