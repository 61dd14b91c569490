"""overcomplete's NMF.

Its package imports vision models when it is loaded, and with them two dozen distributions of no use here (one of
them built against a particular build of torch). Only its `optimization` is loaded, beneath an empty package.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch

spec = find_spec("overcomplete")
if spec is None or spec.submodule_search_locations is None:
    raise ModuleNotFoundError("No module named 'overcomplete'")
package = ModuleType("overcomplete")
package.__path__ = list(spec.submodule_search_locations)
sys.modules["overcomplete"] = package

from overcomplete.optimization.nmf import NMF  # noqa: E402 (beneath the package made above)


def fit(A: np.ndarray, nb_concepts: int, *, max_iter: int = 500, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    Z, D = NMF(nb_concepts, **settings).fit(torch.from_numpy(A), max_iter=max_iter)
    return Z.detach().numpy(), D.detach().numpy()


def encoder(D: np.ndarray, *, max_iter: int = 300, **settings: Any) -> Callable[[np.ndarray], np.ndarray]:
    torch.manual_seed(0)
    model = NMF(len(D), **settings)
    model.D = torch.from_numpy(D)
    model._set_fitted()
    return lambda A: model.encode(torch.from_numpy(A), max_iter=max_iter).detach().numpy()
