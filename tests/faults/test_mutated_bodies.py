"""Hundreds of damaged bodies for each parser: every one gets an answer of the client's kind, soon, within bounds.

`make fuzz` sends ten thousand.
Valid bodies are mutated (bits, bytes, spans, lengths) and sent through the whole app but the socket and the worker.
"""

import asyncio
import base64
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.main import create_app
from app.settings import Settings
from demo.service import npy
from tests.app.conftest import WorkerDouble
from tests.memory import held_bytes

CASES = int(os.environ.get("DICTSERVE_FUZZ_CASES", "400"))  # of each parser of ours
FEWER = {"json": 5, "sniffed": 5}  # times: msgspec's parser, and parsers that have had theirs
SECONDS = 2.0  # that the longest answer may take, on a machine that does other things too
A = np.array([[0, 1.5, 0.25, 0], [2, 0, 0, 0.75], [1, 1, 1, 1]], np.float32)


class InProcess:
    """The app in an event loop of its own, asked without a socket."""

    def __init__(self, store: Path) -> None:
        options = Settings(store=store, max_rows=1000, max_features=1000)
        self._app = create_app(options, supervisor=WorkerDouble(options))
        self._loop = asyncio.new_event_loop()
        self._life = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._life.__aenter__())

    def close(self) -> None:
        self._loop.run_until_complete(self._life.__aexit__(None, None, None))
        self._loop.close()

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        return self._loop.run_until_complete(self._post("POST", path, body, headers))

    def put(self, path: str, body: bytes) -> tuple[int, bytes]:
        return self._loop.run_until_complete(self._post("PUT", path, body, {}))

    async def _post(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        told = {"content-length": str(len(body))} | {name.replace("_", "-"): v for name, v in headers.items()}
        path, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        answer: list[Any] = []

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            answer.append(message)

        await self._app(scope, receive, send)
        return answer[0]["status"], b"".join(message.get("body", b"") for message in answer[1:])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    service = InProcess(tmp_path_factory.mktemp("fuzz") / "models")
    assert service.put("/dictionaries/d", npy(np.eye(2, 4, dtype=np.float32)))[0] == 201
    yield service
    service.close()


def with_tensor(dtype: str) -> tuple[bytes, bytes]:
    """The JSON and the bytes of an inference request."""
    values = A.astype(dtype).tobytes()
    name = {"<f4": "FP32", "<f2": "FP16", "<f8": "FP64", "<i4": "INT32"}[dtype]
    size = {"binary_data_size": len(values)}
    tensor = {"name": "activations", "shape": [3, 4], "datatype": name, "parameters": size}
    return orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}), values


TEXT = {"base64": base64.b64encode(A.tobytes()).decode(), "shape": [3, 4], "dtype": "float32"}
JSON_BYTES = {told + values: len(told) for told, values in map(with_tensor, ("<f4", "<f2", "<f8", "<i4"))}
SEEDS: dict[str, tuple[str, list[bytes], dict[str, str]]] = {
    "npy": (
        "/encode?dictionary=d",
        [npy(A), npy(A.astype(np.float16)), npy(np.asfortranarray(A)), npy(A.astype(">f8")), npy(A[0])],
        {"content_type": "application/x-npy"},
    ),
    "safetensors": (
        "/encode?dictionary=d",
        [safetensors.numpy.save({"data": A}), safetensors.numpy.save({"data": A, "b": A[:1]}, {"k": "v"})],
        {"content_type": "application/vnd.safetensors"},
    ),
    "csv": (
        "/encode?dictionary=d",
        [b"a,b,c,d\r\n0,1.5,0.25,0\r\n2,0,0,0.75\r\n", b'"0","1.5",0.25,0\n\n2,0,0,7.5e-1\n'],
        {"content_type": "text/csv"},
    ),
    "json": (
        "/encode",
        [
            orjson.dumps({"dictionary": "d", "data": A.tolist(), "top_k": 1}),
            orjson.dumps({"data": A[0].tolist(), "reconstruct": True, "dictionary": "d@1"}),
        ],
        {"content_type": "application/json"},
    ),
    "base64": (
        "/encode",
        [orjson.dumps({"dictionary": "d", "encoding_format": "base64", "data": TEXT})],
        {"content_type": "application/json"},
    ),
    "inference": (
        "/v2/models/d/infer",
        list(JSON_BYTES),
        {"content_type": "application/octet-stream"},
    ),
    "sniffed": (
        "/encode?dictionary=d",
        [
            npy(A),
            safetensors.numpy.save({"data": A}),
            b"1,2,3,4\n",
        ],
        {},
    ),
}

