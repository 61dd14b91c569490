"""The app as Ray's replicas call it: Serve cancels what is done for a client that has left, wherever that is."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message

from app.http.ray_replica import ReplicaApp
from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from app.store.uploads import Uploads
from demo.service import npy
from tests.app.conftest import WorkerDouble, ended
from tests.figures import figures
from tests.waiting import until

A = npy(np.ones((40, 4), np.float64))  # which is staged anew, as float32


@pytest.fixture
def client(settings: Settings, worker: WorkerDouble) -> Iterator[TestClient]:
    with TestClient(create_app(settings, supervisor=worker)) as client:
        yield client


class Called:
    """One request to a replica, by what Serve gives it: a receive that may fail or say nothing more."""

    def __init__(self, client: TestClient, target: str, *chunks: bytes | Exception, prefix: str = "") -> None:
        path, _, query = target.partition("?")
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": prefix + path,
            "root_path": prefix,
            "query_string": query.encode(),
            "headers": [(b"content-type", b"application/x-npy")],
        }
        self.sent: list[Message] = []
        self._replica = ReplicaApp(client.app)  # type: ignore[arg-type]
        self._chunks = list(chunks)

    async def _receive(self) -> Message:
        if not self._chunks:
            await asyncio.Event().wait()
        chunk = self._chunks.pop(0)
        if isinstance(chunk, Exception):
            raise chunk
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def answered(self) -> None:
        await self._replica(self.scope, self._receive, self._send)

    async def left_after(self, begun: threading.Event | None = None) -> None:
        answering = asyncio.create_task(self.answered())
        await asyncio.sleep(0.1) if begun is None else await asyncio.to_thread(begun.wait)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering


def counted(client: TestClient) -> set[str]:
    """The statuses that fits have ended with."""
    fits = ["dictserve_requests_total", "POST", "/fit"]
    return {status for (*of, status), count in figures(client).items() if of == fits and count > 0}


FIT = "/fit?name=a&nb_concepts=2"


@pytest.mark.parametrize("chunks", [(A[:200],), (A[:200], RuntimeError("the task was cancelled"))])
def test_a_client_that_leaves_its_upload_is_gone(client: TestClient, chunks: tuple[Any, ...]) -> None:
    called = Called(client, FIT, *chunks)
    assert client.portal is not None
    if len(chunks) == 1:
        client.portal.call(called.left_after)
    else:
        client.portal.call(called.answered)
    until(lambda: counted(client) == {"gone"})
    assert called.sent == []


def test_an_upload_that_is_staged_as_its_client_leaves_leaves_nothing(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, begun, goes_on = Uploads.stage, threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        begun.set()
        goes_on.wait()
        return stage(*args)

    monkeypatch.setattr(Uploads, "stage", slow)
    called = Called(client, FIT, A)
    called.scope["headers"] += [(b"content-length", str(len(A)).encode())]
    assert client.portal is not None

    async def whole() -> Message:
        return {"type": "http.request", "body": A, "more_body": False}

    monkeypatch.setattr(called, "_receive", whole)
    client.portal.call(called.left_after, begun)
    goes_on.set()
    until(lambda: counted(client))
    (job,) = client.get("/jobs").json()["jobs"]  # its request had come whole
    assert ended(client, job["id"])["state"] == "succeeded"
    assert list(Store(settings.store).workplace.activations.iterdir()) == []


def test_a_route_prefix_is_taken_off_and_put_before_places(client: TestClient) -> None:
    async def whole() -> Message:
        return {"type": "http.request", "body": A, "more_body": False}

    called = Called(client, FIT, prefix="/nmf")
    called._receive = whole  # type: ignore[method-assign]
    assert client.portal is not None
    client.portal.call(called.answered)
    start, *bodies = called.sent
    assert start["status"] == 202
    id = client.get("/jobs").json()["jobs"][0]["id"]
    assert dict(start["headers"])[b"location"] == f"/nmf/jobs/{id}".encode()
    assert all(type(message["body"]) is bytes for message in bodies)
