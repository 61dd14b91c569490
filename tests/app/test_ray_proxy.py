"""What a proxy of Ray's answers where no replica does."""

import pytest
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.ray_proxy import middlewares


def around(app: ASGIApp) -> TestClient:
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return TestClient(app, raise_server_exceptions=False)


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """What Ray does where a replica died: uvicorn makes a 500 of it."""


async def raising(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the replica died")


@pytest.mark.parametrize(
    ("app", "kind", "why"),
    [
        (nothing, "worker-unavailable", "the replica was lost"),
        (raising, "worker-unavailable", "the replica was lost"),
        (Response("Request dropped due to backpressure", 503), "overloaded", "no replica has room"),
    ],
)
def test_what_no_replica_answers_can_be_sent_again(app: ASGIApp, kind: str, why: str) -> None:
    answer = around(app).post("/encode")
    assert (answer.status_code, answer.json()["type"]) == (503, kind)
    assert answer.json()["detail"].startswith(why)
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"


def test_clients_of_the_inference_protocol_are_told_in_its_form() -> None:
    answer = around(nothing).post("/v2/models/digits/infer")
    assert (answer.status_code, list(answer.json())) == (503, ["error"])


def test_a_replicas_answers_are_left_as_they_are() -> None:
    for status in (200, 404, 500):
        assert around(Response("told", status)).get("/readyz").content == b"told"
    not_ready = around(Response("told", 503, {"retry-after": "2"})).get("/readyz")
    assert (not_ready.content, not_ready.headers["retry-after"]) == (b"told", "2")


def test_what_the_proxy_answers_itself_is_left_as_it_is() -> None:
    assert around(Response("draining", 503)).get("/-/healthz").content == b"draining"


def test_an_id_that_the_proxy_adds_to_the_replicas_is_told_once() -> None:
    response = Response("told", 200, {"x-request-id": "a", "vary": "accept"})
    response.raw_headers += [(b"vary", b"origin"), (b"x-request-id", b"the proxy's")]
    headers = around(response).get("/").headers
    assert headers.get_list("x-request-id") == ["a"]
    assert headers.get_list("vary") == ["accept", "origin"]
