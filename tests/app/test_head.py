"""HEAD, wherever GET is: the same answer without its body, and an end to what would go on."""

import pytest
from fastapi.testclient import TestClient

from app.settings import Settings
from tests.app.conftest import WorkerDouble
from tests.app.test_protocol import served
from tests.figures import figures
from tests.wire import request

FIT = {"name": "digits", "nb_concepts": 1, "data": [[1, 2]]}
PLACES = [
    "/", "/page/main.js", "/page/plotly.js", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/livez", "/readyz",
    "/v2", "/v2/health/live", "/v2/models/digits", "/jobs", "/jobs/none", "/dictionaries", "/dictionaries/digits",
    "/dictionaries/digits/weights", "/dictionaries/digits/concepts", "/dictionaries/digits/concepts/1",
    "/dictionaries/none", "/none",
]  # fmt: skip


@pytest.mark.parametrize("path", PLACES)
def test_a_head_is_a_get_without_its_body(client: TestClient, digits: str, path: str) -> None:
    of_get, of_head = client.get(path), client.head(path)
    assert of_head.status_code == of_get.status_code
    assert of_head.content == b""
    told = [{k: v for k, v in answer.headers.items() if k != "x-request-id"} for answer in (of_get, of_head)]
    assert told[0] == told[1]
    assert int(of_head.headers["content-length"]) == int(of_get.headers["content-length"]) > 0


def test_what_is_known_already_is_304(client: TestClient, digits: str) -> None:
    for path in ("/", "/dictionaries/digits", "/dictionaries/digits/weights"):
        known = {"If-None-Match": client.head(path).headers["etag"]}
        assert client.head(path, headers=known).status_code == client.get(path, headers=known).status_code == 304


def test_heads_are_counted_by_route(client: TestClient, digits: str) -> None:
    assert client.head("/metrics").headers["content-type"].startswith("text/plain")
    client.head("/dictionaries/digits")
    told = figures(client)
    assert told["dictserve_requests_total", "HEAD", "/metrics", "200"] == 1
    assert told["dictserve_requests_total", "HEAD", "/dictionaries/{reference}", "200"] == 1


def test_the_events_of_a_job_that_goes_on_end_with_their_headers(client: TestClient, worker: WorkerDouble) -> None:
    worker.fits_hang = True
    id = client.post("/fit", json=FIT).json()["id"]
    answer = client.head(f"/jobs/{id}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert client.get(f"/jobs/{id}").json()["state"] in ("queued", "running")
    assert client.head("/jobs/none/events").status_code == 404


def test_what_takes_no_get_takes_no_head(client: TestClient) -> None:
    for path in ("/fit", "/encode", "/decode"):
        answer = client.head(path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")
    assert client.post("/livez").headers["allow"] == "GET, HEAD"
    refused = client.post("/dictionaries/d", content=b"")
    assert refused.headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"  # which are four routes
    assert refused.json()["detail"].endswith("there are DELETE, GET, HEAD, PATCH, PUT")


def test_the_connection_goes_on_after_it(settings: Settings) -> None:
    asked = request("HEAD", "/page/plotly.js") + request("HEAD", "/dictionaries/none") + request("GET", "/livez")
    written = b"".join(served(settings, [asked], 3).written)
    *heads_told, body = written.split(b"\r\n\r\n")
    assert [told.partition(b"\r\n")[0][9:] for told in heads_told] == [b"200 OK", b"404 Not Found", b"200 OK"]
    assert body == b'{"status":"alive"}'


def test_lists_in_several_lines_are_one(client: TestClient, digits: str) -> None:
    weights = f"/dictionaries/{digits}/weights"
    etag = client.get(weights).headers["etag"]
    assert client.get(weights, headers=[("if-none-match", '"x"'), ("if-none-match", etag)]).status_code == 304
    accepted = [("accept", "text/html"), ("accept", "application/json")]
    assert client.get(weights, headers=accepted).headers["content-type"] == "application/json"
