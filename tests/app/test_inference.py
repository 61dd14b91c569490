"""``/v2``, the Open Inference Protocol: every route, and every error in the protocol's form."""

import gzip
import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response

from app import __version__
from app.errors import Overloaded
from app.formats import inference_format
from app.formats.answer import Content
from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from app.worker.messages import Key
from core.dictionary import Dictionary
from tests.app.conftest import D, WorkerDouble, publish

A = np.array([[1, 2, 3, 4], [0, 0, 0, 1]], np.float32)
Z = A @ D.T
LENGTH = "inference-header-content-length"


def tensor(array: np.ndarray, name: str = "activations", datatype: str = "FP32") -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.tolist()}


def infer(client: TestClient, path: str = "digits", **request: object) -> Response:
    return client.post(f"/v2/models/{path}/infer", json={"inputs": [tensor(A)]} | request)


def infer_bytes(
    client: TestClient, array: np.ndarray = A, headers: dict[str, str] | None = None, **request: object
) -> Response:
    body, length = in_bytes(array, **request)
    return client.post("/v2/models/digits/infer", content=body, headers={LENGTH: str(length)} | (headers or {}))


def in_bytes(array: np.ndarray, **request: object) -> tuple[bytes, int]:
    told = tensor(array) | {"parameters": {"binary_data_size": array.nbytes}}
    del told["data"]
    text = json.dumps({"inputs": [told]} | request).encode()
    return text + array.tobytes(), len(text)


def outputs(answer: Response) -> dict[str, np.ndarray]:
    """The outputs of an answer, wherever they stand in it."""
    assert answer.status_code == 200, answer.text
    dtypes = {"FP32": np.float32, "BOOL": np.bool_}
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    told, rest = json.loads(answer.content[:length]), answer.content[length:]
    arrays = {}
    for output in told["outputs"]:
        dtype = dtypes[output["datatype"]]
        if "parameters" in output:
            size = output["parameters"]["binary_data_size"]
            values, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        else:
            values = np.array(output["data"], dtype)
        arrays[output["name"]] = values.reshape(output["shape"])
    assert not rest
    return arrays


