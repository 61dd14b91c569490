"""``/encode`` and ``/decode``: every format in and out, and the numbers that come back."""

import io
import threading

import numpy as np
import pytest
import safetensors.numpy
from fastapi.testclient import TestClient

from app.sparse import compressed_rows
from app.store.store import Store
from app.worker.frames import Rows
from app.worker.messages import Key
from demo.service import npy
from tests.app.conftest import D, WorkerDouble, publish

A = np.array([[1, 2, 3, 4], [0, 0, 0, 1]], np.float32)
Z = A @ D.T


def test_json_in_json_out(client: TestClient, digits: str) -> None:
    answer = client.post("/encode", json={"dictionary": digits, "data": A.tolist()})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"dictionary": "digits", "version": 1, "converged": True, "codes": Z.tolist()}


def test_npy_in_npy_out_with_scalars_in_headers(client: TestClient, digits: str) -> None:
    answer = client.post(
        "/encode", params={"dictionary": digits}, content=npy(A), headers={"content-type": "application/x-npy"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content), allow_pickle=False), Z)
    told = {name: answer.headers[f"dictserve-{name}"] for name in ("dictionary", "version", "converged")}
    assert told == {"dictionary": "digits", "version": "1", "converged": "true"}


@pytest.mark.parametrize("content_type", [None, "", "application/x-www-form-urlencoded", "application/octet-stream"])
def test_a_body_without_a_useful_type_is_told_by_its_first_bytes(
    client: TestClient, digits: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    as_json = client.post("/encode", content=b' \n{"dictionary": "digits", "data": [[1, 2, 3, 4]]}', headers=headers)
    as_npy = client.post("/encode", params={"dictionary": digits}, content=npy(A[:1]), headers=headers)
    assert as_json.json()["codes"] == Z[:1].tolist()
    np.testing.assert_array_equal(np.load(io.BytesIO(as_npy.content)), Z[:1])


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/x-npy", "application/x-npy"),
        ("*/*", "application/json"),
        ("text/html, application/x-npy;q=0.5, application/json;q=0.4", "application/x-npy"),
        ("application/*", "application/json"),
        ("application/json;q=0, */*", "application/x-npy"),
    ],
)
def test_accept_decides_the_format_of_the_answer(client: TestClient, digits: str, accept: str, expected: str) -> None:
    answer = client.post("/encode", json={"dictionary": digits, "data": A.tolist()}, headers={"accept": accept})
    assert answer.headers["content-type"] == expected


def test_one_row_may_stand_alone(client: TestClient, digits: str) -> None:
    answer = client.post("/encode", json={"dictionary": digits, "data": A[0].tolist()})
    assert answer.json()["codes"] == Z[:1].tolist()
    answer = client.post("/encode", params={"dictionary": digits}, content=npy(A[0]))
    assert np.load(io.BytesIO(answer.content)).shape == (1, 2)


@pytest.mark.parametrize(
    "array",
    [
        A.astype(np.float64),
        A.astype(np.float16),
        A.astype(np.int64),
        A.astype(np.uint8),
        A.astype(">f4"),
        np.asfortranarray(A),
    ],
    ids=["float64", "float16", "int64", "uint8", "big-endian", "fortran"],
)
def test_dtypes_and_layouts_are_read_right(client: TestClient, digits: str, array: np.ndarray) -> None:
    answer = client.post("/encode", params={"dictionary": digits}, content=npy(array))
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), Z)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_npy_is_read(client: TestClient, digits: str, version: tuple[int, int]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, A, version, allow_pickle=False)
    answer = client.post("/encode", params={"dictionary": digits}, content=file.getvalue())
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), Z)


def test_decode(client: TestClient, digits: str) -> None:
    answer = client.post("/decode", json={"dictionary": digits, "data": Z.tolist()})
    assert answer.json() == {"dictionary": "digits", "version": 1, "activations": (Z @ D).tolist()}
    answer = client.post("/decode", params={"dictionary": digits}, content=npy(Z))
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), Z @ D)


def test_a_name_means_its_latest_version_and_at_means_one(client: TestClient, store: Store, digits: str) -> None:
    publish(store, digits, 2 * D)
    latest = client.post("/encode", json={"dictionary": "digits", "data": A.tolist()}).json()
    first = client.post("/encode", json={"dictionary": "digits@1", "data": A.tolist()}).json()
    assert (latest["version"], latest["codes"]) == (2, (2 * Z).tolist())
    assert (first["version"], first["codes"]) == (1, Z.tolist())


