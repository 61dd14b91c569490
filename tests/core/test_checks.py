import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core import errors
from core.checks import BLOCK_VALUES, check_activations, check_codes

GOOD = np.array([[0.0, 1.5], [2.0, 0.25], [3.0, 4.0]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint16, np.int64])
@pytest.mark.parametrize("target", [np.float32, np.float64])
def test_dtypes(dtype: type, target: type) -> None:
    given_array = GOOD.astype(dtype)
    checked = check_activations(given_array, dtype=target)
    assert checked.dtype == target
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, given_array.astype(target))


def test_a_good_array_is_not_copied() -> None:
    A = GOOD.astype(np.float32)
    assert check_activations(A) is A


@pytest.mark.parametrize("view", [GOOD.T.copy().T, GOOD[::2], GOOD[:, ::-1], GOOD.astype(">f8")])
def test_any_layout_and_byte_order(view: np.ndarray) -> None:
    checked = check_activations(view)
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, view.astype(np.float32))


def test_one_dimension_is_one_row() -> None:
    assert check_activations(np.ones(3)).shape == (1, 3)
    assert check_codes(np.ones(3), nb_concepts=3).shape == (1, 3)


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (np.ones((2, 3, 4)), errors.WrongShape, r"3 dimensions .*, as by x.reshape\(-1, 4\)$"),
        (np.array(1.0), errors.WrongShape, r"0 dimensions \(\); use \(rows, features\)$"),
        (np.ones((0, 3)), errors.WrongShape, "empty"),
        (np.ones((3, 0)), errors.WrongShape, "empty"),
        (np.ones((3, 5)), errors.WrongShape, "5 columns; this dictionary has 2 features"),
        (np.ones((3, 2), complex), errors.WrongDtype, "complex128"),
        (np.ones((3, 2), bool), errors.WrongDtype, "bool"),
        (np.array([["a", "b"]]), errors.WrongDtype, "<U1"),
        (np.array([[None, 1]], object), errors.WrongDtype, "object"),
        (
            np.array([[1, 2], [np.nan, 3]]),
            errors.NotFinite,
            r"1 NaN or infinite value, the first \(nan\) at row 1, column 0",
        ),
        (np.array([[1, np.inf], [-np.inf, 3]]), errors.NotFinite, r"2 NaN or infinite values.*row 0, column 1"),
        (
            np.array([[1, 2], [-3, -4]]),
            errors.NegativeValues,
            r"2 negative values, the first \(-3\) at row 1, column 0;.*A\.clip\(0\).*clip=true",
        ),
        (np.array([[3, 2], [2, 1e39]]), errors.OutOfRange, r"1 value that .*1e\+39.*row 1, column 1;.*3.4e\+38"),
        (np.array([[1e-50, 0]]), errors.OutOfRange, "1e-50"),
    ],
)
def test_refused(array: np.ndarray, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        check_activations(array, n_features=2)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, errors.CoreError)


def test_not_an_array() -> None:
    with pytest.raises(errors.WrongDtype, match="list"):
        check_activations([[1.0, 2.0]])  # type: ignore[arg-type]


def test_codes_are_told_by_their_own_name() -> None:
    with pytest.raises(errors.WrongShape, match="codes have 2 columns; this dictionary has 3 concepts"):
        check_codes(GOOD, nb_concepts=3)
    with pytest.raises(errors.NegativeValues, match="codes hold 5 negative"):
        check_codes(-GOOD)


def test_large_float64_is_fine_in_float64() -> None:
    assert check_activations(np.array([[1e300]]), dtype=np.float64)[0, 0] == 1e300


def test_clip() -> None:
    A = np.array([[-1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(check_activations(A, clip=True), [[0, 2]])
    np.testing.assert_array_equal(A, [[-1, 2]])
    with pytest.raises(errors.NotFinite):
        check_activations(np.array([[-np.inf, 2.0]]), clip=True)


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(1, 2**60)),
    st.sampled_from([np.nan, np.inf, -1.0]),
    st.data(),
)
def test_one_bad_value_is_found_wherever_it_is(A: np.ndarray, bad: float, data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, len(A) - 1)), data.draw(st.integers(0, A.shape[1] - 1))
    A[row, column] = bad
    with pytest.raises(errors.InvalidArray, match=f"row {row}, column {column};"):
        check_activations(A)


def test_a_bad_value_in_a_late_block_is_found() -> None:
    A = np.ones((5, BLOCK_VALUES), np.float32)
    A[4, 7] = np.nan
    with pytest.raises(errors.NotFinite, match="row 4, column 7"):
        check_activations(A)
    A[4, 7] = -1
    with pytest.raises(errors.NegativeValues, match="row 4, column 7"):
        check_activations(A)


def test_temporaries_stay_small() -> None:
    A = np.ones((4000, 1000), np.float32)
    tracemalloc.start()
    try:
        check_activations(A)
        assert tracemalloc.get_traced_memory()[1] < A.nbytes / 10
    finally:
        tracemalloc.stop()
