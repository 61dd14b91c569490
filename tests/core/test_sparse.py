"""Sparse rows in a tensor's place, and what a sparse fit costs."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from core import NMF
from core.chunks import Chunks
from core.solvers import SOLVERS
from core.sparse import SparseRows

Array = np.ndarray

CPU = torch.device("cpu")


def sparse_rows(n: int, d: int, density: float = 0.1) -> tuple[sparse.csr_array, Array]:
    matrix = sparse.random_array((n, d), density=density, format="csr", dtype=np.float32, rng=0)
    return matrix, matrix.toarray()


@pytest.mark.parametrize("columns", [1, 5])
def test_products_are_those_of_the_dense_rows(columns: int) -> None:
    matrix, dense = sparse_rows(50, 30)
    rows, X, Y = SparseRows(matrix, CPU), torch.rand(columns, 30).T, torch.rand(50, columns)
    torch.testing.assert_close(rows @ X, torch.from_numpy(dense) @ X)
    torch.testing.assert_close(rows.T @ Y, torch.from_numpy(dense).T @ Y)
    picked = torch.tensor([7, 7, 0])
    np.testing.assert_array_equal(rows[picked].to_dense(), dense[picked])
    np.testing.assert_array_equal(rows[3:9].times_power_of_two(-2).to_dense(), dense[3:9] / 4)
    torch.testing.assert_close(torch.addmm(rows, Y, X.T, alpha=-1), torch.from_numpy(dense) - Y @ X.T)


def test_cross_products_of_rows_that_are_mostly_columns_of_zeros() -> None:
    matrix, dense = sparse_rows(20, 3000, density=0.002)
    assert SparseRows(matrix, CPU).is_mostly_zero_columns
    assert not SparseRows(sparse_rows(20, 30)[0], CPU).is_mostly_zero_columns
    Z, cross = torch.rand(20, 4), torch.rand(3000, 4, dtype=torch.float64)
    expected = cross + torch.from_numpy(dense.T).double() @ Z.double()
    SparseRows(matrix, CPU).add_cross_product(Z, cross)
    torch.testing.assert_close(cross, expected, rtol=1e-6, atol=1e-6)


def test_the_error_of_rows_that_are_mostly_columns_of_zeros() -> None:
    matrix, dense = sparse_rows(20, 3000, density=0.002)
    Z, concepts = torch.rand(20, 4), torch.rand(3000, 4)
    error = torch.from_numpy(dense).double() - Z.double() @ concepts.double().T
    found = SparseRows(matrix, CPU).squared_error(Z, concepts, concepts.double().T @ concepts.double())
    assert found == pytest.approx(float(error.square().sum()), rel=1e-12)


def test_a_fit_of_wide_rows_is_that_of_the_dense_ones() -> None:
    matrix, dense = sparse_rows(300, 20_000, density=0.001)
    assert Chunks(SparseRows(matrix, CPU), 4)._rows(slice(0, 100)).is_mostly_zero_columns
    models = [NMF(4, seed=0, max_iter=10, tol=0) for _ in range(2)]
    for model, A in zip(models, (matrix, dense), strict=True):
        model.fit(A)
    assert models[0].loss_history_ == pytest.approx(models[1].loss_history_, rel=1e-5)


def test_products_leave_the_rows_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseRows, "to_dense", None)
    rows = SparseRows(sparse_rows(50, 30)[0], CPU)
    assert (rows @ torch.rand(30, 2)).shape == (50, 2)
    assert (rows.T @ torch.rand(50, 2)).shape == (30, 2)


def test_off_the_cpu_products_are_dense() -> None:
    rows = SparseRows(sparse_rows(50, 30)[0], torch.device("meta"))
    assert (rows @ torch.rand(30, 2, device="meta")).device.type == "meta"
    assert (rows.T @ torch.rand(50, 2, device="meta")).shape == (30, 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fit_makes_no_more_than_a_chunk_dense(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[int] = set()
    plain = SparseRows.to_dense

    def watched(rows: SparseRows) -> torch.Tensor:
        shapes.add(len(rows))
        return plain(rows)

    monkeypatch.setattr(SparseRows, "to_dense", watched)
    matrix, _ = sparse_rows(20000, 20)
    Z, D = NMF(30, seed=0, solver=solver, max_iter=6).fit(matrix)  # more than the rank: some are revived
    assert (Z.shape, D.shape) == ((20000, 30), (30, 20))
    assert max(shapes) <= 8192


def test_a_sparse_fit_takes_less_memory() -> None:
    matrix, dense = sparse_rows(8000, 2000, density=0.01)
    tracemalloc.start()  # which sees SciPy's and numpy's arrays; torch's are of a chunk's size or Z and D
    try:
        NMF(5, seed=0, max_iter=3).fit(matrix)
        assert tracemalloc.get_traced_memory()[1] < 0.5 * dense.nbytes
    finally:
        tracemalloc.stop()


@settings(max_examples=40)
@given(
    rows=st.integers(1, 30),
    d=st.integers(1, 20),
    k=st.integers(1, 40),
    exponent=st.sampled_from([-66, -21, 0, 21, 66]),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    init=st.sampled_from(["nndsvda", "random"]),
    seed=st.integers(0, 1000),
)
def test_any_sparse_matrix(rows: int, d: int, k: int, exponent: int, density: float, init: str, seed: int) -> None:
    A = sparse.random_array((rows, d), density=density, format="csr", dtype=np.float32, rng=seed)
    A.data = (A.data + np.float32(0.01)) * np.float32(2.0**exponent)
    model = NMF(k, seed=seed, init=init, max_iter=20)
    Z, D = model.fit(A)
    for x in (Z, D, model.encode(A)):
        assert bool(torch.isfinite(x).all())
        assert bool((x >= 0).all())
    error = np.linalg.norm(A.toarray().astype(float) - Z.double().numpy() @ D.double().numpy())
    assert error <= np.linalg.norm(A.toarray().astype(float)) * 1.0001


def test_a_large_chunk_is_cut() -> None:
    for d, size in ((10, 5000), (1 << 12, 1000), (1 << 20, 64)):  # of 8192, 1024 and 64 at most
        empty = sparse.csr_array((10000, d), dtype=np.float32)
        assert Chunks(SparseRows(empty, CPU), 1).size == size
