"""Every operation of the OpenAPI document, called as it says and not as it says, with tokens and without."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from app.http.tokens import add, new_token
from app.main import create_app
from app.settings import Settings
from demo.service import npy
from tests.app.conftest import WorkerDouble

EXAMPLES = int(os.environ.get("DICTSERVE_FUZZ_EXAMPLES", "8"))  # of each operation, in each of the two modes
ROWS = np.array([[0, 1.5, 0.25, 0], [2, 0, 0, 0.75]], np.float32)
HONEST = {503, 507}
TOKEN = new_token()

for media_type, body in (
    ("application/x-npy", npy(ROWS)),
    ("application/vnd.safetensors", safetensors.numpy.save({"data": ROWS})),
    ("text/csv", b"0,1.5,0.25,0\n2,0,0,0.75\n"),
    ("application/octet-stream", npy(ROWS)),
):
    schemathesis.openapi.media_type(media_type, st.just(body) | st.binary(max_size=200))


@contextmanager
def service(folder: Path, tokens: Path | None) -> Iterator[TestClient]:
    """A service in this process, and the header that lets its client in."""
    options = Settings(
        store=folder / "models",
        data_dir=folder,
        tokens_file=tokens,
        max_rows=1000,
        max_features=100,
        max_concepts=50,
    )
    with TestClient(create_app(options, supervisor=WorkerDouble(options))) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        for name in ("d", "digits", "a"):
            assert client.put(f"/dictionaries/{name}", content=npy(np.eye(2, 4, dtype=np.float32))).status_code == 201
        yield client


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TestClient]]:
    """One without tokens and one with: what is made up for an operation is asked of both."""
    tokens = tmp_path_factory.mktemp("fuzz") / "tokens"
    add(tokens, "fuzz", ["read", "write"], TOKEN, {})
    with (
        service(tmp_path_factory.mktemp("without"), None) as without,
        service(tmp_path_factory.mktemp("with"), tokens) as with_tokens,
    ):
        yield [without, with_tokens]


def without_tuples(part: Any) -> Any:
    """Schemathesis turns the schema of a tuple (`prefixItems`) into one that it then finds invalid."""
    if isinstance(part, list):
        return [without_tuples(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {key: without_tuples(value) for key, value in part.items() if key != "prefixItems"}


DOCUMENT = without_tuples(create_app(Settings()).openapi())
OPERATIONS = [
    pytest.param(path, method, id=f"{method.upper()} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if not path.endswith("/events")  # a stream that ends with its job: tests/e2e/test_events.py
]
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation(asked: list[TestClient], path: str, method: str) -> None:
    strategy = SCHEMA[path][method.upper()].as_strategy() | SCHEMA[path][method.upper()].as_strategy(
        generation_mode=schemathesis.GenerationMode.NEGATIVE
    )

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def every_answer_is_as_the_document_says(case: schemathesis.Case) -> None:
        for client in asked:
            answer = sent(client, case)
            if answer.status_code not in HONEST:
                case.validate_response(
                    answer, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
                )

    every_answer_is_as_the_document_says()
    assert [client.get("/readyz").status_code for client in asked] == [200, 200]


CODES = [[1.0, 0.5]]
INFERRED = {"inputs": [{"name": "activations", "shape": [2, 4], "datatype": "FP32", "data": ROWS.ravel().tolist()}]}
BODIES: dict[str, Any] = {
    "POST /fit": {"name": "made", "nb_concepts": 2, "data": ROWS.tolist()},
    "POST /encode": {"dictionary": "made", "data": ROWS.tolist()},
    "POST /decode": {"dictionary": "made", "data": CODES},
    "PUT /dictionaries/{reference}": {"data": ROWS.tolist()},
    "PATCH /dictionaries/{reference}": {"labels": {"team": "vision"}, "concept_labels": {"0": "stripes"}},
    "POST /v2/models/{name}/infer": INFERRED,
    "POST /v2/models/{name}/versions/{version}/infer": INFERRED,
    "POST /v2/repository/index": {},
}


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_a_good_request(asked: list[TestClient], path: str, method: str) -> None:
    """Of each operation one that succeeds, whatever is made up for it above."""
    for client in asked:
        made = client.post("/fit", json=BODIES["POST /fit"], headers={"prefer": "wait=30"}).json()
        client.put("/dictionaries/gone", json={"data": ROWS.tolist()}).raise_for_status()
        known = {
            "reference": "gone" if method == "delete" else "made",
            "name": "made",
            "version": "1",
            "id": made["id"],
            "concept": 0,
            "a": "d",
            "b": "made",
        }
        operation = SCHEMA[path][method.upper()]
        told: dict[str, Any] = {"path_parameters": {p.name: known[p.name] for p in operation.path_parameters}}
        if (body := BODIES.get(f"{method.upper()} {path}")) is not None:
            told |= {"body": body, "media_type": "application/json"}
        case = operation.Case(**told)
        answer = sent(client, case)
        assert answer.is_success, answer.text
        case.validate_response(answer, checks=[status_code_conformance, response_schema_conformance])


def sent(client: TestClient, case: schemathesis.Case) -> httpx.Response:
    """The case's request through the test's client, which runs the app in the event loop that it was started in."""
    request = case.as_transport_kwargs(base_url="http://testserver")
    body = {"json": request["json"]} if request.get("json") is not None else {"content": request.get("data")}
    told = {key: request[key] for key in ("method", "url", "params", "cookies") if request.get(key)}
    headers = {name: value for name, value in request["headers"].items() if name.lower() != "authorization"}
    return client.request(**told, **body, headers=headers)
