"""Arrays decoded in pieces: the numbers, and the refusals, of those decoded whole."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import AppError, InvalidFields
from app.formats import json_format
from app.formats.answer import Answer

Read = tuple[dict[str, object], dict[str, list[object]]]

NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**53))
ROWS = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1)
)
ARRAYS = st.one_of(ROWS, st.lists(NUMBERS, min_size=1))
FIELDS = st.dictionaries(st.sampled_from(["name", "other", "clip"]), st.one_of(st.text(), st.booleans(), NUMBERS))
INDENTS = st.sampled_from([None, 0, 2])
SPOILS = st.sampled_from(
    [b"[", b"]", b",", b'"', b"{", b"}", b"0", b"-", b" ", b"e999", b"NaN", b"true", b"null", b'"1"', b"[]", b"[1]",
     b'"data":[[1]],', b'"data":1,', b",[", b"],", b"\xff", b"\\", b'"\\u0000the array"']
)  # fmt: skip


ANSWERS = {
    "rows": {"codes": np.arange(21, dtype=np.float32).reshape(7, 3)},
    "a row": {"codes": np.arange(40, dtype=np.float32)[None]},
    "sparse": {
        "shape": np.array([3, 4]),
        "indptr": np.array([0, 2, 2, 3]),
        "indices": np.array([0, 3, 1]),
        "values": np.array([0.5, 1.5, 2.5], np.float32),
    },
    "all zero": {"indptr": np.zeros(9, np.int64), "indices": np.zeros(0, np.int64), "values": np.zeros(0)},
}


@pytest.mark.parametrize("arrays", ANSWERS.values(), ids=ANSWERS)
def test_answers_written_in_pieces(arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer({"dictionary": "digits", "version": 1, "converged": True}, arrays)
    parts = json_format.write(answer, base64=False)
    assert isinstance(parts, tuple)
    monkeypatch.setattr(json_format, "PIECE_BYTES", 10**6)
    assert b"".join(parts) == json_format.write(answer, base64=False)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_format, "PIECE_BYTES", 10)


def whole(body: bytes) -> Read | str:
    """What is read where nothing is decoded in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_format, "_decoded_in_pieces", lambda *_: None)
        return outcome(body)


def outcome(body: bytes) -> Read | str:
    try:
        fields, arrays = json_format.read(bytearray(body), "data")
    except AppError as error:
        return repr(error)
    return fields, {name: [array.dtype, array.tolist()] for name, array in arrays.items()}


def body(before: dict[str, object], data: object, after: dict[str, object], indent: int | None) -> bytes:
    return json.dumps({**before, "data": data, **after}, indent=indent).encode()


@given(FIELDS, ARRAYS, FIELDS, INDENTS)
def test_the_same_numbers(
    before: dict[str, object], data: list[object], after: dict[str, object], indent: int | None
) -> None:
    text = body(before, data, after, indent)
    assert outcome(text) == whole(text)
    _, arrays = json_format.read(bytearray(text), "data")
    np.testing.assert_array_equal(arrays["data"], np.array(data, np.float64))


@given(FIELDS, ARRAYS, FIELDS, INDENTS, st.lists(st.tuples(st.integers(0, 500), SPOILS), min_size=1, max_size=3))
def test_the_same_refusals(
    before: dict[str, object],
    data: list[object],
    after: dict[str, object],
    indent: int | None,
    spoils: list[tuple[int, bytes]],
) -> None:
    text = body(before, data, after, indent)
    for at, spoil in spoils:
        at %= len(text)
        text = text[:at] + spoil + text[at:]
    in_pieces, at_once = outcome(text), whole(text)
    if isinstance(in_pieces, str) and isinstance(at_once, str) and in_pieces.startswith("InvalidFields"):
        return  # of several faults, the first that is met is told
    assert in_pieces == at_once


@given(ROWS, st.integers(0, 10**6), st.sampled_from(["x", None, True, [], {}, [1.0]]))
def test_where_a_value_is_wrong(data: list[list[object]], at: int, wrong: object) -> None:
    row, column = at % len(data), at % len(data[0])
    data[row][column] = wrong
    text = body({}, data, {}, None)
    assert outcome(text) == whole(text)
    assert f"data.{row}.{column}: expected a number" in outcome(text)


@given(ARRAYS, st.integers(0, 10**6), st.sampled_from(["NaN", "Infinity", "-Infinity"]), INDENTS)
def test_where_a_value_is_not_finite(data: list[object], at: int, token: str, indent: int | None) -> None:
    """As Python's json writes it, which is no JSON: it is found without a look at the whole."""
    row: list[object] = data[at % len(data)] if isinstance(data[0], list) else data  # type: ignore[assignment]
    column = at % len(row)
    row[column] = float(token)
    place = f"{at % len(data)}.{column}" if row is not data else column
    text = body({}, data, {}, indent)
    expected = whole(text)
    assert f"data.{place}: {token} is not a finite number" in expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_format, "_read_whole", lambda *_: None)
        assert outcome(text) == expected


@given(ROWS, st.integers(0, 10**6), st.sampled_from([[], [1.0] * 9]))
def test_where_a_row_is_of_another_length(data: list[list[object]], at: int, row: list[object]) -> None:
    index = 1 + at % len(data)
    text = body({}, [*data[:index], row, *data[index:]], {}, None)
    assert outcome(text) == whole(text)
    assert f"data.{index}: row {index} has {len(row)} values" in outcome(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"data": "[[1]]"}',
        b'{"data": "1,2"}',
        b'{"x": {"data": [[1]]}, "data": "\\u0000the array"}',
        b'{"x": [[1]], "data": 3}',
        b'{"a\\"data": [[1]], "data": 3}',
        b'{"x": "[[1", "data": [[2]], "y": "]]"}',
        b'{"data": [[1, 2], [3, 4]], "files": ["a"]}',
        b'{"data": [[1], [2]], "data": [[3]]}',
        b'{"data": [[1], [2]], "x": {"y": 1, "y": 2}}',
        b'{"data": [[1, 2], [3, 4], ]}',
        b'{"data": [[1, 2], , [3, 4]]}',
        b'{"data": [[1, 2], [3], [4]]}',
        b'{"data": [[], []]}',
        b'{"data": [[1, 2]], [[3, 4]]}',
        b'{"data": [1, 2, [3, 4]]}',
        b'{"data": [[1, 2], 3]}',
        b'{"data": [1, 2, ]}',
    ],
)
def test_bodies_that_are_easily_mistaken(text: bytes) -> None:
    assert outcome(text) == whole(text)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[[1,2]],"junk":[%s1]}' % (b"[]," * 30_000),
        b'{"junk":[%s1],"data":[[1,2]]}' % (b"[]," * 30_000),
        b'{"junk":[%s1]}' % (b"[]," * 30_000),
        b'{"data":[[1,2]],"junk":"%s"}' % (b"x" * 90_000),
    ],
    ids=["behind", "before", "alone", "text"],
)
def test_little_stands_beside_an_array(body: bytes) -> None:
    """It is read by what holds everybody up: 60 MB of it for 25 s."""
    with pytest.raises(InvalidFields, match=r"junk: 90\d\d\d bytes; all fields but data may have 65536 together"):
        json_format.read(bytearray(body), "data")
    within = b'{"data":{"base64":"AAAA","shape":[1,1],"junk":[%s1]}}' % (b"[]," * 30_000)
    with pytest.raises(InvalidFields, match="junk"):
        json_format.read(bytearray(within), "data")
