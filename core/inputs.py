"""What people pass in, as one contiguous float32 tensor on the device that computes."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from core.checks import check_activations, check_codes
from core.chunks import slices
from core.errors import InvalidArray, WrongDtype

SLICE_VALUES = 1 << 22  # read in about 5 ms

# what `fit`, `encode` and `decode` take
Matrix = torch.Tensor | np.ndarray[Any, Any]


def activations(A: Matrix, device: torch.device, *, n_features: int | None = None) -> torch.Tensor:
    """(rows, n_features), checked as `core.checks.check_activations` does; shares memory with A where it can."""
    return _tensor(check_activations(as_array(A, "activations"), n_features=n_features)).to(device)


def activations_steps(array: np.ndarray[Any, Any], device: torch.device) -> Generator[None, None, torch.Tensor]:
    """`activations` of an array of the right shape, in bounded slices."""
    array = array[None] if array.ndim == 1 else array
    in_place = array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned
    checked = array if in_place else np.empty(array.shape, np.float32)
    for rows in slices(len(array), max(1, SLICE_VALUES // array.shape[1])):
        try:
            block = check_activations(array[rows])
        except InvalidArray:
            # of the whole: says how many values are wrong and where the first is (or, where only this slice is
            # too small for float32, that nothing is)
            return _tensor(check_activations(array)).to(device)
        if not in_place:
            checked[rows] = block
        yield
    return _tensor(checked).to(device)


def codes(Z: Matrix, device: torch.device, *, nb_concepts: int) -> torch.Tensor:
    """(rows, nb_concepts), checked as `core.checks.check_codes` does; shares memory with Z where it can."""
    return _tensor(check_codes(as_array(Z, "codes"), nb_concepts=nb_concepts)).to(device)


def as_array(x: Matrix, name: str) -> np.ndarray[Any, Any]:
    """A tensor on any device, of any layout, that may require grad, as an array; an array as it is.

    Raises:
        WrongDtype: anything else.
    """
    if isinstance(x, np.ndarray):
        return x
    if not isinstance(x, torch.Tensor):
        raise WrongDtype(
            f"{name} are a {type(x).__module__}.{type(x).__qualname__}; pass a torch.Tensor or a numpy array"
        )
    if x.layout != torch.strided:
        raise WrongDtype(f"{name} are a {x.layout} tensor; pass a dense one (x.to_dense())")
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:  # which numpy does not have
        x = x.float()
    return x.resolve_conj().resolve_neg().numpy()


def _tensor(x: np.ndarray[Any, Any]) -> torch.Tensor:
    """On the same memory; unlike from_numpy this takes read-only arrays (which are only ever read) quietly."""
    return torch.utils.dlpack.from_dlpack(x)
