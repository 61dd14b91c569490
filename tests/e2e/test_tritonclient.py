"""Triton's own client, as people install it, against the real service."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from app import __version__
from demo.service import npy
from tests.e2e.conftest import Service

CLIENTS = 8
RNG = np.random.default_rng(0)
D = RNG.random((6, 20), np.float32)
A = RNG.random((40, 6), np.float32) @ D


@pytest.fixture(scope="module")
def service(shared: Service) -> Service:
    for version in (D, 2 * D):
        shared.client.put("/dictionaries/toy", content=npy(version)).raise_for_status()
    return shared


@pytest.fixture
def client(service: Service) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{service.port}", concurrency=CLIENTS) as client:
        yield client


def sent(array: np.ndarray, name: str = "activations", binary: bool = True) -> list[InferInput]:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return [tensor]


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def codes(client: InferenceServerClient, rows: np.ndarray = A, **options: object) -> np.ndarray:
    answer: InferResult = client.infer("toy", sent(rows), "1", **options)
    found = answer.as_numpy("codes")
    assert found is not None
    return found


def test_server(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    told = client.get_server_metadata()
    assert (told["name"], told["version"]) == ("dictserve", __version__)
    assert "binary_tensor_data" in told["extensions"]


def test_model(client: InferenceServerClient) -> None:
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "2")
    assert not client.is_model_ready("toy", "3")
    assert not client.is_model_ready("nope")
    told = client.get_model_metadata("toy", "1")
    assert told["versions"] == ["1", "2"]
    assert told["inputs"] == [{"name": "activations", "datatype": "FP32", "shape": [-1, 20]}]
    assert told["outputs"][0] == {"name": "codes", "datatype": "FP32", "shape": [-1, 6]}
    assert client.get_model_config("toy")["input"][0]["data_type"] == "TYPE_FP32"
    states = {(m["name"], m["version"]): m["state"] for m in client.get_model_repository_index()}
    assert states["toy", "1"] == states["toy", "2"] == "READY"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_bytes_and_json(client: InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    names = ("reconstruction", "codes", "converged", "relative_error")
    asked = [InferRequestedOutput(name, binary_data=binary_out) for name in names]
    answer = client.infer("toy", sent(A, binary=binary_in), "1", asked, request_id="seven")
    told = answer.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("seven", "toy", "1")
    assert told["parameters"] == {"converged": True}
    assert [output["name"] for output in told["outputs"]] == list(names)
    close(answer.as_numpy("codes") @ D, A)
    close(answer.as_numpy("reconstruction"), A)
    close(answer.as_numpy("relative_error"), np.zeros(len(A)))
    assert answer.as_numpy("converged").dtype == np.bool_
    assert answer.as_numpy("converged").all()


def test_the_same_codes_as_encode(service: Service, client: InferenceServerClient) -> None:
    answer = service.client.post("/encode", json={"dictionary": "toy@1", "data": A.tolist()}).raise_for_status()
    np.testing.assert_array_equal(codes(client), np.array(answer.json()["codes"], np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int32, np.int64])
def test_datatypes(client: InferenceServerClient, dtype: type) -> None:
    rows = (20 * A).astype(dtype)
    close(codes(client, rows), codes(client, rows.astype(np.float32)))


def test_bfloat16(client: InferenceServerClient) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")  # the client's own dependency
    rows = A.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(codes(client, rows), codes(client, rows.astype(np.float32)))


def test_one_row_alone(client: InferenceServerClient) -> None:
    close(codes(client, A[0]), codes(client)[:1])


def test_versions(client: InferenceServerClient) -> None:
    latest = client.infer("toy", sent(A))
    assert latest.get_response()["model_version"] == "2"
    close(latest.as_numpy("codes"), codes(client) / 2)


def test_decode(client: InferenceServerClient) -> None:
    Z = codes(client)
    close(client.infer("toy", sent(Z, "codes"), "1", parameters={"task": "decode"}).as_numpy("activations"), Z @ D)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(client: InferenceServerClient, coding: str) -> None:
    found = codes(client, request_compression_algorithm=coding, response_compression_algorithm=coding)
    np.testing.assert_array_equal(found, codes(client))


def test_what_other_servers_make_use_of(client: InferenceServerClient) -> None:
    options = {"sequence_id": 3, "sequence_start": True, "priority": 1, "timeout": 1_000_000}
    np.testing.assert_array_equal(codes(client, **options), codes(client))


@pytest.mark.parametrize(
    ("rows", "status", "message"),
    [
        (np.full((2, 20), np.nan, np.float32), "422", "40 NaN or infinite values"),
        (-A, "422", "negative values"),
        (A[:, :7], "422", "7 columns, but dictionary toy@2 has 20 features"),
        (A[None], "422", "shape"),
        (A > 0, "422", "'BOOL' is not read"),
    ],
    ids=["NaN", "negative", "width", "rank", "dtype"],
)
@pytest.mark.parametrize("binary", [True, False])
def test_bad_rows(client: InferenceServerClient, rows: np.ndarray, status: str, message: str, binary: bool) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.infer("toy", sent(rows, binary=binary))
    assert raised.value.status() == status
    # JSON with NaN is refused where the first one stands, before there is an array to count them in
    assert message in raised.value.message() or "data.0: NaN is not a finite number" in raised.value.message()
    assert codes(client).shape == (40, 6)


def test_unknown_names(client: InferenceServerClient) -> None:
    cases = [
        (lambda: client.infer("nope", sent(A)), "no dictionary 'nope'"),
        (lambda: client.infer("toy", sent(A), "9"), "no version 9"),
        (lambda: client.get_model_metadata("nope"), "no dictionary 'nope'"),
        (lambda: client.get_inference_statistics("toy"), "Not Found: GET /v2/models/toy/stats"),
        (lambda: client.load_model("toy"), "Not Found"),
        (lambda: client.get_system_shared_memory_status(), "Not Found"),
    ]
    for call, message in cases:
        with pytest.raises(InferenceServerException, match=message) as raised:
            call()
        assert raised.value.status() == "404"


def test_the_docs_python_runs(service: Service) -> None:
    docs = Path(__file__).parent.parent.parent / "docs" / "http.md"
    (code,) = re.findall(r"```python\n(.*?)```", docs.read_text(), re.DOTALL)
    service.client.put("/dictionaries/four-features", content=npy(np.eye(4, dtype=np.float32))).raise_for_status()
    code = code.replace("localhost:8000", f"localhost:{service.port}").replace('"toy"', '"four-features"')
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_at_once(client: InferenceServerClient) -> None:
    """Many requests under way on several connections: each gets its own answer."""
    expected = codes(client)
    waiting = [client.async_infer("toy", sent(row), "1", request_id=str(i)) for i, row in enumerate(A)]
    for index, request in enumerate(waiting):
        answer = request.get_result(timeout=30)
        assert answer.get_response()["id"] == str(index)
        close(answer.as_numpy("codes"), expected[index : index + 1])
    failed = client.async_infer("toy", sent(-A))
    with pytest.raises(InferenceServerException, match="negative"):
        failed.get_result(timeout=30)
