"""With a tokens file set, everything but the probes needs a token of the right scope."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.http.tokens import add, new_token
from app.main import create_app
from app.settings import Settings
from demo.service import npy
from tests.app.conftest import WorkerDouble

READER, WRITER, SLOW = new_token(), new_token(), new_token()
ROW = npy(np.ones((1, 4), np.float32))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    path = tmp_path / "tokens"
    add(path, "reader", ["read"], READER, {})
    add(path, "writer", ["read", "write"], WRITER, {})
    add(path, "slow", ["read", "write"], SLOW, {"requests_per_minute": 20, "rows_per_minute": 10})
    settings = Settings(store=tmp_path / "models", tokens_file=path)
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        D = npy(np.eye(2, 4, dtype=np.float32))
        assert client.put("/dictionaries/d", content=D, headers=bearer(WRITER)).status_code == 201
        yield client


OPERATIONS = [
    (method.upper(), path)
    for path, operations in create_app(Settings()).openapi()["paths"].items()
    for method in operations
]
READING = {("POST", "/encode"), ("POST", "/decode")}
PROBES = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_call_but_the_probes_needs_a_token(client: TestClient, method: str, path: str) -> None:
    path = path.format(reference="d", name="d", version=1, id="none", index=0, concept=0, a="d", b="d")
    answer = client.request(method, path)
    if path in PROBES:
        assert answer.status_code == 200
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    told = answer.json()
    assert "token" in told["error" if path.startswith("/v2") else "detail"]
    answer = client.request(method, path, headers=bearer("ds_wrong"))
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')


PAGES = ["/", "/page/main.js", "/page/plotly.js", "/docs", "/docs/swagger-ui.css", "/openapi.json"]


@pytest.mark.parametrize("path", PAGES)
def test_the_page_itself_needs_none(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200
    assert client.post(path).status_code == 401


@pytest.mark.parametrize("path", ["/openapi", "/nothing", "/page", "/pages/main.js"])
def test_what_is_not_an_operation_needs_one_too(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [bearer(READER), {"authorization": f"bearer  {READER}"}, {"X-API-Key": READER}],
    ids=["bearer", "lower case", "key"],
)
def test_a_token_comes_in_either_header(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/encode?dictionary=d", content=ROW, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Basic {READER}"}, {"Authorization": READER}, {"X-API-Key": ""}]
)
def test_and_in_no_other_form(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/encode?dictionary=d", content=ROW, headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/fit?name=x&nb_concepts=1"),
        ("PUT", "/dictionaries/x"),
        ("PATCH", "/dictionaries/d"),
        ("DELETE", "/dictionaries/d"),
        ("DELETE", "/jobs/none"),
    ],
)
def test_reading_does_not_let_one_write(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path, content=ROW, headers=bearer(READER))
    assert answer.status_code == 403
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="write"'
    assert answer.json()["type"] == "forbidden"
    assert "scope write" in answer.json()["detail"]
    assert client.request(method, path, content=ROW, headers=bearer(WRITER)).status_code not in (401, 403)


@pytest.mark.parametrize(
    ("method", "path", "said"), [("POST", "/encode/", "; there is /encode"), ("DELETE", "/nothing", "")]
)
def test_a_path_that_is_none_is_told_to_whoever_has_a_token(
    client: TestClient, method: str, path: str, said: str
) -> None:
    assert client.request(method, path).status_code == 401
    for token in (READER, WRITER):
        answer = client.request(method, path, headers=bearer(token))
        assert (answer.status_code, answer.json()["type"]) == (404, "not-found")
        assert answer.json()["detail"] == f"Not Found: {method} {path}{said}"


def test_what_is_not_known_to_read_needs_leave_to_write(client: TestClient) -> None:
    """Of a route, whatever its method."""
    for method, path in OPERATIONS:
        if (method, path) in READING or method == "GET" or path.startswith("/v2"):
            continue
        path = path.format(reference="d", id="none")
        assert client.request(method, path, headers=bearer(READER)).status_code == 403
        assert client.request("LINK", path, headers=bearer(READER)).status_code == 403


def test_requests_are_limited(client: TestClient) -> None:
    statuses = [client.get("/dictionaries", headers=bearer(SLOW)).status_code for _ in range(21)]
    assert statuses == [200] * 20 + [429]
    answer = client.get("/dictionaries", headers=bearer(SLOW))
    assert answer.json()["type"] == "rate-limited"
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert client.get("/dictionaries", headers=bearer(READER)).status_code == 200


@pytest.mark.parametrize(
    ("path", "columns"),
    [
        ("/encode?dictionary=d", 4),
        ("/decode?dictionary=d", 2),
        ("/fit?name=a&nb_concepts=1", 4),
        ("/v2/models/d/infer", 4),
    ],
)
def test_rows_are_limited(client: TestClient, path: str, columns: int) -> None:
    rows = np.ones((12, columns), np.float32)
    tensor = {"name": "activations", "shape": rows.shape, "datatype": "FP32", "data": rows.ravel().tolist()}
    body: dict[str, Any] = {"json": {"inputs": [tensor]}} if path.startswith("/v2") else {"content": npy(rows)}
    assert client.post(path, **body, headers=bearer(SLOW)).is_success
    answer = client.post(path, **body, headers=bearer(SLOW))
    assert answer.status_code == 429
    assert "10 rows per minute" in answer.text
    assert 60 < int(answer.headers["retry-after"]) <= 72  # two rows were more than a minute's


def test_who_may_read_may_encode_and_decode(client: TestClient) -> None:
    assert client.post("/encode?dictionary=d", content=ROW, headers=bearer(READER)).status_code == 200
    codes = npy(np.ones((1, 2), np.float32))
    assert client.post("/decode?dictionary=d", content=codes, headers=bearer(READER)).status_code == 200


@pytest.mark.parametrize("host", ["x/v2/", "x/v2/?", "x/encode?", "x/encode#", "u@x/v2/", "x\\v2/"])
@pytest.mark.parametrize(("method", "path"), [("DELETE", "/dictionaries/d"), ("DELETE", "/jobs/0"), ("POST", "/fit")])
def test_a_host_that_is_none_gives_no_scope(client: TestClient, host: str, method: str, path: str) -> None:
    """The path that a scope was needed for was taken from it: who could read could remove."""
    answer = client.request(method, path, headers=bearer(READER) | {"host": host})
    assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
    assert client.get("/dictionaries/d", headers=bearer(READER)).status_code == 200
