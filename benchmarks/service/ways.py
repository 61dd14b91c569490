"""The ways to ask for an encode: which server, in which format, and how its answer is read."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from benchmarks.service.client import HOST, Answer
from demo.service import npy

JSON = "application/json"
Request = tuple[str, dict[str, str], bytes]  # path, headers, body


@dataclass(frozen=True)
class Way:
    """One row of the comparison.

    Attributes:
        server: the name of a server of `benchmarks.service.servers`.
        make: (dictionary, rows) -> what is asked.
        codes: answer -> Z; None where the answer holds none.
    """

    server: str
    format: str
    make: Callable[[str, np.ndarray], Request]
    codes: Callable[[Answer], np.ndarray] | None

    def request(self, port: int, dictionary: str, rows: np.ndarray) -> bytes:
        """The whole request, ready to be sent."""
        path, headers, body = self.make(dictionary, rows)
        lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}:{port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


def _lists(path: str) -> Callable[[str, np.ndarray], Request]:
    return lambda name, A: (path, {"Content-Type": JSON}, json.dumps(_fields(name, A.tolist())).encode())


def _fields(name: str, data: object) -> dict[str, object]:
    return {"dictionary": name, "data": data}


def _read_lists(answer: Answer) -> np.ndarray:
    return np.array(json.loads(answer.body)["codes"], np.float32)


def _base64(name: str, A: np.ndarray) -> Request:
    text = {"base64": base64.b64encode(A.tobytes()).decode(), "shape": A.shape, "dtype": "float32"}
    body = {**_fields(name, text), "encoding_format": "base64"}
    return "/encode", {"Content-Type": JSON}, json.dumps(body).encode()


def _read_base64(answer: Answer) -> np.ndarray:
    told = json.loads(answer.body)["codes"]
    return np.frombuffer(base64.b64decode(told["base64"]), told["dtype"]).reshape(told["shape"])


def _npy_to(path: str) -> Callable[[str, np.ndarray], Request]:
    return lambda name, A: (f"{path}?dictionary={name}", {"Content-Type": "application/x-npy"}, npy(A))


def _read_npy(answer: Answer) -> np.ndarray:
    return np.load(io.BytesIO(answer.body))  # type: ignore[no-any-return]


def _safetensors(name: str, A: np.ndarray) -> Request:
    return f"/encode?dictionary={name}", {"Content-Type": "application/vnd.safetensors"}, save({"data": A})


def _read_safetensors(answer: Answer) -> np.ndarray:
    return load(answer.body)["codes"]


def _open_inference(name: str, A: np.ndarray, *, data: dict[str, object]) -> tuple[str, bytes]:
    tensor = {"name": "activations", "shape": A.shape, "datatype": "FP32", **data}
    asked = {"inputs": [tensor], "outputs": [{"name": "codes", "parameters": {"binary_data": "parameters" in data}}]}
    return f"/v2/models/{name}/infer", json.dumps(asked).encode()


def _open_inference_binary(name: str, A: np.ndarray) -> Request:
    path, head = _open_inference(name, A, data={"parameters": {"binary_data_size": A.nbytes}})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return path, headers, head + A.tobytes()


def _read_open_inference_binary(answer: Answer) -> np.ndarray:
    length = int(answer.headers["Inference-Header-Content-Length"])
    (told,) = json.loads(answer.body[:length])["outputs"]
    return np.frombuffer(answer.body[length:], np.float32).reshape(told["shape"])


def _open_inference_json(name: str, A: np.ndarray) -> Request:
    path, body = _open_inference(name, A, data={"data": A.ravel().tolist()})
    return path, {"Content-Type": JSON}, body


def _read_open_inference_json(answer: Answer) -> np.ndarray:
    (told,) = json.loads(answer.body)["outputs"]
    return np.array(told["data"], np.float32).reshape(told["shape"])


OURS, ECHO, FASTAPI = "dictserve", "uvicorn alone, echo", "fastapi"
LITSERVE, LITSERVE_BATCHING = "litserve", "litserve, batching"
MLSERVER, MLSERVER_BATCHING = "mlserver", "mlserver, batching"

NPY = Way(OURS, "npy", _npy_to("/encode"), _read_npy)
OURS_JSON = Way(OURS, "JSON", _lists("/encode"), _read_lists)
OURS_OIP = Way(OURS, "OIP JSON", _open_inference_json, _read_open_inference_json)
FASTAPI_NPY = Way(FASTAPI, "npy", _npy_to("/encode/npy"), _read_npy)
FASTAPI_LISTS = Way(FASTAPI, "lists", _lists("/encode"), _read_lists)
LITSERVE_LISTS = Way(LITSERVE, "lists", _lists("/predict"), _read_lists)
LITSERVE_BATCHING_LISTS = Way(LITSERVE_BATCHING, "lists", _lists("/predict"), _read_lists)
MLSERVER_OIP = Way(MLSERVER, "OIP JSON", _open_inference_json, _read_open_inference_json)
MLSERVER_BATCHING_OIP = Way(MLSERVER_BATCHING, "OIP JSON", _open_inference_json, _read_open_inference_json)
WAYS = (
    NPY,
    Way(OURS, "safetensors", _safetensors, _read_safetensors),
    Way(OURS, "OIP binary", _open_inference_binary, _read_open_inference_binary),
    Way(OURS, "base64", _base64, _read_base64),
    OURS_JSON,
    OURS_OIP,
    Way(ECHO, "npy", _npy_to("/encode"), None),
    FASTAPI_NPY,
    FASTAPI_LISTS,
    LITSERVE_LISTS,
    LITSERVE_BATCHING_LISTS,
    MLSERVER_OIP,
    MLSERVER_BATCHING_OIP,
)
