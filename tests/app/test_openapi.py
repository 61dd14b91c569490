"""The OpenAPI document: the one that is kept beside this file, and examples that work when pasted.

`python -m tests.app.test_openapi` writes the document anew.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx import Response
from pydantic import TypeAdapter

from app.inference import InferenceAnswer, ModelState
from app.main import create_app
from app.schemas import DecodeAnswer, EncodeAnswer, Job
from app.settings import Settings
from app.store.records import DictionaryRecord
from demo.service import npy
from tests.app.conftest import WorkerDouble

GOLDEN = Path(__file__).with_name("openapi.json")
DOCUMENT = create_app(Settings()).openapi()
TAKING = [
    (path, method, operation["requestBody"]["content"])
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if "requestBody" in operation
]
RESPONSES = [
    (f"{method} {path}", path, operation["responses"])
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
UNTOLD = {
    "content-length",
    "content-type",
    "x-request-id",
    "cache-control",
    "x-content-type-options",
}  # headers that every answer has
COMPARE = "/dictionaries/{a}/compare/{b}"
ANSWERS = {"/fit": Job, "/encode": EncodeAnswer, "/decode": DecodeAnswer, "/v2/repository/index": list[ModelState]}
DATA = {"/fit": np.ones((3, 4)), "/encode": np.ones((2, 4)), "/decode": np.ones((2, 2))}


def written() -> str:
    return json.dumps(DOCUMENT, indent=1, ensure_ascii=False) + "\n"


def test_the_document_is_the_one_that_is_kept() -> None:
    told = "the OpenAPI document has changed: look at the difference, then `python -m tests.app.test_openapi`"
    assert GOLDEN.read_text() == written(), told


def test_bodies_with_arrays_come_in_every_format() -> None:
    for path, _, content in TAKING:
        if "text/csv" in content:
            wanted = ["application/json", "application/x-npy", "application/vnd.safetensors", "text/csv"]
            assert list(content) == wanted, path


def test_errors_are_told_as_they_are_sent() -> None:
    for call, path, responses in RESPONSES:
        for status, response in responses.items():
            if status >= "400" and path != "/readyz":
                of_protocol = ("application/json", "ErrorAnswer")
                wanted = of_protocol if path.startswith("/v2") else ("application/problem+json", "ProblemAnswer")
                told = [(type, content["schema"]["$ref"]) for type, content in response["content"].items()]
                assert told == [(wanted[0], f"#/components/schemas/{wanted[1]}")], f"{call}: {status}"
    assert "ValidationError" not in written(), "FastAPI's own form of 422: a route with parameters tells of none"


def test_what_needs_a_token_tells_how_it_may_be_refused() -> None:
    for call, path, responses in RESPONSES:
        needs_one = path not in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
        assert {"401", "403", "429"} & set(responses) == ({"401", "403", "429"} if needs_one else set()), call


def test_when_to_ask_again_is_told() -> None:
    for call, path, responses in RESPONSES:
        for status in {"429", "503", "507"} & set(responses):
            has = "Retry-After" in responses[status].get("headers", {})
            computes = path in ("/encode", "/decode") or path.endswith(
                "/infer"
            )  # its 507 is a device's, not a store's
            assert has == (status != "507" or not computes), f"{call}: {status}"


def test_what_needs_the_store_or_the_jobs_tells_that_they_may_be_away() -> None:
    for call, path, responses in RESPONSES:
        if path.startswith(("/fit", "/jobs", "/encode", "/decode", "/dictionaries", "/v2/models", "/v2/repository")):
            assert "503" in responses, call


def test_what_reads_a_jobs_record_tells_that_it_may_be_damaged(client: TestClient, tmp_path: Path) -> None:
    id = client.get("/jobs").json()["jobs"][0]["id"]
    with sqlite3.connect(tmp_path / "models" / ".dictserve" / "jobs.sqlite3") as database:
        database.execute("UPDATE jobs SET progress = '{'")
    for method, path in (("get", "/jobs/{id}"), ("get", "/jobs/{id}/events"), ("post", "/jobs/{id}/cancel")):
        answer = client.request(method, path.format(id=id))
        assert (answer.status_code, answer.json()["type"]) == (500, "job-damaged")
        assert "500" in DOCUMENT["paths"][path][method]["responses"], f"{method} {path}"


def test_readyz_answers_the_same_either_way() -> None:
    schemas = [
        response["content"]["application/json"]["schema"] | {"title": ""}
        for response in DOCUMENT["paths"]["/readyz"]["get"]["responses"].values()
    ]
    assert schemas[0] == schemas[1]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """With the data directory and the dictionary that the examples speak of."""
    (tmp_path / "data" / "layer4").mkdir(parents=True)
    np.save(tmp_path / "data" / "layer4" / "0.npy", np.ones((3, 4), np.float32))
    settings = Settings(store=tmp_path / "models", data_dir=tmp_path / "data")
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        first = DOCUMENT["paths"]["/fit"]["post"]["requestBody"]["content"]["application/json"]["examples"]["rows"]
        answer = client.post("/fit", json=first["value"], headers={"prefer": "wait=30"})
        assert answer.json()["state"] == "succeeded", answer.text
        yield client


def query(path: str, method: str) -> dict[str, Any]:
    """The query parameters that a body other than JSON needs, by their own examples."""
    parameters = DOCUMENT["paths"][path][method]["parameters"]
    needed = [p for p in parameters if "and then required" in p.get("description", "")]
    return {p["name"]: p["schema"]["examples"][0] for p in needed}


def of_digits(path: str) -> str:
    return path.format(reference="digits", name="digits", version=1)


def headers_told(path: str, method: str, answer: Response) -> set[str]:
    """The headers that the document tells of such an answer."""
    response = DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)]
    return {name.lower() for name in response.get("headers", {})}


def check(answer: Response, path: str) -> None:
    assert 200 <= answer.status_code < 300, answer.text
    if answer.headers["content-type"] == "application/json":
        otherwise = InferenceAnswer if path.endswith("/infer") else DictionaryRecord
        TypeAdapter(ANSWERS.get(path, otherwise)).validate_json(answer.content)


JSON_EXAMPLES = [
    pytest.param(path, method, example["value"], id=f"{method} {path} {name}")
    for path, method, content in TAKING
    for name, example in content["application/json"].get("examples", {}).items()
]


@pytest.mark.parametrize(("path", "method", "value"), JSON_EXAMPLES)
def test_json_examples(client: TestClient, path: str, method: str, value: dict[str, Any]) -> None:
    told = client.request(method, of_digits(path), json=value, headers={"prefer": "wait=30"})
    check(told, path)
    assert set(told.headers) - UNTOLD <= headers_told(path, method, told)
    if path == "/fit":
        assert told.json()["state"] == "succeeded", told.text


CSV_EXAMPLES = [
    pytest.param(path, method, content["text/csv"]["example"], id=f"{method} {path}")
    for path, method, content in TAKING
    if "text/csv" in content
]


@pytest.mark.parametrize(("path", "method", "text"), CSV_EXAMPLES)
@pytest.mark.parametrize("format", ["text/csv", "application/x-npy", "application/vnd.safetensors"])
def test_bodies_that_are_not_json(client: TestClient, path: str, method: str, text: str, format: str) -> None:
    array = DATA.get(path, np.ones((2, 4)))
    body = {
        "text/csv": text.encode(),
        "application/x-npy": npy(array),
        "application/vnd.safetensors": safetensors.numpy.save({"data": array}),
    }[format]
    url, headers = of_digits(path), {"content-type": format}
    check(client.request(method, url, params=query(path, method), content=body, headers=headers), path)


@pytest.mark.parametrize("path", ["/encode", "/decode"])
def test_headers_of_arrays(client: TestClient, path: str) -> None:
    body = {"dictionary": "digits", "data": DATA[path].tolist()}
    for accept in ("application/json", "application/x-npy"):
        answer = client.post(path, json=body, headers={"accept": accept})
        assert set(answer.headers) - UNTOLD == headers_told(path, "post", answer), answer.text


def test_headers_of_bytes_after_json(client: TestClient) -> None:
    path = "/v2/models/{name}/infer"
    tensor = {"name": "activations", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}
    body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = client.post(of_digits(path), json=body)
    assert set(answer.headers) - UNTOLD == headers_told(path, "post", answer), answer.text


TAGGED = ["", "/weights", "/concepts", "/concepts/{concept}"]


@pytest.mark.parametrize("path", [*(f"/dictionaries/{{reference}}{of_it}" for of_it in TAGGED), COMPARE])
def test_headers_of_what_has_a_tag(client: TestClient, path: str) -> None:
    url = path.format(reference="digits", concept=0, a="digits", b="digits")
    answer = client.get(url)
    for told in (answer, client.get(url, headers={"if-none-match": answer.headers["etag"]})):
        assert set(told.headers) - UNTOLD == headers_told(path, "get", told), told.text


def test_headers_of_jobs(client: TestClient) -> None:
    answer = client.post("/fit", json={"name": "new", "nb_concepts": 1, "data": DATA["/fit"].tolist()})
    assert answer.status_code == 202, answer.text
    assert set(answer.headers) - UNTOLD == headers_told("/fit", "post", answer) - {"preference-applied"}


def test_every_body_of_the_service_has_an_example() -> None:
    for path, method, content in TAKING:
        if "application/json" in content:
            assert content["application/json"].get("examples"), f"{method} {path}"


def test_routes_are_made_once_for_all_apps() -> None:
    """And not by an app's first requests, which would wait for that."""
    one, other = ([r for r in create_app(Settings()).routes if isinstance(r, APIRoute)] for _ in range(2))
    assert len(one) > 20
    assert all(mine is theirs for mine, theirs in zip(one, other, strict=True))


if __name__ == "__main__":
    GOLDEN.write_text(written())