SPOTS = st.floats(0, 1, exclude_max=True)
PIECES = st.sampled_from(
    [
        *(b"\x00", b"\xff" * 8, b"\x00" * 8, (2**63).to_bytes(8, "little"), b"\xc3\x28", b"\xef\xbb\xbf"),
        *(b"-", b"NaN", b"1e999", b"null", b"True", b"9" * 30, b"descr"),
        *(b'"', b"[", b"]", b"{", b"}", b",", b"(", b"\n", b"[" * 200),
    ]
) | st.binary(min_size=1, max_size=8)


def _at(body: bytes, spot: float) -> int:
    return int(spot * len(body))


def flipped(body: bytes, spot: float, other: float, piece: bytes) -> bytes:
    i = _at(body, spot)
    return body[:i] + bytes([body[i] ^ (1 << int(8 * other))]) + body[i + 1 :] if body else body


def overwritten(body: bytes, spot: float, other: float, piece: bytes) -> bytes:
    i = _at(body, spot)
    return body[:i] + piece + body[i + len(piece) :]


def inserted(body: bytes, spot: float, other: float, piece: bytes) -> bytes:
    i = _at(body, spot)
    return body[:i] + piece + body[i:]


def without(body: bytes, spot: float, other: float, piece: bytes) -> bytes:
    i, j = sorted((_at(body, spot), _at(body, other)))
    return body[:i] + body[j:]


def twice(body: bytes, spot: float, other: float, piece: bytes) -> bytes:
    i, j = sorted((_at(body, spot), _at(body, other)))
    return body[:j] + body[i:]


def cut_short(body: bytes, spot: float, other: float, piece: bytes) -> bytes:
    return body[: _at(body, spot)]


WAYS: list[Callable[[bytes, float, float, bytes], bytes]] = [
    flipped,
    overwritten,
    inserted,
    without,
    twice,
    cut_short,
]
MUTATIONS = st.lists(st.tuples(st.sampled_from(WAYS), SPOTS, SPOTS, PIECES), min_size=1, max_size=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("format", SEEDS)
def test_mutated_bodies(service: InProcess, format: str) -> None:
    path, seeds, headers = SEEDS[format]
    for seed in seeds:
        assert service.post(path, seed, **headers_of(format, seed, headers))[0] == 200
    asked, cases = 0, CASES // FEWER.get(format, 1)
    held = held_bytes("VmRSS")

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(seed=st.sampled_from(seeds), mutations=MUTATIONS)
    def every_answer_is_the_clients(seed: bytes, mutations: list[tuple[Any, float, float, bytes]]) -> None:
        nonlocal asked
        body = seed
        for way, spot, other, piece in mutations:
            body = way(body, spot, other, piece)
        begun = time.monotonic()
        status, answer = service.post(path, body, **headers_of(format, seed, headers))
        assert status < 500, answer
        assert time.monotonic() - begun < SECONDS
        if status >= 400:
            told = orjson.loads(answer)
            assert told["error"] if path.startswith("/v2") else told["detail"]
            assert len(answer) <= 8192
        asked += 1

    every_answer_is_the_clients()
    assert asked >= cases
    assert held_bytes("VmRSS") - held < 200e6
    assert service.post(path, seeds[0], **headers_of(format, seeds[0], headers))[0] == 200


def headers_of(format: str, seed: bytes, headers: dict[str, str]) -> dict[str, str]:
    """The protocol's header tells where the JSON ends; it stays what the seed's was."""
    return headers if format != "inference" else headers | {"inference_header_content_length": str(JSON_BYTES[seed])}
