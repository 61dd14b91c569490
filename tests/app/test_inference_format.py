"""The parser of the Open Inference Protocol's bodies: what it reads, and what it refuses without harm."""

import json
import re
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import AppError
from app.formats import json_format
from app.formats.inference_format import DATATYPES, json_length, read, write
from core.errors import CoreError

A = np.array([[1, 2.5, 3, 4], [0, 0, 0, 1]], np.float32)


def with_bytes(array: np.ndarray, datatype: str = "FP32", **changes: object) -> tuple[bytes, int]:
    """A body whose input's bytes follow the JSON, and the length of that JSON."""
    told = {
        "name": "activations",
        "datatype": datatype,
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }
    text = json.dumps({"inputs": [told | changes]}).encode()
    return text + array.tobytes(), len(text)


def as_json(data: object, shape: list[int], datatype: str = "FP32") -> bytes:
    told = {"name": "activations", "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [told]}).encode()


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BF16"])
def test_bytes_are_read_as_a_view_of_the_body(datatype: str) -> None:
    array = A.astype(DATATYPES[datatype])
    body, length = with_bytes(array, datatype)
    view = memoryview(body)
    _, read_back = read(view, length)
    np.testing.assert_array_equal(read_back, array)
    assert read_back.dtype == array.dtype
    assert np.shares_memory(read_back, np.frombuffer(view, np.uint8))


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    bits = (A.view(np.uint32) >> 16).astype(np.uint16)
    body, length = with_bytes(bits, "BF16")
    np.testing.assert_array_equal(read(memoryview(body), length)[1], A)


@pytest.mark.parametrize("data", [A.tolist(), A.ravel().tolist()], ids=["in rows", "in one run"])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_json_data(data: object, datatype: str) -> None:
    np.testing.assert_array_equal(read(memoryview(as_json(data, [2, 4], datatype)), None)[1], A)


def test_whole_numbers_in_json() -> None:
    np.testing.assert_array_equal(read(memoryview(as_json([0, 255], [2], "UINT8")), None)[1], [0, 255])


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if "INT" in name])
def test_the_extremes_of_integers_in_json(datatype: str) -> None:
    limits = np.iinfo(DATATYPES[datatype])
    extremes = [int(limits.min), int(limits.max)]
    _, told = read(memoryview(as_json(extremes, [2], datatype)), None)
    np.testing.assert_array_equal(told, np.array(extremes, np.float64))


@pytest.mark.parametrize(
    ("data", "datatype", "said"),
    [
        ([1, 1.5], "INT32", "1: 1.5"),
        ([256, 0], "UINT8", "0: 256"),
        ([[1, 2], [3, 300]], "INT8", "1.1: 300"),
        ([0, -1], "UINT64", "1: -1"),
        ([0, 2**64 + 2**12], "UINT64", "1: 1.8446744073709556e+19"),  # the next number that float64 has
        ([0, 2**63 + 2**11], "INT64", "1: 9.223372036854778e+18"),
        ([0, 2**31], "INT32", "1: 2147483648"),
    ],
)
def test_numbers_that_are_not_of_the_datatype(data: list[Any], datatype: str, said: str) -> None:
    with pytest.raises(AppError, match=rf"^inputs\.0\.data\.{re.escape(said)} is no {datatype}$"):
        read(memoryview(as_json(data, list(np.shape(data)), datatype)), None)


def test_what_is_written_has_the_outputs_in_order() -> None:
    arrays = {"codes": A, "converged": np.array([True, False]), "relative_error": A[:, 0]}
    body, length = write({"model_name": "a"}, arrays, {"codes", "relative_error"})
    assert isinstance(body, bytes)
    told = json.loads(body[:length])
    assert told["model_name"] == "a"
    assert told["outputs"] == [
        {"name": "codes", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}},
        {"name": "converged", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        {"name": "relative_error", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
    ]
    assert body[length:] == A.tobytes() + A[:, 0].tobytes()
    body, length = write({}, {"converged": np.array([True, False])}, {"converged"})
    assert body[length:] == b"\x01\x00"


@pytest.mark.parametrize("binary", [set(), {"codes"}, {"converged"}, {"codes", "converged"}])
def test_the_same_is_written_in_pieces(binary: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"codes": A.T, "converged": np.array([True, False] * 9)}
    told = {"model_name": "a", "parameters": {"converged": False}}
    whole, length = write(told, arrays, binary)
    monkeypatch.setattr(json_format, "PIECE_BYTES", 10)
    parts, same_length = write(told, arrays, binary)
    assert isinstance(parts, tuple)
    assert (b"".join(parts), same_length) == (whole, length)
    if not binary:  # as one call writes it
        outputs = [
            {"name": "codes", "datatype": "FP32", "shape": [4, 2], "data": A.T.ravel()},
            {"name": "converged", "datatype": "BOOL", "shape": [18], "data": arrays["converged"]},
        ]
        assert whole == orjson.dumps(told | {"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)


@pytest.mark.parametrize("told", ["-1", "+1", "1.0", "", "0x10", "one", "²", "9" * 5000])
def test_lengths_that_are_none(told: str) -> None:
    with pytest.raises(AppError, match="not a number of bytes"):
        json_length(told)


def refused(body: bytes, length: int | None) -> bool:
    """Whether a body is refused, by an error that is told as the client's."""
    try:
        read(memoryview(body), length)
    except (AppError, CoreError):
        return True
    return False


BODIES = [with_bytes(A), with_bytes(A.astype(np.float16), "FP16"), (as_json(A.tolist(), [2, 4]), None)]


@given(st.sampled_from(BODIES), st.data())
def test_a_damaged_body_is_read_or_refused(whole: tuple[bytes, int | None], data: st.DataObject) -> None:
    """Bytes changed, taken out or put in, and lengths that lie: nothing but the client's errors comes of it."""
    body, length = bytearray(whole[0]), whole[1]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.integers(0, 8))
        body[at : at + cut] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"9" * 30, b"[" * 3000, b"null", b"-"])
        )
    if length is not None:
        length = data.draw(st.just(length) | st.integers(0, 2 * len(body)) | st.none())
    refused(bytes(body), length)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(2**70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_any_value_in_any_field_is_read_or_refused(data: st.DataObject) -> None:
    told: dict[str, object] = {
        "id": "1",
        "parameters": {"task": "encode", "clip": True, "priority": 1},
        "inputs": [
            {"name": "activations", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
        ],
        "outputs": [{"name": "codes", "parameters": {"binary_data": True}}],
    }
    places: list[tuple[dict[str, object], str]] = []

    def collect(part: object) -> None:
        if isinstance(part, dict):
            places.extend((part, key) for key in part)
            for value in part.values():
                collect(value)
        elif isinstance(part, list):
            for item in part:
                collect(item)

    collect(told)
    place, key = data.draw(st.sampled_from(range(len(places))).map(places.__getitem__))
    place[data.draw(st.sampled_from([key, "data", "extra"]))] = data.draw(VALUES)
    text = json.dumps(told).encode()
    refused(text + bytes(8), len(text))
