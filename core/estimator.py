"""scikit-learn's names for what the class does, so that it takes a step's place in its pipelines and searches."""

import inspect
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch

from core.checks import Array
from core.errors import InvalidArray, InvalidParameter
from core.inputs import Input

MOST_NAMES = 5  # of a message


class Estimator(ABC):
    """Parameters by name, and arrays out where arrays came in.

    `transform`, `fit_transform` and `inverse_transform` answer a torch tensor (dense or sparse) and batches with a
    tensor, anything else (numpy, SciPy, frames) with a numpy array; the first two with a frame where `set_output` has
    asked for that. A subclass keeps each parameter of its constructor in the attribute of that name, and refuses a
    wrong value there.
    """

    Z_: torch.Tensor
    feature_names_in_: Array  # there only after a fit of a frame whose columns all have a string for a name
    _output: str | None = None  # what `set_output` has asked for

    @property
    @abstractmethod
    def fitted(self) -> bool: ...

    @abstractmethod
    def fit(self, A: Input) -> object: ...

    @abstractmethod
    def encode(self, A: Input) -> torch.Tensor: ...

    @abstractmethod
    def decode(self, Z: Input) -> torch.Tensor: ...

    @abstractmethod
    def get_dictionary(self) -> torch.Tensor: ...

    @abstractmethod
    def set_params(self, **parameters: Any) -> Self: ...

    def fit_transform(self, A: Input, y: object = None) -> Any:
        """The codes (rows, nb_concepts) of a fit of A; `y` is ignored."""
        self.fit(A)
        return self._as_output(A, self.Z_)

    def transform(self, A: Input) -> Any:
        """`encode`: codes (rows, nb_concepts) of A (rows, n_features)."""
        return self._as_output(A, self.encode(A))

    def inverse_transform(self, Z: Input) -> torch.Tensor | Array:
        """`decode`: activations (rows, n_features) of codes Z (rows, nb_concepts)."""
        return _like(Z, self.decode(Z))

    @property
    def components_(self) -> Array:
        """D as a numpy array (nb_concepts, n_features), to be read; like the two below, an attribute only after a
        fit."""
        components: Array = self.get_dictionary().detach().cpu().numpy()
        components.flags.writeable = False  # what is prepared of D to encode with would not know of a change
        return components

    @property
    def n_components_(self) -> int:
        return len(self.get_dictionary())

    @property
    def n_features_in_(self) -> int:
        return self.get_dictionary().shape[1]

    def get_feature_names_out(self, input_features: object = None) -> Array:
        """Of the codes' columns, as scikit-learn has them: "nmf0", "nmf1", …; `input_features` is ignored."""
        name = type(self).__name__.lower()
        return np.array([f"{name}{j}" for j in range(len(self.get_dictionary()))], dtype=object)

    def set_output(self, *, transform: str | None = None) -> Self:
        """What `transform` and `fit_transform` answer, as with scikit-learn's own: frames of "pandas" or "polars",
        with a column for each concept, or "default"; None leaves it as it is.

        Raises:
            ValueError: scikit-learn knows no such frames.
            ImportError: their library is not there.
        """
        if transform is not None:
            _framed(np.zeros((1, 1)), None, np.array(["any"]), transform)  # refused now, not after a fit
            self._output = transform
        return self

    def _as_output(self, A: Input, codes: torch.Tensor) -> Any:
        sklearn = sys.modules.get("sklearn")  # where nobody has loaded it, nobody has told it anything
        wanted = self._output or (sklearn.get_config()["transform_output"] if sklearn else "default")
        if wanted == "default":
            return _like(A, codes)
        return _framed(codes.cpu().numpy(), A, self.get_feature_names_out(), wanted)

    def _keep_names(self, names: Array | None) -> None:
        if names is None:
            self.__dict__.pop("feature_names_in_", None)  # of another fit
        else:
            self.feature_names_in_ = names

    def _check_names(self, A: object) -> None:
        """Columns of other names, or in another order, would get other codes without a word; told as scikit-learn
        tells of them."""
        names, fitted = names_of(A), getattr(self, "feature_names_in_", None)
        if names is None and fitted is None:
            return
        name = type(self).__name__
        if fitted is None:
            warnings.warn(f"X has feature names, but {name} was fitted without feature names", stacklevel=3)
        elif names is None:
            told = f"X does not have valid feature names, but {name} was fitted with feature names"
            warnings.warn(told, stacklevel=3)
        elif not np.array_equal(names, fitted):
            raise InvalidArray(_mismatch(names, fitted))

    def extra_repr(self) -> str:
        """The parameters that are not the constructor's defaults, for `repr`."""
        told = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            value = str(value) if isinstance(value, torch.device) else value  # as it may be given
            if value != parameter.default:
                told.append(f"{name}={value!r}")
        return ", ".join(told)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What the constructor would take to make a model like this one, unfitted."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def _changed_params(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Those given, as the constructor keeps them once it has found nothing wrong with any."""
        known = self.get_params()
        for name in parameters:
            if name not in known:
                raise InvalidParameter(f"{name!r} is not a parameter; those are {', '.join(known)}")
        checked = type(self)(**known | parameters)
        return {name: getattr(checked, name) for name in parameters}

    def __sklearn_clone__(self) -> Self:
        return type(self)(**self.get_params()).set_output(transform=self._output)

    def __sklearn_is_fitted__(self) -> bool:
        return self.fitted

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags  # only scikit-learn asks for these

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float32"]),
            input_tags=InputTags(sparse=True, positive_only=True),
        )


def _like(x: Input, answer: torch.Tensor) -> torch.Tensor | Array:
    """Arrays and SciPy matrices are told by what numpy knows of them, batches by their lack of a shape."""
    if isinstance(x, torch.Tensor) or not hasattr(x, "shape"):
        return answer
    return answer.cpu().numpy()


def names_of(A: object) -> Array | None:
    """Names of the columns, where A is a frame and all of them are strings."""
    columns = getattr(A, "columns", None)
    names = list(columns) if isinstance(columns, Iterable) else []
    return np.array(names, dtype=object) if names and all(isinstance(name, str) for name in names) else None


def _mismatch(names: Array, fitted: Array) -> str:
    """scikit-learn's words for it."""
    told = ["The feature names should match those that were passed during fit."]
    unexpected, missing = sorted(set(names) - set(fitted)), sorted(set(fitted) - set(names))
    for title, some in (("unseen at fit time", unexpected), ("seen at fit time, yet now missing", missing)):
        if some:
            told += [f"Feature names {title}:", *(f"- {name}" for name in some[:MOST_NAMES])]
            told += ["- ..."] * (len(some) > MOST_NAMES)
    if not unexpected and not missing:
        told.append("Feature names must be in the same order as they were in fit.")
    return "\n".join(told) + "\n"


def _framed(codes: Array, A: object, names: Array, wanted: str) -> Any:
    """The codes as scikit-learn makes its own transformers' answers into frames: with the index of A's rows, too."""
    from sklearn.base import TransformerMixin  # only who asks for frames needs it

    class Framed(TransformerMixin):  # type: ignore[misc]
        def transform(self, _: object) -> Array:
            return codes

        def get_feature_names_out(self, _: object = None) -> Array:
            return names

    return Framed().set_output(transform=wanted).transform(A)
