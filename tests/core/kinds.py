"""Every kind of input that fit, encode and decode take, made from one array."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch.utils.data import DataLoader, TensorDataset

Array = np.ndarray

BATCH = 7  # rows; a bad value in row 9 is in batch 1, row 2


def _torch(x: Array) -> torch.Tensor:
    return torch.from_numpy(x.copy())


def _sparse_tensor(layout: torch.layout) -> Callable[[Array], torch.Tensor]:
    def make(x: Array) -> torch.Tensor:
        with warnings.catch_warnings(action="ignore"):  # "in beta state", once a process
            return _torch(x).to_sparse(layout=layout)

    return make


def batches(x: Array) -> list[Array]:
    return [x[start : start + BATCH] for start in range(0, len(x), BATCH)]


class ArrayLike:
    """What a data frame is to numpy; iterated over, it would give its columns' names."""

    def __init__(self, x: Array) -> None:
        self.x, self.shape = x, x.shape

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        return self.x

    def __iter__(self) -> object:
        return iter("abc")


DENSE: dict[str, Callable[[Array], object]] = {
    "tensor": _torch,
    "float64 tensor that requires grad": lambda x: _torch(x).double().requires_grad_(),
    "every second column": lambda x: _torch(np.repeat(x, 2, axis=1))[:, ::2],
    "transposed tensor": lambda x: _torch(x.T).T,
    "array": lambda x: x,
    "float64 array": lambda x: x.astype(np.float64),
    "big-endian array": lambda x: x.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "array-like": ArrayLike,
}
SPARSE: dict[str, Callable[[Array], object]] = {
    "csr_array": sparse.csr_array,
    "csr_matrix": sparse.csr_matrix,
    "csc_array": sparse.csc_array,
    "csc_matrix": sparse.csc_matrix,
    "coo_array": sparse.coo_array,
    "coo_matrix": sparse.coo_matrix,
    "float64 csr": lambda x: sparse.csr_array(x.astype(np.float64)),
    "coo tensor": _sparse_tensor(torch.sparse_coo),
    "csr tensor": _sparse_tensor(torch.sparse_csr),
    "csc tensor": _sparse_tensor(torch.sparse_csc),
}
BATCHES: dict[str, Callable[[Array], object]] = {
    "list of arrays": batches,
    "generator of tensors": lambda x: (_torch(part) for part in batches(x)),
    "generator of sparse": lambda x: (sparse.csr_matrix(part) for part in batches(x)),
    "tuples": lambda x: [(part, "label") for part in batches(x)],
    "DataLoader": lambda x: DataLoader(TensorDataset(_torch(x), torch.arange(len(x))), batch_size=BATCH),
    "DataLoader of lists": lambda x: DataLoader(list(_torch(x)), batch_size=BATCH),
}
KINDS = DENSE | SPARSE | BATCHES
