"""Rows of a sparse A: checked as dense ones are, and multiplied without being made dense."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from core.checks import Form, check_dtype, check_scale, check_values, converted
from core.errors import WrongDtype, WrongShape
from core.kernels.precision import Precision, product
from core.scaling import times_power_of_two

if TYPE_CHECKING:
    from scipy import sparse

    SparseMatrix: TypeAlias = sparse.spmatrix | sparse.sparray
else:
    SparseMatrix = Any  # SciPy's takes an eighth of the time that a process needs to start: only who has one pays


def is_sparse(x: object) -> bool:
    """Whether it is SciPy's; whoever has made one has imported SciPy."""
    scipys = sys.modules.get("scipy.sparse")
    return scipys is not None and bool(scipys.issparse(x))


def as_scipy(x: torch.Tensor, name: str) -> SparseMatrix:
    """A torch tensor of any sparse layout, as SciPy holds it.

    Raises:
        WrongDtype: a hybrid one, whose values are themselves dense rows.
    """
    x = x.detach().cpu()
    x = (x if x.layout == torch.sparse_coo else x.to_sparse()).coalesce()
    if x.dense_dim():
        raise WrongDtype(f"{name} are a sparse tensor with {x.dense_dim()} dense dimensions; pass x.to_dense()")
    values = x.values()
    if values.dtype in (torch.bfloat16, torch.float16):  # which SciPy does not have
        values = values.float()
    from scipy import sparse

    return sparse.coo_array((values.numpy(), tuple(x.indices().numpy())), shape=tuple(x.shape))


def check_sparse(x: SparseMatrix, form: Form) -> SparseMatrix:
    """`x` with two dimensions, once its dtype, shape and indices are right; its values are not looked at."""
    check_dtype(x.dtype, name=form.name)
    if hasattr(x, "check_format"):  # SciPy makes one with indices beyond its shape, and reads and writes there
        try:
            x.check_format(full_check=True)
        except ValueError as error:
            raise WrongShape(f"{form.name} are no sound sparse matrix: {error}") from None
    if x.ndim == 1:
        x = x.reshape(1, -1)
    form.check(x.shape)
    return x


def as_csr(x: SparseMatrix, *, name: str) -> "sparse.csr_array":
    """`x`, of the right form, as float32 in CSR with its values checked; shares memory with `x` where it can."""
    from scipy import sparse

    csr = sparse.csr_array(x)
    if not csr.has_canonical_format:
        csr = csr.copy()  # sum_duplicates works in place
        csr.sum_duplicates()

    def place(first: tuple[int, int]) -> tuple[int, int]:
        return int(np.searchsorted(csr.indptr, first[0], side="right")) - 1, int(csr.indices[first[0]])

    values = csr.data[:, None]
    check_scale(check_values(values, name=name, place=place), name=name)
    return sparse.csr_array((converted(values)[:, 0], csr.indices, csr.indptr), shape=csr.shape)


class SparseRows:
    """Rows of A (n, d), float32, held as SciPy's CSR (or, transposed, as its CSC).

    Stands in for the dense tensor where a fit reads A: `rows @ X` and `rows.T @ X` cost a multiply-add for each
    non-zero value and column of X, and whatever else torch is asked for is done on `to_dense()`, which is meant for
    a chunk of rows. SciPy's products run on one thread, which at a few per cent density is many times faster than
    dense rows on all. Off the CPU a chunk is made dense there for products, too.
    """

    dtype = torch.float32

    def __init__(self, matrix: "sparse.csr_array | sparse.csc_array", device: torch.device) -> None:
        self.matrix = matrix
        self.device = device
        self.shape = torch.Size(matrix.shape)

    @property
    def T(self) -> "SparseRows":  # noqa: N802 - as a tensor's
        return SparseRows(self.matrix.T, self.device)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | torch.Tensor) -> "SparseRows":
        return SparseRows(self.matrix[rows if isinstance(rows, slice) else rows.cpu().numpy()], self.device)

    def __matmul__(self, X: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cpu":
            return product(self.to_dense(), X, Precision.FLOAT32)
        return torch.from_numpy(self.matrix @ X.numpy())

    @property
    def is_mostly_zero_columns(self) -> bool:
        """Of a chunk of very wide rows, on the CPU: then `add_cross_product` and `squared_error` cost least."""
        return self.device.type == "cpu" and 2 * self.matrix.nnz < self.shape[1]

    def add_cross_product(self, Z: torch.Tensor, to: torch.Tensor) -> None:
        """to += selfᵀ·Z, for Z (rows, k) float32 and `to` (columns, k) float64; columns of zeros are not read."""
        columns, places = np.unique(self.matrix.indices, return_inverse=True)
        narrow = type(self.matrix)((self.matrix.data, places, self.matrix.indptr), (len(self), len(columns)))
        to.numpy()[columns] += narrow.T @ Z.numpy()

    def squared_error(self, Z: torch.Tensor, concepts: torch.Tensor, gram: torch.Tensor) -> float:
        """‖self − Z·conceptsᵀ‖²_F for Z (rows, k) and concepts (columns, k), float32, and their gram (k, k), float64.

        In float64, from the values that are stored and what the product is at their places, without any others.
        """
        z, of_values = Z.numpy().astype(np.float64), np.repeat(np.arange(len(self)), np.diff(self.matrix.indptr))
        met = np.einsum("ij,ij->i", z[of_values], concepts.numpy()[self.matrix.indices].astype(np.float64))
        beyond = np.square(self.matrix.data - met) - np.square(met)  # what the values change
        return float(beyond.sum() + ((z.T @ z) * gram.numpy()).sum())

    def values(self) -> torch.Tensor:
        """Those that are stored; all others are zero."""
        return torch.from_numpy(self.matrix.data)

    def times_power_of_two(self, exponent: int) -> "SparseRows":
        scaled = self.matrix.copy()
        scaled.data = times_power_of_two(self.values(), torch.tensor(exponent, device="cpu")).numpy()
        return SparseRows(scaled, self.device)

    def to_dense(self) -> torch.Tensor:
        return torch.from_numpy(self.matrix.toarray()).to(self.device)

    def norm(self, dim: int) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(self.to_dense(), dim=dim)
        return norms

    def new_empty(self, *size: int) -> torch.Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return function(*(x.to_dense() if isinstance(x, cls) else x for x in args), **(kwargs or {}))
