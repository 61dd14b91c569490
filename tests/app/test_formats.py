"""Every format in and every format out: the same numbers; and each format's own malformed bodies."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.errors import MalformedBody
from app.formats import csv_format, safetensors_format
from app.formats.answer import Answer
from app.http import bodies
from app.http.bodies import INLINE_BYTES
from demo.service import npy
from tests.app.conftest import D
from tests.app.test_bad_input import MOST_CPU_SECONDS

A = np.array([[1, 2.5, 3, 4], [0, 0, 0, 0], [0, 0.25, 0, 1], [7, 0, 0, 0]], np.float32)
Z = A @ D.T

Send = Callable[[TestClient, str, np.ndarray, dict[str, str]], Response]


def as_text(array: np.ndarray) -> dict[str, object]:
    return {
        "base64": base64.b64encode(array.tobytes()).decode(),
        "shape": array.shape,
        "dtype": array.dtype.name,
    }


def send_json(client: TestClient, path: str, array: np.ndarray, headers: dict[str, str]) -> Response:
    return client.post(path, json={"dictionary": "digits", "data": array.tolist()}, headers=headers)


def send_base64(client: TestClient, path: str, array: np.ndarray, headers: dict[str, str]) -> Response:
    body = {"dictionary": "digits", "data": as_text(array), "encoding_format": "base64"}
    return client.post(path, json=body, headers=headers)


def send_bytes(content_type: str | None, write: Callable[[np.ndarray], bytes]) -> Send:
    def send(client: TestClient, path: str, array: np.ndarray, headers: dict[str, str]) -> Response:
        told = headers if content_type is None else headers | {"content-type": content_type}
        return client.post(path, params={"dictionary": "digits"}, content=write(array), headers=told)

    return send


def csv(array: np.ndarray, newline: str = "\n") -> bytes:
    return newline.join(",".join(map(str, row)) for row in array.tolist()).encode()


def quoted(text: bytes) -> bytes:
    return b'"' + text.replace(b",", b'","').replace(b"\n", b'"\n"') + b'"'


IN: dict[str, Send] = {
    "json": send_json,
    "base64": send_base64,
    "npy": send_bytes("application/x-npy", npy),
    "npy, untold": send_bytes(None, npy),
    "safetensors": send_bytes("application/vnd.safetensors", lambda x: safetensors.numpy.save({"data": x})),
    "safetensors, untold": send_bytes(None, lambda x: safetensors.numpy.save({"other": x})),
    "csv": send_bytes("text/csv", csv),
    "csv with a byte-order mark, untold": send_bytes(None, lambda x: b"\xef\xbb\xbf" + csv(x)),
    "csv with quotes, untold": send_bytes(None, lambda x: quoted(csv(x))),
    "csv, untold": send_bytes("application/x-www-form-urlencoded", csv),
    "csv, with a header": send_bytes(
        "text/csv; header=present",
        lambda x: ",".join("abcd"[: x.shape[1]]).encode() + b"\r\n" + csv(x, "\r\n") + b"\r\n\r\n",
    ),
    "csv, quoted": send_bytes("text/csv", lambda x: quoted(csv(x))),
}


def read_json(answer: Response, name: str) -> np.ndarray:
    told = answer.json()[name]
    if isinstance(told, dict):
        return np.frombuffer(base64.b64decode(told["base64"]), told["dtype"]).reshape(told["shape"])
    return np.array(told)


OUT: dict[str, Callable[[Response, str], np.ndarray]] = {
    "application/json": read_json,
    "application/x-npy": lambda answer, _: np.load(io.BytesIO(answer.content), allow_pickle=False),
    "application/vnd.safetensors": lambda answer, name: safetensors.numpy.load(answer.content)[name],
    "text/csv": lambda answer, _: np.loadtxt(io.StringIO(answer.text), np.float32, delimiter=",", ndmin=2),
}


@pytest.mark.parametrize("accept", OUT)
@pytest.mark.parametrize("send", IN.values(), ids=IN.keys())
def test_every_format_in_and_every_format_out(client: TestClient, digits: str, send: Send, accept: str) -> None:
    encoded = send(client, "/encode", A, {"accept": accept})
    assert encoded.status_code == 200, encoded.text
    assert encoded.headers["content-type"].partition(";")[0] == accept
    told = {name: encoded.headers[f"dictserve-{name}"] for name in ("dictionary", "version", "converged")}
    assert told == {"dictionary": "digits", "version": "1", "converged": "true"}
    np.testing.assert_array_equal(OUT[accept](encoded, "codes"), Z)

    decoded = send(client, "/decode", Z, {"accept": accept})
    np.testing.assert_array_equal(OUT[accept](decoded, "activations"), Z @ D)


@pytest.mark.parametrize("send", [IN["npy"], IN["json"], IN["csv"]])
def test_the_answer_is_in_the_requests_format_by_default(client: TestClient, digits: str, send: Send) -> None:
    sent = {IN["npy"]: "application/x-npy", IN["json"]: "application/json", IN["csv"]: "text/csv"}[send]
    assert send(client, "/encode", A, {"accept": "*/*"}).headers["content-type"].startswith(sent)


def dense(parts: dict[str, np.ndarray]) -> np.ndarray:
    from scipy.sparse import csr_array

    return csr_array((parts["values"], parts["indices"], parts["indptr"]), shape=tuple(parts["shape"])).toarray()


@pytest.mark.parametrize("accept", ["application/json", "application/vnd.safetensors"])
def test_sparse_codes_are_the_dense_ones(client: TestClient, digits: str, accept: str) -> None:
    answer = client.post("/encode?dictionary=digits&sparse=true", content=npy(A), headers={"accept": accept})
    names = ("shape", "indptr", "indices", "values")
    parts = {name: OUT[accept](answer, name) for name in names}
    np.testing.assert_array_equal(dense(parts), Z)
    assert "codes" not in (answer.json() if accept == "application/json" else safetensors.numpy.load(answer.content))
    assert len(parts["values"]) == np.count_nonzero(Z)


def test_top_k_keeps_the_largest_of_each_row(client: TestClient, digits: str) -> None:
    answer = client.post("/encode", json={"dictionary": digits, "data": A.tolist(), "top_k": 1}).json()
    expected = np.where(Z.max(axis=1, keepdims=True) == Z, Z, 0)
    np.testing.assert_array_equal(
        dense({name: np.array(answer[name]) for name in answer if name != "dictionary"}), expected
    )
    more = client.post("/encode", json={"dictionary": digits, "data": A.tolist(), "top_k": 99}).json()
    assert len(more["values"]) == np.count_nonzero(Z)


def test_reconstruct_adds_each_rows_error(client: TestClient, digits: str) -> None:
    answer = client.post("/encode", json={"dictionary": digits, "data": A.tolist(), "reconstruct": True}).json()
    assert answer["codes"] == Z.tolist()
    assert answer["relative_error"] == Z.max(axis=1).tolist()  # what the double tells


@pytest.mark.parametrize("extra", ["sparse=true", "top_k=3", "reconstruct=true"])
def test_several_arrays_need_a_format_that_holds_them(client: TestClient, digits: str, extra: str) -> None:
    path = f"/encode?dictionary=digits&{extra}"
    refused = client.post(path, content=npy(A), headers={"accept": "application/x-npy"})
    assert (refused.status_code, refused.json()["type"]) == (406, "not-acceptable")
    assert "application/vnd.safetensors" in refused.json()["detail"]
    unasked = client.post(path, content=npy(A))
    assert unasked.headers["content-type"] == "application/vnd.safetensors"


def test_an_answer_in_base64_can_be_posted_back(client: TestClient, digits: str) -> None:
    encoded = send_base64(client, "/encode", A, {}).json()
    assert encoded["codes"] == as_text(Z) | {"shape": list(Z.shape)}
    body = {"dictionary": digits, "data": encoded["codes"]}
    assert client.post("/decode", json=body).json()["activations"] == (Z @ D).tolist()


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "int64"])
def test_dtypes_in_base64_and_safetensors(client: TestClient, digits: str, dtype: str) -> None:
    array = np.array([[1, 2, 3, 4]], dtype)
    as_base64 = client.post("/encode", json={"dictionary": digits, "data": as_text(array)})
    content = safetensors.numpy.save({"data": array})
    as_safetensors = client.post("/encode?dictionary=digits", content=content, headers={"accept": "application/json"})
    assert as_base64.json()["codes"] == as_safetensors.json()["codes"] == (array @ D.T).tolist()


@pytest.mark.parametrize("lead", range(4))
def test_a_safetensors_array_is_a_view_of_the_body(lead: int) -> None:
    body = bytearray(safetensors.numpy.save({"data": A}, metadata={"of": "x" * lead}))
    array = safetensors_format.read(body, "data")["data"]
    np.testing.assert_array_equal(array, A)
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


def test_bfloat16_is_read(client: TestClient, digits: str) -> None:
    import torch
    from safetensors.torch import save

    content = save({"data": torch.tensor(A).bfloat16()})
    answer = client.post("/encode?dictionary=digits", content=content, headers={"accept": "application/json"})
    assert answer.json()["codes"] == Z.tolist()  # A's values are exact in bfloat16


def header(content: dict[str, object]) -> bytes:
    return framed(json.dumps(content).encode())


def framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]}
BAD_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "header beyond the body": ((10**6).to_bytes(8, "little") + b"{}", "header"),
    "header no JSON": ((8).to_bytes(8, "little") + b"{nonsens", "header"),
    "cut off": (header({"data": F32}) + bytes(15), "safetensors"),
    "too long": (header({"data": F32}) + bytes(17), "safetensors"),
    "overlapping": (header({"data": F32, "x": F32}) + bytes(16), "safetensors"),
    "size not matching shape": (header({"data": F32 | {"shape": [2, 4]}}) + bytes(16), "safetensors"),
    "huge shape": (header({"data": F32 | {"shape": [2**40, 2**40]}}) + bytes(16), "safetensors"),
    "no tensor": (header({}), "named 'data'"),
    "two tensors, none named so": (
        header({"a": F32, "b": F32 | {"data_offsets": [16, 32]}}) + bytes(32),
        "it has 'a', 'b'",
    ),
    "a gap": (header({"data": F32, "x": F32 | {"data_offsets": [20, 36]}}) + bytes(36), "safetensors"),
    "offsets backwards": (header({"data": F32 | {"data_offsets": [16, 0]}}) + bytes(16), "safetensors"),
    "negative size": (header({"data": F32 | {"shape": [-1, -4]}}) + bytes(16), "header"),
    "a name twice": (framed(b'{"data": %s, "data": %s}' % (2 * (json.dumps(F32).encode(),))) + bytes(16), "twice"),
    "metadata no strings": (header({"__metadata__": {"a": 1}, "data": F32}) + bytes(16), "header"),
    "of no row of 1e25 numbers": (
        header({"data": F32 | {"shape": [0, 10**25], "data_offsets": [0, 0]}}),
        "`$.shape[1]`",
    ),
    "of no row of 2**62 numbers": (
        header({"data": F32 | {"shape": [0, 2**62], "data_offsets": [0, 0]}}),
        "no arrays of shape (0, 4611",
    ),
    "of 1000 numbers of 4000 digits": (header({"data": F32 | {"shape": [10**4000] * 1000}}), "`$.shape[0]`"),
    "of 100 dimensions": (header({"data": F32 | {"shape": [1] * 99 + [4]}}) + bytes(16), "100 dimensions"),
    "header beyond the library's limit": ((2**40).to_bytes(8, "little") + b"{" + bytes(64), "header"),
    "boolean": (header({"data": {"dtype": "BOOL", "shape": [1, 4], "data_offsets": [0, 4]}}) + bytes(4), "BOOL"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS.keys())
def test_malformed_safetensors(client: TestClient, digits: str, case: tuple[bytes, str]) -> None:
    content, detail = case
    headers = {"content-type": "application/vnd.safetensors"}
    answer = client.post("/encode?dictionary=digits", content=content, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "malformed-body"), answer.text
    assert detail in answer.json()["detail"]
    assert IN["safetensors"](client, "/encode", A, {}).status_code == 200


BAD_CSV: dict[str, tuple[bytes, int, str]] = {
    "a word": (b"1,2,3,4\n1,2,x,4\n", 400, "line 2, column 3: 'x' is not a number"),
    "decimal commas": (b'"1,5";2;3;4\n"1,5";2;3;4\n', 400, "line 1, column 1: '1,5;2;3;4' is no number, nor"),
    "decimal commas later": (
        b'1,2,3,4\n"1,5";2;3;4\n',
        400,
        "line 2: a quote belongs before and after a whole number",
    ),
    "a row of nothing": (b",,,\n1,2,3,4\n", 400, "line 1, column 1: '' is no number, nor a column's name"),
    "a row of NA": (b"x,NA,x,x\n1,2,3,4\n", 400, "line 1, column 2: 'NA' is no number, nor a column's name"),
    "a row of quoted decimal commas": (b'"0,5","1,5"\n1,2\n', 400, "line 1, column 1: '0,5' is no number"),
    "units": (b"1.5x,2.5x,3x,-4x\n1,2,3,4\n", 400, "line 1, column 1: '1.5x' is no number"),
    "semicolons": (
        b"1;2;3;4\n1;2;3;4\n",
        400,
        "'1;2;3;4' is no number, nor a column's name in a header; values stand between commas",
    ),
    "tabs below a header": (b"x\n1\t2\n", 400, "line 2, column 1: '1\\t2' is not a number; values stand between"),
    "spaces and a comma": (
        b"1 -2,3\n",
        400,
        "'1 -2' is not a number (a header line would hold none); values stand between commas",
    ),
    "spaces, in one line": (
        b"1.0e+00 2.0e+00\n",
        400,
        "taken for a header, for it holds no number; send at least one; values stand between commas",
    ),
    "pandas' names of columns": (b"0,1,2,3\n1,2,3,4\n", 400, "line 1 is 0,1,2,…: column names, as pandas writes"),
    "pandas' names, in quotes": (b'\n"0","1","2"\n\n1,2,3\n', 400, "line 2 is 0,1,2,…: column names"),
    "a header that is too narrow": (b"a,b\n1,2,3,4\n", 400, "line 1, a header, has 2 names, but line 2 4 values"),
    "a header of another line's": (b'\n"a,b","c"\n1,2,3,4\n', 400, "line 2, a header, has 2 names, but line 3 4"),
    "a decimal comma": (b'1,2,3,4\n1,"2,0",3,4\n', 400, "line 2: a quote belongs"),
    "a quote within a number": (b'1,2,3,4\n1,2,"3"5,4\n', 400, "line 2: a quote belongs"),
    "a quote before a number": (b'1,2,3,4"5"\n', 400, "line 1: a quote belongs"),
    "a quote that nothing closes": (b'1,2,3,"4', 400, "line 1: a quote belongs"),
    "digits of another script": ("1,2,3,٤\n".encode(), 400, "line 1, column 4: '٤' is not a number"),
    "ragged, after blank lines": (b"1,2,3,4\n\n\n1,2,3\n", 400, "line 4 has 3 values, but line 1 has 4"),
    "an empty field": (b"1,2,,4\n", 400, "line 1, column 3: '' is not a number"),
    "a word in the only line": (
        b"1,2,x,4",
        400,
        "line 1, column 3: 'x' is not a number (a header line would hold none)",
    ),
    "a word in the first line": (b"1,2,x,4\n1,2,3,4\n", 400, "line 1, column 3: 'x' is not a number"),
    "a header alone": (b"\na,b\n", 400, "no row of numbers: line 2 was taken for a header"),
    "blank lines": (b"\n\n", 400, "no row of numbers; send"),
    "two headers": (b"a,b\nc,d\n1,2\n", 400, "line 2, column 1: 'c'"),
    "no text": (b"1,2\xff", 400, "not UTF-8"),
    "NaN": (b"1,2,3,4\n1,nan,3,4", 422, "row 1, column 1"),
    "infinity": (b"1,2,inf,4", 422, "row 0, column 2"),
    "negative": (b"1,2,3,-4", 422, "negative"),
    "1e999": (b"1,2,3,1e999", 422, "row 0, column 3"),
    "underscores": (b"1,2,3,1_0\n1,2,3,1_0", 400, "not a number"),
    "too narrow": (b"1,2,3", 422, "3 columns"),
}


@pytest.mark.parametrize("case", BAD_CSV.values(), ids=BAD_CSV.keys())
def test_malformed_csv(client: TestClient, digits: str, case: tuple[bytes, int, str]) -> None:
    content, status, detail = case
    answer = client.post("/encode?dictionary=digits", content=content, headers={"content-type": "text/csv"})
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]
    assert IN["csv"](client, "/encode", A, {}).status_code == 200


@pytest.mark.parametrize(
    "text", ["0,1,2,3", "0,1\n2,3", "a,b,c\n0,1,2\n3,4,5", "0.0,1.0,2.0\n3,4,5", "0,1,2,4\n0,1,2,3"]
)
def test_rows_that_are_no_names_of_columns_are_read(text: str) -> None:
    rows = [line.split(",") for line in text.splitlines() if "a" not in line]
    np.testing.assert_array_equal(
        csv_format.read(bytearray(text.encode()), "data")["data"], np.array(rows, np.float64)
    )


@pytest.mark.parametrize("filling", ["1", " ", "1 ", '"'], ids=["digits", "spaces", "both", "quotes"])
@pytest.mark.parametrize("before", ["", "1,2,3,4\n"], ids=["in the first line", "in the second"])
def test_a_long_field_that_is_no_number_is_told_soon(
    client: TestClient, digits: str, before: str, filling: str
) -> None:
    """It is parsed where it may hold up all else."""
    content = before + filling * (200_000 // len(filling)) + "x,2,3,4\n1,2,3\n"
    begun = time.process_time()
    answer = client.post("/encode?dictionary=digits", content=content, headers={"content-type": "text/csv"})
    assert time.process_time() - begun < MOST_CPU_SECONDS
    assert answer.status_code == 400, answer.text
    assert len(answer.content) <= 8192


@pytest.mark.parametrize("send", [IN["safetensors"], IN["csv"]])
def test_fits_take_every_format(client: TestClient, send: Send) -> None:
    content = {IN["safetensors"]: safetensors.numpy.save({"data": A}), IN["csv"]: csv(A)}[send]
    answer = client.post("/fit?name=a&nb_concepts=2", content=content, headers={"prefer": "wait=10"})
    assert answer.json()["state"] == "succeeded", answer.text


def test_a_large_npy_answer_comes_in_pieces_and_whole(client: TestClient, digits: str) -> None:
    rows = np.random.default_rng(0).random((200_000, 4), np.float32)
    answer = client.post(f"/encode?dictionary={digits}", content=npy(rows))
    assert int(answer.headers["content-length"]) == len(answer.content)
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), rows @ D.T)


# -- CSV in pieces ----------------------------------------------------------------------------------------


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_format, "PIECE_BYTES", 7)


def rows_of(width: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(0, 999), min_size=width, max_size=width), min_size=1, max_size=30)


@given(
    st.integers(1, 4).flatmap(rows_of),
    st.sampled_from(["\n", "\r\n", "\n\n", "\r"]),
    st.booleans(),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_is_the_same_in_pieces(
    short_pieces: None, rows: list[list[int]], newline: str, has_header: bool, ends: bool
) -> None:
    lines = [",".join(map(str, row)) for row in rows]
    assume(has_header or lines[0] not in ("0,1,2", "0,1,2,3"))
    if has_header:
        lines.insert(0, ",".join("abcd"[: len(rows[0])]))
    text = newline.join(lines) + newline * ends
    (array,) = csv_format.read(bytearray(b"\xef\xbb\xbf" + text.encode()), "data").values()
    np.testing.assert_array_equal(array, rows)
    written = csv_format.write(Answer({}, {"data": array}))
    whole = written if isinstance(written, bytes) else b"".join(written)
    np.testing.assert_array_equal(np.loadtxt(io.BytesIO(whole), delimiter=",", ndmin=2), rows)


def test_a_line_without_an_end_is_refused_unread(short_pieces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 48 MB held everybody up for 1.7 s."""
    monkeypatch.setattr(csv_format, "LINE_BYTES", 1000)
    csv_format.read(bytearray(b"1,2\n" * 10 + b",".join([b"1.5"] * 240)[:2] + b",2\n"), "data")
    with pytest.raises(MalformedBody, match="a line of more than 1000 bytes"):
        csv_format.read(bytearray(b"1,2\n" * 10 + b",".join([b"1.5"] * 400)), "data")