def test_the_latest_that_is_removed_on_the_way_leaves_the_one_before(
    client: TestClient, store: Store, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed once the request was looked at, before the worker reads it."""
    solve = WorkerDouble.solve

    async def late(self: WorkerDouble, key: Key, rows: Rows) -> list[np.ndarray]:
        if key.version > 1:
            store.remove(key.name, [key.version])
        return await solve(self, key, rows)

    monkeypatch.setattr(WorkerDouble, "solve", late)
    publish(store, digits, 2 * D)
    answer = client.post("/encode", json={"dictionary": "digits", "data": A.tolist()})
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    publish(store, digits, 2 * D)
    gone = client.post("/encode", json={"dictionary": "digits@3", "data": A.tolist()})
    assert (gone.status_code, gone.json()["type"]) == (404, "unknown-dictionary")


def test_clip_makes_negatives_zero_on_request(client: TestClient, digits: str) -> None:
    answer = client.post("/encode", json={"dictionary": digits, "data": [[1, -2, 3, 4]], "clip": True})
    assert answer.json()["codes"] == (np.array([[1, 0, 3, 4]]) @ D.T).tolist()
    answer = client.post(
        "/encode", params={"dictionary": digits, "clip": "true"}, content=npy(np.float32([[1, -2, 3, 4]]))
    )
    assert answer.status_code == 200


def test_without_a_worker_the_answer_says_when_to_come_back(
    client: TestClient, digits: str, worker: WorkerDouble
) -> None:
    request = {"dictionary": digits, "data": A.tolist()}
    worker.alive = False
    answer = client.post("/encode", json=request)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["type"] == "worker-unavailable"
    worker.alive = True
    assert client.post("/encode", json=request).status_code == 200


def test_a_damaged_version_is_refused_and_hides_no_other(client: TestClient, store: Store, digits: str) -> None:
    publish(store, digits, 2 * D)
    weights = store.root / "digits" / "2" / "dictionary.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = client.post("/encode", json={"dictionary": "digits@2", "data": A.tolist()})
    assert (damaged.status_code, damaged.json()["type"]) == (500, "dictionary-damaged")
    assert "SHA-256" in damaged.json()["detail"]
    assert client.post("/encode", json={"dictionary": "digits@1", "data": A.tolist()}).status_code == 200


def test_float64_on_request(client: TestClient, digits: str) -> None:
    """A value that float32 rounds comes back whole, in every format."""
    A64 = np.array([[1 + 1e-12, 2, 3, 4]])
    Z64 = A64 @ D.T.astype(np.float64)
    fields = {"dictionary": digits, "dtype": "float64"}
    as_json = client.post("/encode", json={**fields, "data": A64.tolist()})
    assert as_json.json()["codes"] == Z64.tolist()
    assert client.post("/encode", json={"dictionary": digits, "data": A64.tolist()}).json()["codes"] != Z64.tolist()
    as_text = client.post("/encode", json={**fields, "data": A64.tolist(), "encoding_format": "base64"}).json()
    assert as_text["codes"]["dtype"] == "float64"
    for accept, read in {
        "application/x-npy": lambda body: np.load(io.BytesIO(body)),
        "application/vnd.safetensors": lambda body: safetensors.numpy.load(body)["codes"],
        "text/csv": lambda body: np.loadtxt(io.BytesIO(body), delimiter=",", ndmin=2),
    }.items():
        answer = client.post("/encode", params=fields, content=npy(A64), headers={"accept": accept})
        codes = read(answer.content)
        assert codes.dtype == np.float64
        np.testing.assert_array_equal(codes, Z64)
    decoded = client.post("/decode", params=fields, content=npy(Z64))
    np.testing.assert_array_equal(np.load(io.BytesIO(decoded.content)), Z64 @ D.astype(np.float64))


def test_float64_has_its_own_range(client: TestClient, digits: str) -> None:
    data = [[1e39, 0, 0, 0]]
    assert client.post("/encode", json={"dictionary": digits, "data": data}).status_code == 422
    answer = client.post("/encode", json={"dictionary": digits, "data": data, "dtype": "float64"})
    assert answer.json()["codes"] == [[1e39, 0]]
    refused = client.post("/encode", json={"dictionary": digits, "data": data, "dtype": "float16"})
    assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["dtype"])


@pytest.mark.parametrize(("rows", "aside"), [(1, False), (200_000, True)])
def test_many_codes_are_compressed_in_a_thread(
    client: TestClient, digits: str, monkeypatch: pytest.MonkeyPatch, rows: int, aside: bool
) -> None:
    """A hundred thousand rows of 512 concepts take the better part of a second."""
    threads = []

    def noted(codes: np.ndarray, top_k: int | None) -> dict[str, np.ndarray]:
        threads.append(threading.current_thread().name)
        return compressed_rows(codes, top_k)

    monkeypatch.setattr("app.routes.encode.compressed_rows", noted)
    answer = client.post("/encode?dictionary=digits&top_k=1", content=npy(np.ones((rows, 4), np.float32)))
    assert answer.status_code == 200
    assert [name.startswith("parse") for name in threads] == [aside]
