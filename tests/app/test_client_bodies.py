"""What is sent for an array, a tensor, a file."""

import io
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from app.client.bodies import MEDIA_TYPES, Body, as_array, body_of
from app.formats import FORMATS


def sent(body: Body) -> bytes:
    content = b"".join(body.chunks())
    assert len(content) == body.length
    return content


def as_read(body: Body) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(sent(body)))
    return array


ROWS = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i4", "u1"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed", "row", "empty"])
def test_arrays_of_every_kind(dtype: str, layout: str) -> None:
    array = {
        "C": ROWS,
        "F": np.asfortranarray(ROWS),
        "strided": np.repeat(ROWS, 2, axis=1)[:, ::2],
        "reversed": ROWS[::-1],
        "row": ROWS[0],
        "empty": ROWS[:0],
    }[layout].astype(dtype, order="K")
    read = as_read(body_of(array))
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


def test_an_array_is_sent_from_its_own_memory() -> None:
    array = np.zeros((1000, 1000), np.float32)
    tracemalloc.start()
    try:
        assert sum(len(chunk) for chunk in body_of(array).chunks()) > array.nbytes
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 10
    finally:
        tracemalloc.stop()


def test_a_body_can_be_sent_again() -> None:
    body = body_of(ROWS)
    assert sent(body) == sent(body)


@pytest.mark.parametrize("rows", [[[0, 1.5], [2, 0]], ((1, 2), (3, 4)), [1, 2.5], csr_array([[0, 1.0], [2.0, 0]])])
def test_lists_and_sparse_matrices(rows: Any) -> None:
    dense = rows.toarray() if hasattr(rows, "toarray") else rows
    np.testing.assert_array_equal(as_read(body_of(rows)), dense)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors(dtype: str) -> None:
    import torch

    tensor = torch.arange(6, dtype=getattr(torch, dtype)).reshape(2, 3).requires_grad_()
    np.testing.assert_array_equal(as_read(body_of(tensor)), tensor.detach().float().numpy())


@pytest.mark.parametrize("data", [None, ["a", "b"], [[1, None]], np.array([True]), [1j], object()])
def test_what_is_no_array_of_numbers_is_refused(data: object) -> None:
    with pytest.raises(TypeError, match="rows of numbers"):
        body_of(data)


def test_ragged_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="inhomogeneous"):
        body_of([[1, 2], [3]])


@pytest.mark.parametrize("suffix", ["npy", "csv", "safetensors"])
@pytest.mark.parametrize("kind", [str, Path])
def test_files_go_out_as_they_lie(tmp_path: Path, suffix: str, kind: Any) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"x" * 700_000)
    body = body_of(kind(path))
    assert (sent(body), body.content_type) == (path.read_bytes(), MEDIA_TYPES[suffix])


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"x" * 100)
    body = body_of(path)
    path.write_bytes(b"x" * 10)
    with pytest.raises(OSError, match="shorter"):
        list(body.chunks())


def test_files_of_other_kinds_and_absent_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suffix"):
        body_of(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError):
        body_of(tmp_path / "a.npy")


def test_the_media_types_are_the_services() -> None:
    assert {f.name.lower(): f.media_types[0] for f in FORMATS} == MEDIA_TYPES


def test_no_tensor_library_is_needed_to_know_a_tensor() -> None:
    assert "torch" not in vars(sys.modules["app.client.bodies"])


def test_a_masked_array_is_refused() -> None:
    """Its mask would be lost, and what it hides be sent."""
    with pytest.raises(TypeError, match="masked array"):
        as_array(np.ma.masked_less(np.ones((2, 3)), 2.0))