def test_large_answers_as_text_are_written_aside(
    client: TestClient, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by = []
    write = bodies.array_answer

    def noted(*given: Any) -> Any:
        written_by.append(threading.current_thread().name)
        return write(*given)

    monkeypatch.setattr(bodies, "array_answer", noted)
    codes = np.ones((INLINE_BYTES, 2), np.float32)
    for accept in ("application/json", "text/csv"):
        answer = client.post("/decode?dictionary=digits", content=npy(codes), headers={"accept": accept})
        assert answer.status_code == 200
    assert all(name.startswith("parse") for name in written_by)
    assert len(written_by) == 2


MALFORMED_CSV = {name: case for name, case in BAD_CSV.items() if case[1] == 400}


@pytest.mark.parametrize("case", MALFORMED_CSV.values(), ids=MALFORMED_CSV.keys())
def test_what_is_wrong_in_a_piece_is_told_as_of_the_whole(short_pieces: None, case: tuple[bytes, int, str]) -> None:
    content, _, detail = case
    with pytest.raises(MalformedBody) as refused:
        csv_format.read(bytearray(content), "data")
    assert detail in str(refused.value)


def test_what_is_wrong_in_a_later_piece_is_told_with_its_place(short_pieces: None) -> None:
    rows = b"1,2,3\n" * 50
    for wrong, told in (
        (b"1,2\n", "line 51 has 2 values, but line 1 has 3"),
        (b"1,2,x\n", "line 51, column 3: 'x' is not a number"),
        (b"a,b,c\n", "line 51, column 1: 'a' is not a number"),
        (b"1,2,\xff\n", "the CSV is not UTF-8: invalid start byte at byte 304"),
    ):
        with pytest.raises(MalformedBody) as refused:
            csv_format.read(bytearray(rows + wrong + rows), "data")
        assert told in str(refused.value)
