"""scikit-learn's names for what the class does, so that it takes a step's place in its pipelines and searches."""

import inspect
from abc import abstractmethod
from typing import Any, Self

import numpy as np
import torch

from core.errors import InvalidParameter
from core.inputs import Input

Array = np.ndarray[Any, np.dtype[Any]]


class Estimator:
    """Parameters by name, and arrays out where arrays came in.

    `transform`, `fit_transform` and `inverse_transform` answer a torch tensor (dense or sparse) and batches with a
    tensor, anything else (numpy, SciPy) with a numpy array. A subclass keeps each parameter of its constructor in
    the attribute of that name, and refuses a wrong value there.
    """

    Z_: torch.Tensor

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

    def fit_transform(self, A: Input, y: object = None) -> torch.Tensor | Array:
        """The codes (rows, nb_concepts) of a fit of A; `y` is ignored."""
        self.fit(A)
        return _like(A, self.Z_)

    def transform(self, A: Input) -> torch.Tensor | Array:
        """`encode`: codes (rows, nb_concepts) of A (rows, n_features)."""
        return _like(A, self.encode(A))

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
        return type(self)(**self.get_params())

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
