"""Kinds of input × operations."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from core import NMF, errors
from tests.core.kinds import BATCH, BATCHES, DENSE, KINDS, SPARSE, batches
from tests.core.problems import planted

Array = np.ndarray

A = planted(60, 20, 5)[0]
A[A < 0.3] = 0  # so that there is something sparse about it


@pytest.fixture(scope="module")
def fitted() -> NMF:
    model = NMF(5, seed=0, max_iter=10)
    model.fit(A)
    return model


# Each of a model fitted on A, and of the input: A or the codes of A.
OPERATIONS: dict[str, tuple[Callable[[NMF, object], object], str]] = {
    "fit": (lambda model, x: NMF(5, seed=0, max_iter=10).fit(x)[1], "A"),
    "fit_transform": (lambda model, x: NMF(5, seed=0, max_iter=10).fit_transform(x), "A"),
    "encode": (NMF.encode, "A"),
    "transform": (NMF.transform, "A"),
    "decode": (NMF.decode, "Z"),
    "inverse_transform": (NMF.inverse_transform, "Z"),
    "init_random_z": (lambda model, x: NMF(5, seed=0).init_random_z(x), "A"),
    "init_nndsvda": (lambda model, x: NMF(5, seed=0).init_nndsvda(x)[1], "A"),
    "sanitize_np_input": (NMF.sanitize_np_input, "A"),
    "sanitize_np_codes": (NMF.sanitize_np_codes, "Z"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same(kind: str, operation: str, fitted: NMF) -> None:
    perform, takes = OPERATIONS[operation]
    x = A if takes == "A" else fitted.encode(A).numpy()
    expected, answer = perform(fitted, x.copy()), perform(fitted, KINDS[kind](x))
    np.testing.assert_allclose(np.asarray(answer), np.asarray(expected), rtol=1e-4, atol=1e-5)
    if kind not in SPARSE:
        np.testing.assert_array_equal(np.asarray(answer), np.asarray(expected))
    assert not getattr(answer, "requires_grad", False)
    if "transform" in operation:
        came_in_numpy = kind in ("array", "float64 array", "big-endian array", "Fortran order", "array-like")
        assert isinstance(answer, np.ndarray) == (came_in_numpy or ("tensor" not in kind and kind in SPARSE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32])
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
def test_other_dtypes(dtype: torch.dtype, layout: torch.layout, fitted: NMF) -> None:
    rounded = torch.from_numpy(3 * A).to(dtype)
    x = rounded if layout == torch.strided else rounded.to_sparse()
    assert torch.equal(fitted.encode(x), fitted.encode(rounded.float()))


def test_inputs_are_left_as_they_are() -> None:
    frozen = A.copy()
    frozen.flags.writeable = False
    with_duplicates = sparse.csr_array((np.ones(3, np.float32), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 2))
    NMF(5, seed=0, max_iter=2).fit(frozen)
    Z, D = NMF(1, seed=0).fit(with_duplicates)
    np.testing.assert_allclose((Z @ D).numpy(), [[1, 2]], rtol=1e-5)
    assert with_duplicates.nnz == 3


def test_one_dimension_is_one_row(fitted: NMF) -> None:
    codes = fitted.encode(A[0])
    assert codes.shape == (1, 5)
    for row in (sparse.coo_array(A[0]), torch.from_numpy(A[0]).to_sparse(), [torch.from_numpy(A[0])]):
        assert torch.equal(fitted.encode(row), codes)


# --- refused ----------------------------------------------------------------------------------------------------


def spoiled(value: float) -> Array:
    bad = A.copy()
    bad[9, 3] = bad[30, 4] = value
    return bad


BAD: dict[str, tuple[Array, type[Exception], str]] = {
    "negative": (spoiled(-2), errors.NegativeValues, r"2 negative values, the first \(-2\) at row 9, column 3;"),
    "NaN": (spoiled(np.nan), errors.NotFinite, r"2 NaN .* the first \(nan\) at row 9, column 3;"),
    "infinite": (spoiled(np.inf), errors.NotFinite, r"2 NaN .* the first \(inf\) at row 9, column 3;"),
    "too large": (
        np.where(np.arange(60)[:, None] == 9, 1e300, A.astype(np.float64)),
        errors.OutOfRange,
        r"20 values .* \(1e\+300\) at row 9, column 0;",
    ),
    "empty": (A[:0], errors.WrongShape, r"empty, of shape \(0, 20\)"),
}
ONE_MATRIX = {
    kind: KINDS[kind]
    for kind in (*DENSE, *SPARSE)
    if kind not in ("float64 csr", "big-endian array", "every second column")
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ONE_MATRIX)
def test_a_bad_matrix_is_refused_with_its_first_fault(kind: str, bad: str, fitted: NMF) -> None:
    array, error, words = BAD[bad]
    for perform in (NMF(5).fit, fitted.encode):
        with pytest.raises(error, match=words):
            perform(ONE_MATRIX[kind](array))


@pytest.mark.parametrize("bad", ["negative", "NaN", "infinite", "too large"])
@pytest.mark.parametrize("kind", BATCHES)
def test_a_bad_batch_is_refused_by_its_index(kind: str, bad: str, fitted: NMF) -> None:
    array, error, _ = BAD[bad]
    for perform in (NMF(5).fit, fitted.encode):
        with pytest.raises(error, match=r"^activations in batch 1 .*at row 2, column [03];"):
            perform(BATCHES[kind](array))


def unsound(kind: Any, index: int) -> Any:
    """A matrix 3 by 3 with an index that is none, which SciPy makes, and of which it reads and writes elsewhere."""
    return kind((np.ones(3, np.float32), np.array([0, index, 1]), np.arange(4)), shape=(3, 3))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (7, errors.WrongDtype, r"^activations are a builtins.int; pass a torch.Tensor.*iterable"),
        ([[1.0, 2.0]], errors.WrongDtype, "^activations are a list of rows; make it one matrix"),
        ("abc", errors.WrongDtype, "batch 0 are a builtins.str"),
        ([A, None], errors.WrongDtype, "batch 1 are a builtins.NoneType"),
        ([A, (A.astype(complex), 1)], errors.WrongDtype, "batch 1 have dtype complex128"),
        ([A, A[:, :4]], errors.WrongShape, "batch 1 have 4 columns; batch 0 has 20 features"),
        ([A, A[None]], errors.WrongShape, r"batch 1 have 3 dimensions \(1, 60, 20\)"),
        ([A, A[:0]], errors.WrongShape, "batch 1 are empty"),
        ([A, ()], errors.WrongDtype, "batch 1 are a builtins.tuple"),
        ([], errors.WrongShape, "without a single batch"),
        (np.ones((2, 2, 2)), errors.WrongShape, "3 dimensions"),
        (sparse.coo_array(np.ones((2, 2, 2))), errors.WrongShape, "3 dimensions"),
        (torch.ones(2, 2, 2).to_sparse(), errors.WrongShape, "3 dimensions"),
        (torch.ones(2, 2).to_sparse(1), errors.WrongDtype, r"1 dense dimensions; pass x.to_dense\(\)"),
        (sparse.csr_array(np.ones((2, 2), complex)), errors.WrongDtype, "complex128"),
        (unsound(sparse.csr_array, 9), errors.WrongShape, "indices must be < 3"),
        (unsound(sparse.csr_array, -5), errors.WrongShape, "no sound sparse matrix"),
        (unsound(sparse.csc_matrix, 9), errors.WrongShape, "indices must be < 3"),
        (sparse.csr_array(np.ones((2, 2), bool)), errors.WrongDtype, "bool"),
        (torch.ones(2, 2, dtype=torch.bool).to_sparse(), errors.WrongDtype, "bool"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), errors.WrongDtype, "^activations have dtype float8_e4m3fn; use"),
        ([A, torch.ones(2, 20).to(torch.float8_e5m2)], errors.WrongDtype, "batch 1 have dtype float8_e5m2"),
        (torch.empty(2, 2, dtype=torch.bits8), errors.WrongDtype, "dtype bits8"),
        (torch.ones(2, 2, device="meta"), errors.WrongDtype, "on the meta device, which holds no values"),
        (torch.ones(2, 2).to_mkldnn(), errors.WrongDtype, r"pass x.to_dense\(\)"),
        (sparse.csr_array(np.full((2, 2), 1e-50)), errors.OutOfRange, "1e-50"),
    ],
)
def test_refused(given: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NMF(2).fit(given)


def test_a_nested_tensor_is_refused() -> None:
    nested = torch.nested.nested_tensor([torch.ones(3)], layout=torch.jagged)  # here: it imports for seconds
    with pytest.raises(errors.WrongShape, match="are a nested tensor"):
        NMF(2).fit(nested)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_widths(kind: str, fitted: NMF) -> None:
    with pytest.raises(errors.WrongShape, match="19 columns; this dictionary has 20 features"):
        fitted.encode(KINDS[kind](A[:, :19]))
    with pytest.raises(errors.WrongShape, match="20 columns; this dictionary has 5 concepts"):
        fitted.decode(KINDS[kind](A))


def test_a_spent_generator_is_told(fitted: NMF) -> None:
    generator = (part for part in batches(A))
    fitted.encode(generator)
    with pytest.raises(errors.WrongShape, match="gives its batches only once"):
        fitted.encode(generator)


@pytest.mark.parametrize("kind", ["tensor", "csr_array", "list of arrays"])
def test_a_refused_fit_changes_nothing(kind: str, fitted: NMF) -> None:
    before = fitted.get_dictionary()
    with pytest.raises(errors.NegativeValues):
        fitted.fit(KINDS[kind](spoiled(-1)))
    assert fitted.get_dictionary() is before


# --- memory and laziness ----------------------------------------------------------------------------------------


def test_batches_are_read_one_by_one(fitted: NMF) -> None:
    """Each is answered before the next is asked for, and none is kept."""
    sizes: list[int] = []
    plain = fitted._prepared().encode

    def stream() -> Iterator[Array]:
        for index, batch in enumerate(batches(A)):
            assert len(sizes) == index
            yield batch

    class Watched:
        n_features = 20

        def encode(self, x: torch.Tensor, **how: object) -> object:
            sizes.append(len(x))
            return plain(x, **how)  # type: ignore[arg-type]

    model = NMF(5)
    model._prepared = Watched  # type: ignore[assignment]
    assert torch.equal(model.encode(stream()), fitted.encode(A))
    assert sizes == [BATCH] * 8 + [4]


def test_sparse_rows_are_encoded_a_few_at_a_time() -> None:
    model = NMF(2)
    model.D = torch.rand(2, 20000)
    rows = sparse.random_array((4000, 20000), density=1e-4, dtype=np.float32, rng=0)
    tracemalloc.start()
    try:
        model.encode(rows)
        assert tracemalloc.get_traced_memory()[1] < 4000 * 20000 * 4 / 5
    finally:
        tracemalloc.stop()
