"""Encodes and decodes that go straight to their endpoints are answered as those that FastAPI routes are."""

from collections.abc import Iterator

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from demo.service import npy
from tests.app.conftest import WorkerDouble

UNDER = "/under"  # FastAPI routes what comes to an app that is mounted under another path
NPY = {"content-type": "application/x-npy"}
ROWS = np.ones((2, 4), np.float32)


@pytest.fixture
def mounted(client: TestClient) -> Iterator[TestClient]:
    outer = FastAPI()
    outer.mount(UNDER, client.app)
    with TestClient(outer, raise_server_exceptions=False) as mounted:
        yield mounted


REQUESTS = {
    "JSON": ("POST", "/encode", {"json": {"dictionary": "digits", "data": [[1, 2, 3, 4]]}}),
    "npy": ("POST", "/encode?dictionary=digits", {"content": npy(ROWS), "headers": NPY}),
    "decode": ("POST", "/decode", {"json": {"dictionary": "digits@1", "data": [[1, 2]]}}),
    "a worker's error": ("POST", "/decode?dictionary=digits", {"content": npy(ROWS), "headers": NPY}),
    "no body": ("POST", "/encode", {}),
    "a field that is wrong": ("POST", "/encode", {"json": {"dictionary": "digits", "data": [[1]], "k": 3}}),
    "a value that is wrong": ("POST", "/encode", {"json": {"dictionary": "digits", "data": [[1, -2, 3, 4]]}}),
    "no such dictionary": ("POST", "/encode", {"json": {"dictionary": "none", "data": [[1]]}}),
    "a kind of body": ("POST", "/encode", {"content": b"x", "headers": {"content-type": "image/png"}}),
    "a kind of answer": ("POST", "/encode", {"json": {}, "headers": {"accept": "image/png"}}),
    "another method": ("GET", "/encode", {}),
    "a slash": ("POST", "/encode/", {}),
}


@pytest.mark.parametrize(("method", "path", "sent"), REQUESTS.values(), ids=REQUESTS)
def test_both_ways_answer_alike(  # type: ignore[no-untyped-def]
    client: TestClient, mounted: TestClient, digits: str, method: str, path: str, sent
) -> None:
    direct = client.request(method, path, **sent)
    routed = mounted.request(method, UNDER + path, **sent)
    assert (routed.status_code, routed.content.replace(UNDER.encode(), b"")) == (direct.status_code, direct.content)
    for headers in (routed.headers, direct.headers):
        headers.pop("x-request-id")
        headers.pop("content-length", None)  # of a problem that holds the path
    assert routed.headers == direct.headers


@pytest.mark.parametrize("path", ["/encode", UNDER + "/encode"])
def test_a_fault_of_the_service_is_told_without_details_either_way(
    client: TestClient,
    mounted: TestClient,
    digits: str,
    worker: WorkerDouble,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(worker, "solve", broken)
    answer = (mounted if path.startswith(UNDER) else client).post(
        path, json={"dictionary": digits, "data": ROWS.tolist()}
    )
    assert (answer.status_code, answer.json()["type"]) == (500, "internal-error")
    assert "secret" not in answer.text
