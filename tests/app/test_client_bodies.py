"""What is sent for an array, a tensor, a file."""

import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from scipy.sparse import csr_array

from app.client.bodies import MEDIA_TYPES, Body, Held, OnDisk, as_array, body_of
from app.client.codes import codes_body
from app.commands import files
from app.formats import FORMATS
from app.sparse import compressed_rows


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


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc"])
def test_sparse_tensors(layout: str) -> None:
    import torch

    dense = torch.tensor([[0, 1.5], [2, 0]])
    tensor = dense.to_sparse(layout=getattr(torch, layout))
    np.testing.assert_array_equal(as_read(body_of(tensor)), dense.numpy())


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


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """It was opened, its length taken for 0, and opened again by each sending, whose time that took was nobody's."""
    os.mkfifo(path := tmp_path / "A.npy")
    end = os.open(path, os.O_RDWR)  # so that nobody waits for the other one
    try:
        with pytest.raises(ValueError, match=r"A\.npy is no file on a disk"):
            body_of(path)
    finally:
        os.close(end)


CODES = np.array([[0, 1.5, 0], [2, 0, 0.25]], np.float32)
BESIDE = {"relative_error": np.ones(2, np.float32)}
ANSWERED = {
    "sparse": compressed_rows(CODES),
    "sparse and reconstructed": compressed_rows(CODES) | BESIDE,
    "reconstructed": {"codes": CODES} | BESIDE,
}


@pytest.mark.parametrize("kind", ANSWERED)
def test_what_an_encode_answers_are_codes_from_a_file_as_from_a_pipe(tmp_path: Path, kind: str) -> None:
    content = save(ANSWERED[kind])
    (path := tmp_path / "Z.safetensors").write_bytes(content)
    for codes in (path, str(path), Held(MEDIA_TYPES["safetensors"], (content,))):
        np.testing.assert_array_equal(as_read(codes_body(codes)), CODES)


@pytest.mark.parametrize("name", ["data", "codes"])
def test_codes_that_are_one_array_go_out_as_they_lie(tmp_path: Path, name: str) -> None:
    (path := tmp_path / "Z.safetensors").write_bytes(save({name: CODES}))
    assert isinstance(body := codes_body(path), OnDisk)
    assert sent(body) == path.read_bytes()
    np.testing.assert_array_equal(as_read(codes_body(CODES)), CODES)


def test_codes_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    beyond = ANSWERED["sparse"] | {"indices": np.array([0, 1, 3], np.int32)}
    (path := tmp_path / "Z.safetensors").write_bytes(save(beyond))
    with pytest.raises(ValueError, match=r"Z\.safetensors: the codes cannot be read"):
        codes_body(path)
    path.write_bytes(save(ANSWERED["sparse"])[:-1])
    with pytest.raises(ValueError, match=r"Z\.safetensors: the codes cannot be read"):
        codes_body(path)
    header = json.dumps(  # a dtype that numpy lacks, as torch's safetensors write it
        {
            "codes": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
            "relative_error": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=r"Z\.safetensors: the codes cannot be read"):
        codes_body(path)


def test_the_formats_and_their_media_types_are_the_services() -> None:
    assert {f.name.lower(): f.media_types[0] for f in FORMATS} == MEDIA_TYPES
    assert set(files.FORMATS) == MEDIA_TYPES.keys()


def test_no_tensor_library_is_needed_to_know_a_tensor() -> None:
    assert "torch" not in vars(sys.modules["app.client.bodies"])


def test_a_masked_array_is_refused() -> None:
    """Its mask would be lost, and what it hides be sent."""
    with pytest.raises(TypeError, match="masked array"):
        as_array(np.ma.masked_less(np.ones((2, 3)), 2.0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_lists_of_tensors(dtype: str) -> None:
    """numpy takes none that has a gradient, and none of bfloat16."""
    import torch

    rows = [torch.arange(3, dtype=getattr(torch, dtype)).requires_grad_() for _ in range(2)]
    for data in (rows, tuple(rows), [list(row) for row in rows]):
        np.testing.assert_array_equal(as_read(body_of(data)), [[0, 1, 2]] * 2)