def error(answer: Response, status: int) -> str:
    """An error's words, once its form was found to be the protocol's."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (told,) = answer.json().items()
    assert told[0] == "error"
    message: str = told[1]
    assert message
    return message


class TestMetadata:
    def test_server(self, client: TestClient) -> None:
        assert client.get("/v2").json() == {
            "name": "dictserve",
            "version": __version__,
            "extensions": ["binary_tensor_data", "model_configuration"],  # nothing is loaded or unloaded
        }

    def test_health(self, client: TestClient, digits: str, worker: WorkerDouble) -> None:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2/models/digits/ready", "/v2/models/digits/versions/1/ready"):
            assert client.get(path).json() == {"name": digits, "ready": True}
        worker.alive = False
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/digits/ready"):
            answer = client.get(path)
            assert "no worker is ready" in error(answer, 503)
            assert int(answer.headers["retry-after"]) > 0

    def test_model(self, client: TestClient, store: Store, digits: str) -> None:
        publish(store, digits, 2 * D)
        expected = {
            "name": "digits",
            "versions": ["1", "2"],
            "platform": "dictserve_nmf",
            "inputs": [{"name": "activations", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [
                {"name": "codes", "datatype": "FP32", "shape": [-1, 2]},
                {"name": "converged", "datatype": "BOOL", "shape": [-1]},
                {"name": "relative_error", "datatype": "FP32", "shape": [-1]},
                {"name": "reconstruction", "datatype": "FP32", "shape": [-1, 4]},
            ],
        }
        for path in ("/v2/models/digits", "/v2/models/digits/versions/1"):
            assert client.get(path).json() == expected

    def test_configuration_tells_the_same(self, client: TestClient, digits: str) -> None:
        told = client.get("/v2/models/digits/config").json()
        assert told == client.get("/v2/models/digits/versions/1/config").json()
        assert (told["name"], told["max_batch_size"]) == (digits, 0)
        assert told["input"] == [{"name": "activations", "data_type": "TYPE_FP32", "dims": [-1, 4]}]
        assert told["output"][1] == {"name": "converged", "data_type": "TYPE_BOOL", "dims": [-1]}

    def test_index(self, client: TestClient, store: Store, digits: str, worker: WorkerDouble) -> None:
        assert client.post("/v2/repository/index").json() == [
            {"name": "digits", "version": "1", "state": "READY", "reason": ""}
        ]
        publish(store, digits, D)
        (store.root / "digits" / "2" / "meta.json").write_text("{")
        first, second = client.post("/v2/repository/index", json={}).json()
        assert first["state"] == "READY"
        assert (second["version"], second["state"]) == ("2", "UNAVAILABLE")
        assert "meta.json" in second["reason"]
        assert client.post("/v2/repository/index", json={"ready": True}).json() == [first]
        worker.alive = False
        assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        assert {state["state"] for state in client.post("/v2/repository/index").json()} == {"UNAVAILABLE"}

    @pytest.mark.parametrize(
        ("body", "status"),
        [(b"{", 400), (b"[]", 422), (b'{"x": 1}', 422), (b'{"ready": 1}', 422), (bytes(5000), 413)],
    )
    def test_bad_index_requests(self, client: TestClient, body: bytes, status: int) -> None:
        error(client.post("/v2/repository/index", content=body), status)


class TestInfer:
    def test_json(self, client: TestClient, digits: str) -> None:
        answer = infer(client, id="42")
        assert answer.headers["content-type"] == "application/json"
        assert LENGTH not in answer.headers
        assert answer.json() == {
            "model_name": digits,
            "model_version": "1",
            "parameters": {"converged": True},
            "id": "42",
            "outputs": [{"name": "codes", "datatype": "FP32", "shape": [2, 2], "data": Z.ravel().tolist()}],
        }

    def test_the_example_of_the_openapi_document(self, client: TestClient, digits: str) -> None:
        operation = client.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert outputs(infer(client, inputs=schema["properties"]["inputs"]["examples"][0]))["codes"].shape == (1, 2)

    def test_bytes(self, client: TestClient, digits: str) -> None:
        answer = infer_bytes(client, parameters={"binary_data_output": True})
        assert answer.headers["content-type"] == "application/octet-stream"
        np.testing.assert_array_equal(outputs(answer)["codes"], Z)

    @pytest.mark.parametrize("id_length", range(8))
    def test_bytes_at_any_offset_are_not_copied(
        self, client: TestClient, digits: str, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch, id_length: int
    ) -> None:
        """The rows that reach the worker's side are a view of the body, wherever in it they begin."""
        solve, roots = worker.solve, []

        async def watched(key: Key, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
            root: object = rows[0]
            while isinstance(root, np.ndarray):
                root = root.base
            roots.append(root)
            return await solve(key, rows)

        monkeypatch.setattr(worker, "solve", watched)
        np.testing.assert_array_equal(outputs(infer_bytes(client, id="x" * id_length))["codes"], Z)
        assert isinstance(roots[0], memoryview)

    def test_a_row_alone_comes_back_as_one_row(self, client: TestClient, digits: str) -> None:
        np.testing.assert_array_equal(outputs(infer(client, inputs=[tensor(A[0])]))["codes"], Z[:1])
        np.testing.assert_array_equal(outputs(infer_bytes(client, A[0]))["codes"], Z[:1])

    def test_outputs_in_the_order_and_the_form_asked_for(self, client: TestClient, digits: str) -> None:
        asked = [
            {"name": "reconstruction"},
            {"name": "converged", "parameters": {"binary_data": True}},
            {"name": "relative_error", "parameters": {"binary_data": False}},
            {"name": "codes"},
        ]
        answer = infer_bytes(client, outputs=asked, parameters={"binary_data_output": True})
        told = json.loads(answer.content[: int(answer.headers[LENGTH])])["outputs"]
        assert ["data" in output for output in told] == [False, False, True, False]
        found = outputs(answer)
        assert list(found) == ["reconstruction", "converged", "relative_error", "codes"]
        np.testing.assert_array_equal(found["codes"], Z)
        np.testing.assert_array_equal(found["reconstruction"], Z @ D)
        np.testing.assert_array_equal(found["relative_error"], Z.max(axis=1))  # the double's idea of it
        assert found["converged"].tolist() == [True, True]

    def test_decode(self, client: TestClient, digits: str) -> None:
        answer = infer(client, inputs=[tensor(Z, "codes")], parameters={"task": "decode"})
        assert "parameters" not in answer.json()
        np.testing.assert_array_equal(outputs(answer)["activations"], Z @ D)

    def test_versions(self, client: TestClient, store: Store, digits: str) -> None:
        publish(store, digits, 2 * D)
        latest, first = infer(client), infer(client, "digits/versions/1")
        assert (latest.json()["model_version"], first.json()["model_version"]) == ("2", "1")
        np.testing.assert_array_equal(outputs(latest)["codes"], 2 * Z)
        np.testing.assert_array_equal(outputs(first)["codes"], Z)

    def test_clip(self, client: TestClient, digits: str) -> None:
        found = outputs(infer(client, inputs=[tensor(-A)], parameters={"clip": True}))
        np.testing.assert_array_equal(found["codes"], 0 * Z)

    def test_what_other_servers_take_is_no_error(self, client: TestClient, digits: str) -> None:
        parameters = {"sequence_id": 7, "sequence_start": True, "sequence_end": True, "priority": 1, "timeout": 5}
        assert infer(client, parameters=parameters, model_name=digits).status_code == 200
        assert infer(client, parameters={"sequence_id": "a"}, outputs=[]).status_code == 200

    def test_null_is_as_absent(self, client: TestClient, digits: str) -> None:
        told = tensor(A) | {"parameters": None}
        absent = infer(client, inputs=[told], outputs=None, parameters=None, id=None, model_name=None)
        assert absent.json() == infer(client).json()
        asked: list[object] = [{"name": "codes", "parameters": None}]
        answer = infer(client, outputs=asked, parameters={"binary_data_output": True})
        assert LENGTH in answer.headers

    def test_what_is_written_at_length_holds_nobody_up(
        self, client: TestClient, digits: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, threads = inference_format.write, []

        def watched(*args: Any) -> tuple[Content, int]:
            threads.append(threading.current_thread().name)
            return write(*args)

        monkeypatch.setattr(inference_format, "write", watched)
        many = np.ones((40_000, 4), np.float32)
        np.testing.assert_array_equal(outputs(infer_bytes(client, many))["codes"], many @ D.T)
        assert threads[-1].startswith("parse")
        in_bytes = infer_bytes(client, many, parameters={"binary_data_output": True})
        np.testing.assert_array_equal(outputs(in_bytes)["codes"], many @ D.T)
        assert not threads[-1].startswith("parse")  # nothing is copied

    def test_numbers_past_float32(
        self, client: TestClient, digits: str, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def solve(_: Key, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [Dictionary(3 * D).decode(rows[0]).numpy()]

        monkeypatch.setattr(worker, "solve", solve)
        codes = np.full((1, 2), 3e38, np.float32)
        told = error(infer(client, inputs=[tensor(codes, "codes")], parameters={"task": "decode"}), 422)
        assert told.endswith("rescale its codes")  # there is no other dtype to compute in

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_compressed_requests(self, client: TestClient, digits: str, coding: str) -> None:
        compress = {"gzip": gzip.compress, "deflate": zlib.compress}[coding]
        body, length = in_bytes(A)
        headers = {LENGTH: str(length), "content-encoding": coding}
        answer = client.post("/v2/models/digits/infer", content=compress(body), headers=headers)
        np.testing.assert_array_equal(outputs(answer)["codes"], Z)
        for damaged in (body, compress(body)[:-1], compress(body) + b"x"):
            told = error(client.post("/v2/models/digits/infer", content=damaged, headers=headers), 400)
            assert coding in told

    def test_other_codings(self, client: TestClient, digits: str) -> None:
        assert "'br'" in error(infer_bytes(client, headers={"content-encoding": "br"}), 415)


def changed(**changes: object) -> dict[str, object]:
    """A request with its input changed."""
    return {"inputs": [tensor(A) | changes]}


# id: (changes to the request, status, what the answer must say)
BAD_REQUESTS: dict[str, tuple[dict[str, object], int, str]] = {
    "no inputs": ({"inputs": []}, 422, "inputs: Expected `array` of length 1"),
    "two inputs": ({"inputs": [tensor(A), tensor(A)]}, 422, "inputs: Expected `array` of length 1"),
    "inputs no list": ({"inputs": {}}, 422, "inputs: Expected `array`, got `object`"),
    "unknown field": ({"input": []}, 422, "input: unknown field"),
    "unknown field that looks like a place": ({" - at `$.inputs[9]`": 1}, 422, "unknown field"),
    "unknown parameter": ({"parameters": {"clamp": True}}, 422, "parameters.clamp: unknown field"),
    "unknown task": ({"parameters": {"task": "train"}}, 422, "parameters.task: Invalid enum value 'train'"),
    "clip no boolean": ({"parameters": {"clip": "yes"}}, 422, "parameters.clip: Expected `bool`"),
    "priority no number": ({"parameters": {"priority": "high"}}, 422, "parameters.priority: Expected `int`"),
    "clip of codes": (
        {"inputs": [tensor(Z, "codes")], "parameters": {"task": "decode", "clip": True}},
        422,
        "clip",
    ),
    "id no string": ({"id": 7}, 422, "id: Expected `str"),
    "a long id": ({"id": "x" * 1025}, 422, "id: Expected `str` of length <= 1024"),
    "an id past all": ({"id": "x" * 70_000}, 422, "id: 70002 bytes; all fields but data may have 65536 together"),
    "many outputs": ({"outputs": [{}] * 30_000}, 422, "outputs: 90001 bytes"),
    "much of an input": (changed(name="x" * 70_000), 422, "inputs: 70"),
    "a long shape": (changed(shape=[1] * 40_000), 422, "inputs: 80"),
    "another model's name": ({"model_name": "faces"}, 422, "model_name: it is not 'digits'"),
    "wrong input": (changed(name="input0"), 422, "inputs.0.name: the input of encode is 'activations'"),
    "wrong input of a decode": ({"parameters": {"task": "decode"}}, 422, "the input of decode is 'codes'"),
    "no name": ({"inputs": [{"datatype": "FP32", "shape": [1], "data": [1]}]}, 422, "inputs.0.name: required"),
    "unknown datatype": (changed(datatype="BYTES"), 422, "inputs.0.datatype: 'BYTES' is not read; FP16"),
    "bool": (changed(datatype="BOOL"), 422, "'BOOL' is not read"),
    "no dimension": (changed(shape=[]), 422, "inputs.0.shape: Expected `array` of length >= 1"),
    "three dimensions": (changed(shape=[1, 2, 4]), 422, "inputs.0.shape: Expected `array` of length <= 2"),
    "variable shape": (changed(shape=[-1, 4]), 422, "inputs.0.shape.0: Expected `int` >= 1"),
    "no rows": (changed(shape=[0, 4], data=[]), 422, "inputs.0.shape.0: Expected `int` >= 1"),
    "a shape past int64": (changed(shape=[2**64, 4]), 422, "inputs.0.shape.0: Expected `int` <= "),
    "another shape": (changed(shape=[4, 2]), 422, "inputs.0.data: its shape is [2, 4], which does not make [4, 2]"),
    "too little data": (changed(data=[1, 2]), 422, "inputs.0.data: its shape is [2]"),
    "no data": (changed(data=[]), 422, "inputs.0.data: its shape is [0]"),
    "data null": (changed(data=None), 422, "inputs.0.data: expected an array of numbers, got null"),
    "data as text": (
        changed(data={"base64": "", "shape": [2, 4]}),
        422,
        "inputs.0.data: expected an array of numbers",
    ),
    "data of strings": (changed(data=["1"] * 8), 422, "inputs.0.data.0: expected a number, got str"),
    "data of booleans": (changed(data=[[1, 2, 3, True]] * 2), 422, "inputs.0.data.0.3: expected a number, got bool"),
    "ragged": (changed(data=[[1, 2, 3, 4], [1]]), 422, "inputs.0.data.1: row 1 has 1 values"),
    "too deep": (changed(data=[[[1, 2, 3, 4]]]), 422, "expected a number, got array"),
    "negative": (changed(data=[-1] * 8), 422, "inputs.0.data: activations hold 8 negative values"),
    "past float32": (changed(data=[1e39] * 8, datatype="FP64"), 422, "float32"),
    "a fraction in integers": (changed(data=[0.5] * 8, datatype="INT8"), 422, "inputs.0.data.0: 0.5 is no INT8"),
    "wrong width": ({"inputs": [tensor(A[:, :3])]}, 422, "3 columns, but dictionary digits@1 has 4 features"),
    "a size and no bytes": (
        changed(parameters={"binary_data_size": 32}),
        422,
        "inputs.0.data: an input has either data or binary_data_size",
    ),
    "shared memory": (
        changed(parameters={"shared_memory_region": "a"}),
        422,
        "inputs.0.parameters.shared_memory_region: unknown field",
    ),
    "unknown output": ({"outputs": [{"name": "labels"}]}, 422, "outputs.0.name: the outputs of encode are codes"),
    "an output of the other task": ({"outputs": [{"name": "activations"}]}, 422, "outputs.0.name"),
    "an output twice": ({"outputs": [{"name": "codes"}] * 2}, 422, "outputs.1.name: 'codes' is asked for twice"),
    "classification": (
        {"outputs": [{"name": "codes", "parameters": {"classification": 3}}]},
        422,
        "outputs.0.parameters.classification: unknown field",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_bad_requests(client: TestClient, digits: str, case: tuple[dict[str, object], int, str]) -> None:
    request, status, message = case
    assert message in error(infer(client, **request), status)
    assert infer(client).status_code == 200  # the next one is served


START = b'{"inputs": [{"name": "activations", "datatype": "FP32", "shape": [1, 4], '
SIZE = b'"parameters": {"binary_data_size": %d}}]}'
SIXTEEN = np.ones(4, np.float32).tobytes()

# id: (JSON, what follows it, the header, status, what the answer must say)
BAD_BODIES: dict[str, tuple[bytes, bytes, str | None, int, str]] = {
    "empty": (b"", b"", None, 400, "not valid JSON"),
    "no JSON": (b"hello", b"", None, 400, "not valid JSON"),
    "a list": (b"[]", b"", None, 422, "Expected `object`, got `array`"),
    "not UTF-8": (b'{"id": "\xff"}', b"", None, 400, "utf-8"),
    "nested too deep": (START + b'"data": ' + b"[" * 100_000, b"", None, 400, "deep"),
    "a key twice": (b'{"inputs": [{"name": "a", "name": "b"}]}', b"", None, 422, "required"),
    "a parameter twice": (
        START + b'"data": [1, 2, 3, 4]}], "parameters": {"clip": true, "clip": false}}',
        b"",
        None,
        400,
        "'clip' stands in the body twice",
    ),
    "inputs twice": (
        START + b'"data": [' + b"1, " * 30_000 + b'4]}], "inputs": [{}]}',
        b"",
        None,
        400,
        "bytes beside its data, of blanks or of keys that stand there twice",
    ),
    "blanks": (START + b'"data": [1, 2, 3, 4]}]' + b" " * 70_000 + b"}", b"", None, 400, "of blanks"),
    "NaN": (START + b'"data": [1, 2, NaN, 4]}]}', b"", None, 422, "inputs.0.data.2: NaN is not a finite number"),
    "infinity in rows": (
        START + b'"data": [[1, 2, -Infinity, 4]]}]}',
        b"",
        None,
        422,
        "inputs.0.data.0.2: -Infinity",
    ),
    "JSON cut off": (START, b"", None, 400, "truncated"),
    "a size that is too small": (START + SIZE % 12, SIXTEEN, "", 400, "takes 16 bytes, but binary_data_size is 12"),
    "a size that is too large": (START + SIZE % 20, SIXTEEN, "", 400, "binary_data_size is 20"),
    "a huge size": (START + SIZE % (2**62), SIXTEEN, "", 400, "takes 16 bytes"),
    "a size past int64": (START + SIZE % (2**64), SIXTEEN, "", 422, "binary_data_size: Expected `int` <="),
    "a size of 5000 digits": (START + SIZE.replace(b"%d", b"9" * 5000), SIXTEEN, "", 422, "out of range"),
    "a size of nothing": (START + SIZE % 0, b"", "", 400, "takes 16 bytes"),
    "a negative size": (START + SIZE % -16, SIXTEEN, "", 422, "binary_data_size: Expected `int` >= 0"),
    "too few bytes": (START + SIZE % 16, SIXTEEN[:-1], "", 400, "but 15 bytes follow"),
    "too many bytes": (START + SIZE % 16, SIXTEEN + b"x", "", 400, "but 17 bytes follow"),
    "no bytes": (START + SIZE % 16, b"", None, 400, "but 0 bytes follow"),
    "bytes that no input has": (START + b'"data": [1, 2, 3, 4]}]}', b"x", "", 400, "1 bytes follow the JSON, but"),
    "neither bytes nor data": (START[:-2] + b"}]}", b"", None, 422, "inputs.0.data: required"),
    "a header into the bytes": (START + SIZE % 16, SIXTEEN, "+1", 400, "not valid JSON"),
    "a header that ends too soon": (START + SIZE % 16, SIXTEEN, "-1", 400, "truncated"),
    "a header of nothing": (START + SIZE % 16, SIXTEEN, "0", 400, "truncated"),
    "a header past the end": (START + SIZE % 16, SIXTEEN, "10000", 400, "is 10000, but the body has"),
    "a huge header": (START + SIZE % 16, SIXTEEN, "999999999999999", 413, "bytes"),
    "a header of 5000 digits": (START + SIZE % 16, SIXTEEN, "9" * 5000, 400, "not a number of bytes"),
    "a header that is none": (START + SIZE % 16, SIXTEEN, "abc", 400, "'abc' is not a number of bytes"),
    "a negative header": (START + SIZE % 16, SIXTEEN, "-16 ", 400, "not a number of bytes"),
    "no header": (START + SIZE % 16, SIXTEEN, None, 400, "not valid JSON"),
    "NaN as bytes": (START + SIZE % 16, b"\xff" * 16, "", 422, "4 NaN or infinite values"),
    "an enormous shape": (
        START.replace(b"[1, 4]", b"[%d, %d]" % (2**62, 2**62)) + SIZE % 16,
        SIXTEEN,
        "",
        400,
        "binary_data_size is 16",
    ),
}


@pytest.mark.parametrize("case", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_bad_bodies(client: TestClient, digits: str, case: tuple[bytes, bytes, str | None, int, str]) -> None:
    text, rest, told, status, message = case
    # "" is a header that tells the truth, "+1" and "-1" one that misses it by a byte
    length = {"": str(len(text)), "+1": str(len(text) + 1), "-1": str(len(text) - 1)}.get(told or "", told)
    headers = {} if told is None else {LENGTH: str(length)}
    answer = client.post("/v2/models/digits/infer", content=text + rest, headers=headers)
    assert message in error(answer, status)
    assert len(answer.content) < 1000
    assert infer_bytes(client).status_code == 200


class TestLimits:
    @pytest.fixture
    def client(self, settings: Settings) -> Iterator[TestClient]:
        small = settings.model_copy(update={"max_body_bytes": 4096, "max_json_bytes": 1024, "max_rows": 100})
        with TestClient(create_app(small, supervisor=WorkerDouble(small)), raise_server_exceptions=False) as client:
            publish(Store(small.store), "digits", D)
            yield client

    def test_json(self, client: TestClient) -> None:
        assert "1024 bytes" in error(infer(client, id="x" * 1024), 413)
        assert "JSON may have 1024 bytes" in error(infer_bytes(client, id="x" * 1024), 413)

    def test_bytes(self, client: TestClient) -> None:
        assert "4096 bytes" in error(infer_bytes(client, np.ones((1000, 4), np.float32)), 413)

    def test_rows(self, client: TestClient) -> None:
        assert "at most 100" in error(infer_bytes(client, np.ones((101, 4), np.float32)), 422)

    @pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
    def test_what_inflates_past_the_limit(self, client: TestClient, compress: object) -> None:
        content = compress(bytes(2_000_000))  # type: ignore[operator]
        assert len(content) < 4096
        coding = "gzip" if compress is gzip.compress else "deflate"
        headers = {LENGTH: "100", "content-encoding": coding}
        answer = client.post("/v2/models/digits/infer", content=content, headers=headers)
        assert "inflates to more" in error(answer, 413)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/models/nope", 404, "no dictionary 'nope'"),
        ("GET", "/v2/models/nope/ready", 404, "no dictionary 'nope'"),
        ("GET", "/v2/models/nope/config", 404, "no dictionary 'nope'"),
        ("POST", "/v2/models/nope/infer", 404, "no dictionary 'nope'"),
        ("GET", "/v2/models/digits/versions/7", 404, "no version 7"),
        ("GET", "/v2/models/digits/versions/7/ready", 404, "no version 7"),
        ("POST", "/v2/models/digits/versions/7/infer", 404, "no version 7"),
        ("GET", "/v2/models/digits/versions/x", 422, "'x' is not a version"),
        ("GET", "/v2/models/digits/versions/0", 422, "'0' is not a version"),
        ("POST", "/v2/models/digits/versions/-1/infer", 422, "not a version"),
        ("GET", "/v2/models/%2e%2e", 422, "'..' is not a name"),
        ("GET", "/v2/models/.dictserve", 422, "is not a name"),
        ("GET", "/v2/models/stats", 404, "statistics are not kept"),
        ("GET", "/v2/models/digits/stats", 404, "Not Found: GET /v2/models/digits/stats"),
        ("POST", "/v2/repository/models/digits/load", 404, "Not Found: POST"),
        ("GET", "/v2/models/digits/infer", 405, "Method Not Allowed"),
        ("GET", "/v2/nothing", 404, "Not Found"),
    ],
)
def test_paths(client: TestClient, digits: str, method: str, path: str, status: int, message: str) -> None:
    request = {"inputs": [tensor(A)]} if method == "POST" else None
    assert message in error(client.request(method, path, json=request), status)


def test_errors_elsewhere_are_problems(client: TestClient) -> None:
    assert client.get("/v2x").headers["content-type"] == "application/problem+json"


def test_without_a_worker_the_answer_says_when_to_come_back(
    client: TestClient, digits: str, worker: WorkerDouble
) -> None:
    worker.alive = False
    answer = infer(client)
    assert "down" in error(answer, 503)
    assert int(answer.headers["retry-after"]) > 0
    worker.alive = True
    assert infer(client).status_code == 200


def test_what_does_not_fit_the_queue(client: TestClient, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise Overloaded("9 bytes of requests wait already")

    monkeypatch.setattr(client.app.state.services.batcher, "solve", full)  # type: ignore[attr-defined]
    answer = infer(client)
    assert "wait already" in error(answer, 503)
    assert answer.headers["retry-after"] == "1"


def test_an_error_of_the_service_is_told_without_details(
    client: TestClient, digits: str, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(worker, "solve", broken)
    assert "secret" not in error(infer(client), 500)


def test_a_damaged_version(client: TestClient, store: Store, digits: str) -> None:
    publish(store, digits, D)
    (store.root / "digits" / "2" / "meta.json").write_text("{")
    for answer in (client.get("/v2/models/digits"), client.get("/v2/models/digits/ready"), infer(client)):
        assert "meta.json of digits@2" in error(answer, 500)
    assert infer(client, "digits/versions/1").status_code == 200
