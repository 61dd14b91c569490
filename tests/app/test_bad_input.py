"""Bad input: a 4xx problem that names the field and what would be right, and the next request is served."""

import gzip
import io
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from demo.service import npy
from tests.app.conftest import D, WorkerDouble, publish

GOOD = [[1.0, 2.0, 3.0, 4.0]]
MOST_CPU_SECONDS = 8.0  # of this process's own: one is promised, on a machine with nothing else to do; it was minutes


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for all tests: it takes nothing of what it is sent here."""
    settings = Settings(store=tmp_path_factory.mktemp("bad-input") / "models")
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings)), raise_server_exceptions=False) as client:
        publish(Store(settings.store), "digits", D)
        yield client


@pytest.fixture
def digits(client: TestClient) -> str:
    """The name of the one dictionary that there is."""
    return "digits"


def body(**fields: object) -> bytes:
    return json.dumps({"dictionary": "digits", "data": GOOD} | fields).encode()


def raw(data: str) -> bytes:
    return b'{"dictionary": "digits", "data": %s}' % data.encode()


# id: (body, status, type, what the answer must say, where)
BAD_ENCODES: dict[str, tuple[bytes, int, str, str, list[object] | None]] = {
    "empty": (b"", 400, "malformed-body", "empty", None),
    "no format": (b"hello", 415, "unsupported-media-type", "application/json", None),
    "truncated": (b'{"dictionary": "digits", "data": [[1, 2', 400, "malformed-body", "truncated", None),
    "trailing garbage": (body() + b" x", 400, "malformed-body", "trailing", None),
    "byte-order mark": (b"\xef\xbb\xbf" + body(), 400, "malformed-body", "invalid character (byte 0)", None),
    "invalid UTF-8": (b'{"dictionary": "\xff", "data": [[1]]}', 400, "malformed-body", "utf-8", None),
    "a list": (b"[[1, 2]]", 400, "malformed-body", "JSON object", None),
    "key twice": (b'{"dictionary": "a", "data": [[1]], "data": [[2]]}', 400, "malformed-body", "'data'", None),
    "nested too deep": (b'{"data": ' + b"[" * 10_000, 400, "malformed-body", "deep", None),
    "key of an array as text twice": (
        raw('{"base64": "AACAPw==", "shape": [1, 1], "base64": "AAAAQA=="}'),
        400,
        "malformed-body",
        "'base64' stands in the body twice",
        None,
    ),
    "unknown field": (body(dictoinary=1), 422, "invalid-fields", "unknown field", ["dictoinary"]),
    "no dictionary": (b'{"data": [[1]]}', 422, "invalid-fields", "required", ["dictionary"]),
    "no data": (b'{"dictionary": "digits"}', 422, "invalid-fields", "required", ["data"]),
    "dictionary a number": (body(dictionary=3), 422, "invalid-fields", "string", ["dictionary"]),
    "dictionary a path": (body(dictionary="../x"), 422, "invalid-fields", "not a name", ["dictionary"]),
    "version no number": (body(dictionary="a@b"), 422, "invalid-fields", "not a version", ["dictionary"]),
    "clip a string": (body(clip="true"), 422, "invalid-fields", "boolean", ["clip"]),
    "unknown dictionary": (body(dictionary="nope"), 404, "unknown-dictionary", "'nope'", None),
    "unknown version": (body(dictionary="digits@7"), 404, "unknown-dictionary", "no version 7", None),
    "NaN": (raw("[[1, 2, 3, 4], [1, NaN, 3, 4]]"), 422, "invalid-fields", "NaN", ["data", 1, 1]),
    "infinity": (raw("[[1, 2, -Infinity, 4]]"), 422, "invalid-fields", "-Infinity", ["data", 0, 2]),
    "1e999": (raw("[[1, 2, 3, 1e999]]"), 422, "invalid-fields", "range", ["data", 0, 3]),
    "past float32": (raw("[[1, 2, 3, 1e39]]"), 422, "invalid-fields", "float32", ["data"]),
    "number as string": (raw('[[1, "1.5", 3, 4]]'), 422, "invalid-fields", "expected a number", ["data", 0, 1]),
    "true": (raw("[[1, 2, 3, true]]"), 422, "invalid-fields", "got bool", ["data", 0, 3]),
    "null": (raw("[[1, 2, 3, null]]"), 422, "invalid-fields", "got null", ["data", 0, 3]),
    "negative": (
        raw("[[1, 2, 3, 4], [1, -2, -3, 4]]"),
        422,
        "invalid-fields",
        "the first (-2) at row 1, column 1",
        ["data"],
    ),
    "ragged": (raw("[[1, 2, 3, 4], [1, 2]]"), 422, "invalid-fields", "row 1 has 2 values", ["data", 1]),
    "three dimensions": (
        raw("[[[1, 2, 3, 4]]]"),
        422,
        "invalid-fields",
        "got array; rows of numbers are wanted",
        ["data", 0, 0],
    ),
    "no rows": (raw("[]"), 422, "invalid-fields", "empty", ["data"]),
    "empty row": (raw("[[]]"), 422, "invalid-fields", "empty", ["data"]),
    "data a string": (raw('"abc"'), 422, "invalid-fields", "array of numbers", ["data"]),
    "data a number": (raw("3"), 422, "invalid-fields", "array of numbers", ["data"]),
    "data an object": (raw("{}"), 422, "invalid-fields", "base64", ["data"]),
    "base64 that is none": (
        raw('{"base64": "?", "shape": [1, 4]}'),
        422,
        "invalid-fields",
        "base64",
        ["data", "base64"],
    ),
    "base64 of another size": (raw('{"base64": "AAAA", "shape": [1, 4]}'), 422, "invalid-fields", "16 bytes", None),
    "base64 of 1e18 numbers": (raw('{"base64": "", "shape": [1e9, 1e9]}'), 422, "invalid-fields", "shape", None),
    "base64 of no row of 1e25 numbers": (
        raw('{"base64": "", "shape": [0, 10000000000000000000000000]}'),
        422,
        "invalid-fields",
        "shape",
        ["data", "shape"],
    ),
    "base64 of no row of 2**60 numbers": (
        raw(f'{{"base64": "", "shape": [0, {2**60}], "dtype": "float64"}}'),
        400,
        "malformed-body",
        "no arrays of shape (0, 1152921504606846976)",
        None,
    ),
    "base64 of a number of thousands of digits": (
        raw('{"base64": "", "shape": [1%s]}' % ("0" * 4000)),
        422,
        "invalid-fields",
        "shape",
        ["data", "shape"],
    ),
    "base64 of 100 dimensions": (
        raw(f'{{"base64": "AAAAAA==", "shape": {[1] * 100}}}'),
        422,
        "invalid-fields",
        "shape",
        ["data", "shape"],
    ),
    "base64 of another dtype": (
        raw('{"base64": "", "shape": [], "dtype": "O"}'),
        422,
        "invalid-fields",
        "dtype",
        None,
    ),
    "base64 and an unknown field": (raw('{"base64": "", "shape": [], "x": 1}'), 422, "invalid-fields", "`x`", None),
    "top_k of nothing": (body(top_k=0), 422, "invalid-fields", "greater than or equal to 1", ["top_k"]),
    "too wide": (
        raw("[[1, 2, 3, 4, 5]]"),
        422,
        "invalid-fields",
        "5 columns, but dictionary digits@1 has 4",
        ["data"],
    ),
}


@pytest.mark.parametrize("case", BAD_ENCODES.values(), ids=BAD_ENCODES.keys())
def test_bad_encode(client: TestClient, digits: str, case: tuple[bytes, int, str, str, list[object] | None]) -> None:
    content, status, type, detail, loc = case
    answer = client.post("/encode", content=content)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, type), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert detail in problem["detail"]
    if loc is not None:
        assert problem["errors"][0]["loc"] == loc
    assert len(answer.content) < 1000
    assert client.post("/encode", content=body()).status_code == 200  # the next one is served


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbf" + body(), "character"),
        (body().decode().encode("utf-16"), "character"),
        (body().decode().encode("utf-16-le"), "malformed"),
        (b'{"dictionary": "digits", "data": [[1,2,3,4]], "data": [[1,2,3,4]]}', "'data'"),
    ],
    ids=["byte-order mark", "UTF-16", "UTF-16 without its mark", "a key twice"],
)
def test_declared_json_that_is_none(client: TestClient, digits: str, content: bytes, said: str) -> None:
    answer = client.post("/encode", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (400, "malformed-body"), answer.text
    assert said in answer.json()["detail"]


def keys(count: int) -> bytes:
    return b",".join(b'"k%d":1' % i for i in range(count))


def keys_one_twice() -> bytes:
    return b",".join(b'"k%d":"x"' % min(i, 99_999) for i in range(100_001))


# Made by the test that sends them: every process of a run reads this file, and one of them runs its tests.
LARGE_AND_BAD: dict[str, Callable[[], bytes]] = {
    "a million empty rows": lambda: raw("[" + "[]," * 999_999 + "[]]"),
    "a million rows, the last one ragged": lambda: raw("[" + "[1,2,3]," * 999_999 + "[1]]"),
    "a million rows, a string the last value": lambda: raw("[" + "[1,2,3]," * 999_999 + '[1,2,"x"]]'),
    "a string of 10 MB": lambda: raw('"' + "x" * 10_000_000 + '"'),
    "a number of 10 MB": lambda: raw("[[" + "9" * 10_000_000 + "]]"),
    "ten thousand brackets": lambda: raw("[" * 10_000 + "]" * 10_000),
    "a million brackets": lambda: raw("[" * 1_000_000),
    "a million keys": lambda: b'{"dictionary": "digits", ' + keys(1_000_000) + b"}",
    "a hundred thousand keys in a field, one twice": lambda: (
        b'{"dictionary": {%s}, "data": [[1]]}' % keys_one_twice()
    ),
    "four million keys": lambda: b"{" + keys(4_000_000) + b"}",
    "ten million rows of nothing": lambda: raw("[" + ",".join(["[]"] * 10_000_000) + "]"),
    "a key of 10 MB": lambda: b'{"' + b"k" * 10_000_000 + b'": 1}',
}


@pytest.mark.parametrize("make", LARGE_AND_BAD.values(), ids=LARGE_AND_BAD.keys())
def test_large_and_malformed_is_refused_soon(client: TestClient, digits: str, make: Callable[[], bytes]) -> None:
    content = make()
    begun = time.process_time()
    answer = client.post("/encode", content=content)
    assert time.process_time() - begun < MOST_CPU_SECONDS
    assert answer.status_code in (400, 422), answer.text
    assert len(answer.content) <= 8192


def test_one_of_many_labels_given_twice_is_told_soon(client: TestClient, digits: str) -> None:
    begun = time.process_time()
    answer = client.patch("/dictionaries/digits", content=b'{"labels": {%s}}' % keys_one_twice())
    assert time.process_time() - begun < MOST_CPU_SECONDS
    assert (answer.status_code, answer.json()["type"]) == (400, "malformed-body"), answer.text
    assert "'k99999' stands in the body twice" in answer.json()["detail"]


@pytest.mark.parametrize("field", ["labels", "concept_labels"])
@pytest.mark.parametrize("key", ["k%d", "é%d"], ids=["keys that are right", "keys that are not"])
def test_too_many_labels_are_told_soon(client: TestClient, digits: str, field: str, key: str) -> None:
    labels = {key % i: "x" for i in range(300_000)}
    begun = time.process_time()
    answer = client.patch("/dictionaries/digits", content=json.dumps({field: labels}, ensure_ascii=False).encode())
    assert time.process_time() - begun < MOST_CPU_SECONDS
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, [field]), answer.text
    assert "not 300000" in answer.json()["detail"]


def test_one_of_many_query_parameters_given_twice_is_told_soon(client: TestClient, digits: str) -> None:
    query = "&".join(f"{min(i, 9_999):x}" for i in range(10_001))
    begun = time.process_time()
    answer = client.post(f"/encode?{query}", content=npy(np.ones((1, 4), np.float32)))
    assert time.process_time() - begun < MOST_CPU_SECONDS
    assert answer.json()["errors"] == [{"loc": ["query", "270f"], "msg": "given more than once"}]


def header(descr: str = "'<f4'", shape: str = "(1, 4)", order: str = "False", more: str = "") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


BAD_NPY: dict[str, tuple[bytes, str]] = {
    "a claim of 1e12 elements": (header(shape="(1000000, 1000000)") + bytes(16), "but 16 follow"),
    "no row of 1e25 numbers": (header(shape="(0, 10000000000000000000000000)"), "no arrays of shape (0, 1000"),
    "no row of 2**62 numbers": (header(shape=f"(0, {2**62})"), "no arrays of shape (0, 4611"),
    "too short": (npy(np.ones((2, 4), np.float32))[:-1], "but 31 follow"),
    "too long": (npy(np.ones((2, 4), np.float32)) + b"x", "but 33 follow"),
    "header cut off": (npy(np.ones((2, 4)))[:40], "ends inside its header"),
    "magic alone": (b"\x93NUMPY", "ends inside its header"),
    "version 9": (b"\x93NUMPY\x09\x00" + bytes(100), "version 9"),
    "header of 60 000 bytes": (b"\x93NUMPY\x01\x00\x60\xea" + b" " * 60_000, "60000 bytes"),
    "code in the header": (header(descr="__import__('os').getcwd()") + bytes(16), "not a Python literal"),
    "object dtype": (header(descr="'|O'") + bytes(32), "'|O' is not read"),
    "structured dtype": (header(descr="[('a', '<f4')]") + bytes(16), "is not read"),
    "complex dtype": (header(descr="'<c8'") + bytes(32), "'<c8' is not read"),
    "boolean dtype": (header(descr="'|b1'") + bytes(4), "'|b1' is not read"),
    "string dtype": (header(descr="'<U4'") + bytes(64), "is not read"),
    "negative shape": (header(shape="(-1, 4)") + bytes(16), "not a tuple of sizes"),
    "size of 4700 digits": (header(shape=f"(0x{'f' * 3900},4)") + bytes(16), "more than any array"),
    "size of 4700 digits, and no tuple": (header(shape=f"0x{'f' * 3900}") + bytes(16), "not a tuple of sizes"),
    "shape no tuple": (header(shape="4") + bytes(16), "not a tuple of sizes"),
    "shape of booleans": (header(shape="(True, 4)") + bytes(16), "not a tuple of sizes"),
    "order no boolean": (header(order="0") + bytes(16), "True or False"),
    "key too many": (header(more=", 'x': 1") + bytes(16), "exactly the keys"),
    "deep literal": (header(shape="(" * 2000 + ")" * 2000) + bytes(16), "literal"),
}


@pytest.mark.parametrize("case", BAD_NPY.values(), ids=BAD_NPY.keys())
def test_malformed_npy(client: TestClient, digits: str, case: tuple[bytes, str]) -> None:
    content, detail = case
    for path in ("/encode?dictionary=digits", "/fit?name=a&nb_concepts=1"):
        answer = client.post(path, content=content)
        assert (answer.status_code, answer.json()["type"]) == (400, "malformed-body"), answer.text
        assert detail in answer.json()["detail"]
    assert client.post("/encode", content=body()).status_code == 200


@pytest.mark.parametrize(
    ("array", "detail"),
    [
        (np.full((2, 4), np.nan, np.float32), "NaN"),
        (np.float32([[1, 2, 3, -4]]), "negative"),
        (np.full((1, 4), 1e300), "float32"),
        (np.ones((1, 2, 4), np.float32), "3 dimensions (1, 2, 4); use (rows, features), as by x.reshape(-1, 4)"),
        (np.ones((0, 4), np.float32), "empty"),
        (np.float32(3), "0 dimensions"),
    ],
)
def test_wrong_values_in_npy(client: TestClient, digits: str, array: np.ndarray, detail: str) -> None:
    for path in ("/encode?dictionary=digits", "/fit?name=a&nb_concepts=1"):
        answer = client.post(path, content=npy(array))
        assert answer.status_code == 422, answer.text
        assert detail in answer.json()["errors"][0]["msg"]
        assert answer.json()["errors"][0]["loc"] == ["data"]


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("", "dictionary"),
        ("dictionary=digits&dictonary=x", "dictonary"),
        ("dictionary=digits&dictionary=x", "query"),
        ("dictionary=digits&data=1", "query"),
        ("dictionary=digits&files=a.npy", "files"),
        ("dictionary=digits&clip=perhaps", "clip"),
    ],
)
def test_wrong_query_beside_npy(client: TestClient, digits: str, query: str, loc: str) -> None:
    answer = client.post(f"/encode?{query}", content=npy(np.ones((1, 4), np.float32)))
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["loc"][0] == loc


def test_files_are_named_in_json_alone(client: TestClient) -> None:
    answer = client.post("/fit?name=a&nb_concepts=1&files=a.npy", content=npy(np.ones((1, 4), np.float32)))
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"] == [
        {"loc": ["query", "files"], "msg": "stands in a JSON body, in the place of data"}
    ]


@pytest.mark.parametrize("query", ["state=queued&state=failed", "limit=abc&limit=1"])
def test_a_filter_given_twice_is_told(client: TestClient, query: str) -> None:
    answer = client.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["detail"].count("given more than once")) == (422, 1), answer.text


@pytest.mark.parametrize("path", ["/decode", "/dictionaries/d"])
def test_what_is_never_clipped_is_not_said_to_be(client: TestClient, digits: str, path: str) -> None:
    fields = {"dictionary": "digits"} if path == "/decode" else {}
    answer = client.request("POST" if fields else "PUT", path, json={"data": [[1, -2]]} | fields)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["msg"].endswith("every value must be at least 0")


def test_json_after_many_blanks_is_json(client: TestClient, digits: str) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/encode", content=b"\n" * 100 + body(), headers=headers).status_code == 200


@pytest.mark.parametrize("accept", ["text/html", "text/csv"])
def test_a_record_is_json_whatever_is_accepted(settings: Settings, worker: WorkerDouble, accept: str) -> None:
    headers = {"accept": accept}
    with TestClient(create_app(settings, supervisor=worker)) as client:
        imported = client.put("/dictionaries/d", json={"data": GOOD}, headers=headers)
        assert (imported.status_code, imported.headers["content-type"]) == (201, "application/json")
        fitted = client.post("/fit", json={"name": "e", "nb_concepts": 1, "data": GOOD}, headers=headers)
        assert (fitted.status_code, fitted.headers["content-type"]) == (202, "application/json")


def test_query_beside_json_is_refused_rather_than_ignored(client: TestClient, digits: str) -> None:
    answer = client.post("/encode?dictionary=digits", content=body())
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["query", "dictionary"])


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"name": None}, ["name"]),
        ({"name": "a/b"}, ["name"]),
        ({"name": ".hidden"}, ["name"]),
        ({"name": "a."}, ["name"]),
        ({"name": "x" * 129}, ["name"]),
        ({"name": "digits@2"}, ["name"]),
        ({"name": "d\u0456gits"}, ["name"]),
        ({"nb_concepts": 0}, ["nb_concepts"]),
        ({"nb_concepts": "2"}, ["nb_concepts"]),
        ({"nb_concepts": 2.5}, ["nb_concepts"]),
        ({"nb_concepts": 10**9}, ["nb_concepts"]),
        ({"solver": "magic"}, ["solver"]),
        ({"max_iter": 0}, ["max_iter"]),
        ({"max_iter": 10**9}, ["max_iter"]),
        ({"tol": -1}, ["tol"]),
        ({"init": "zeros"}, ["init"]),
        ({"seed": -1}, ["seed"]),
        ({"max_iters": 3}, ["max_iters"]),
    ],
)
def test_bad_parameters_of_a_fit(client: TestClient, fields: dict[str, object], loc: list[object]) -> None:
    answer = client.post("/fit", json={"name": "a", "nb_concepts": 2, "data": GOOD} | fields)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["loc"] == loc
    assert client.get("/jobs").json()["jobs"] == []


def test_a_million_bad_numbers_make_a_small_answer(client: TestClient, digits: str) -> None:
    answer = client.post("/encode", content=raw("[" + ",".join(["[-1,-1,-1,-1]"] * 250_000) + "]"))
    assert answer.status_code == 422
    assert "1000000 negative values" in answer.json()["detail"]
    assert len(answer.content) <= 8192


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/xml"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "identity"}, 200),
        ({"accept": "text/html"}, 406),
        ({"accept": "application/json;q=0"}, 406),
    ],
)
def test_kinds_that_are_not_read_or_made(
    client: TestClient, digits: str, headers: dict[str, str], status: int
) -> None:
    assert client.post("/encode", content=body(), headers=headers).status_code == status


def test_a_compressed_body_is_told_how_to_be_sent(client: TestClient) -> None:
    answer = client.post("/encode", content=body(), headers={"content-encoding": "gzip"})
    assert answer.json()["detail"] == "Content-Encoding 'gzip' is not read; send the body uncompressed"


def test_what_curl_does_to_files_is_told(client: TestClient, digits: str) -> None:
    """``-F`` sends a form, and ``-d`` leaves out line feeds and zeros."""
    whole = npy(np.ones((2, 4), np.float32))
    form = client.post("/encode?dictionary=digits", files={"file": whole})
    assert (form.status_code, form.json()["detail"].endswith("(curl --data-binary @FILE)")) == (415, True)
    stripped = bytes(byte for byte in whole if byte not in b"\r\n\0")
    told = {"content-type": "application/x-www-form-urlencoded"}
    for headers, hint in ((told, True), ({"content-type": "application/x-npy"}, False)):
        answer = client.post("/encode?dictionary=digits", content=stripped, headers=headers)
        assert answer.status_code == 400
        assert ("--data-binary" in answer.json()["detail"]) == hint


def test_archives_without_a_type_are_told_what_they_are(client: TestClient, digits: str) -> None:
    arrays = io.BytesIO()
    np.savez(arrays, A=np.ones((2, 4), np.float32))
    for content, said in (
        (gzip.compress(npy(np.ones((2, 4), np.float32))), "send it as it was before"),
        (arrays.getvalue(), "npz"),
    ):
        answer = client.post("/encode?dictionary=digits", content=content)
        assert (answer.status_code, said in answer.json()["detail"]) == (415, True), answer.text


def test_rows_that_curls_d_has_made_one_are_not_fitted(client: TestClient, digits: str) -> None:
    """They can be read, as one row of more features; a row to encode may be typed in so."""
    joined, curls = b"1,2,34,5,67,8,9", {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post("/fit?name=joined&nb_concepts=1", content=joined, headers=curls)
    assert (answer.status_code, answer.json()["type"]) == (400, "malformed-body")
    assert "--data-binary" in answer.json()["detail"]
    assert client.post("/encode?dictionary=digits", content=b"1,2,3,4", headers=curls).status_code == 200
    for content in (b"1,2\n3,4\n", b"1;2\n3;4"):  # as --data-binary sends it: nothing was changed on its way
        answer = client.post("/encode?dictionary=digits", content=content, headers=curls)
        assert answer.status_code in (400, 422)
        assert "--data-binary" not in answer.text


class TestLimits:
    @pytest.fixture
    def client(self, settings: Settings) -> Iterator[TestClient]:
        small = settings.model_copy(update={"max_body_bytes": 4096, "max_json_bytes": 1024, "max_rows": 100})
        with TestClient(create_app(small, supervisor=WorkerDouble(small)), raise_server_exceptions=False) as client:
            publish(Store(small.store), "digits", np.ones((2, 4), np.float32))
            yield client

    def test_a_declared_size_over_the_limit(self, client: TestClient) -> None:
        answer = client.post("/encode", content=body(data=[[1.0] * 4] * 100))
        assert (answer.status_code, answer.json()["type"]) == (413, "body-too-large")
        assert "1024 bytes" in answer.json()["detail"]
        assert "DICTSERVE_MAX_JSON_BYTES" in answer.json()["detail"]

    def test_an_undeclared_size_that_passes_the_limit_on_the_way(self, client: TestClient) -> None:
        chunks = (npy(np.ones((500, 4), np.float32))[i : i + 1000] for i in range(0, 8128, 1000))
        answer = client.post("/fit?name=a&nb_concepts=1", content=chunks)
        assert (answer.status_code, answer.json()["type"]) == (413, "body-too-large")
        assert "DICTSERVE_MAX_BODY_BYTES" in answer.json()["detail"]

    def test_more_than_the_memory_for_all_bodies(self, settings: Settings) -> None:
        small = settings.model_copy(update={"bodies_bytes": 512})
        with TestClient(create_app(small, supervisor=WorkerDouble(small))) as client:
            answer = client.post("/encode?dictionary=a", content=npy(np.ones((500, 4), np.float32)))
        assert (answer.status_code, "DICTSERVE_BODIES_BYTES" in answer.json()["detail"]) == (413, True)

    def test_too_many_rows(self, client: TestClient) -> None:
        answer = client.post("/encode?dictionary=digits", content=npy(np.ones((101, 4), np.float32)))
        assert answer.status_code == 422
        assert "at most 100" in answer.json()["detail"]

    def test_refused_uploads_leave_no_file(self, client: TestClient, settings: Settings) -> None:
        for content in (npy(np.ones((500, 4))), npy(-np.ones((2, 4))), b"\x93NUMPY\x01\x00"):
            assert client.post("/fit?name=a&nb_concepts=1", content=content).status_code in (400, 413, 422)
        assert list(Store(settings.store).workplace.activations.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "path", "status", "type"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/encode", 405, "method-not-allowed"),
        ("GET", "/jobs/nope", 404, "unknown-job"),
        ("DELETE", "/jobs/nope", 404, "unknown-job"),
        ("GET", "/jobs?limit=0", 422, "invalid-fields"),
        ("GET", "/jobs?status=done", 422, "invalid-fields"),
        ("DELETE", "/jobs/nope?force=1", 422, "invalid-fields"),
        ("GET", "/dictionaries?name=x", 422, "invalid-fields"),
        ("GET", "/dictionaries/nope", 404, "unknown-dictionary"),
        ("GET", "/dictionaries/..%2f..%2fetc", 404, "not-found"),
        ("GET", "/dictionaries/%2e%2e", 422, "invalid-fields"),
        ("GET", "/dictionaries/%00", 422, "invalid-fields"),
        ("GET", "/dictionaries/.dictserve", 422, "invalid-fields"),
    ],
)
def test_every_error_is_a_problem(client: TestClient, method: str, path: str, status: int, type: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["type"]) == (status, type), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("method", "path"), [("GET", "/dictionaries"), ("POST", "/encode"), ("GET", "/jobs/none")])
def test_a_slash_too_many_is_told_and_sends_nobody_elsewhere(client: TestClient, method: str, path: str) -> None:
    """A redirect would be to what the Host header says, and have a POST's body sent again."""
    answer = client.request(method, f"{path}/", follow_redirects=False)
    assert (answer.status_code, answer.json()["type"]) == (404, "not-found")
    assert answer.json()["detail"] == f"Not Found: {method} {path}/; there is {path}"
    assert client.get("/nowhere/").json()["detail"] == "Not Found: GET /nowhere/"


def test_of_many_faults_the_first_are_told(client: TestClient) -> None:
    answer = client.post("/encode", json={f"field{number}": 1 for number in range(60)})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 20
    assert len(answer.content) <= 8192
