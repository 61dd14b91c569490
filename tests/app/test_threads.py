"""Calls that wait for a slow network hold up no others."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.errors import StoreUnavailable
from app.jobs.data_files import DataFiles
from app.logs import of_request
from app.store.store import Store
from app.store.uploads import Uploads
from app.threads import Threads
from demo.service import npy
from tests.app.conftest import WorkerDouble

A = npy(np.ones((3, 4), np.float32))
AT_ONCE = 40  # more than asyncio has threads, at most 32


@pytest.fixture
def networked(digits: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dictionary of which it must be asked each time whether it is at hand."""
    monkeypatch.setattr(Store, "at_hand", lambda *_: None)
    return digits


class Slow:
    """Something slow: it ends once ``goes_on`` is set."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.began = threading.Semaphore(0)

    def __call__(self, *_: object, **__: object) -> None:
        self.began.release()
        assert self.goes_on.wait(60)
        raise StoreUnavailable("the network is slow")

    @contextmanager
    def of_many(
        self, client: TestClient, path: str, method: str = "POST", content: bytes = A
    ) -> Iterator[ThreadPoolExecutor]:
        """While more requests than there are threads wait for it: who may ask for something else."""
        with ThreadPoolExecutor(AT_ONCE + 1) as pool:
            waiting = [pool.submit(client.request, method, path, content=content) for _ in range(AT_ONCE)]
            try:
                for _ in range(2):  # as many as there are, at the least
                    assert self.began.acquire(timeout=30)
                assert not wait(waiting, 0.5).done
                yield pool
            finally:
                self.goes_on.set()
        assert {answer.result().status_code for answer in waiting} == {503}


@pytest.mark.parametrize("moves", ["stage", "discard"])
def test_activations_that_are_moved_hold_up_no_encode(
    client: TestClient, networked: str, monkeypatch: pytest.MonkeyPatch, moves: str
) -> None:
    slow = Slow()
    monkeypatch.setattr(Uploads, moves, slow)
    path = f"/fit?name=a&nb_concepts={10**6 if moves == 'discard' else 2}"
    with slow.of_many(client, path) as other:
        encoded = other.submit(client.post, f"/encode?dictionary={networked}", content=A)
        assert encoded.result(30).status_code == 200
        assert other.submit(client.get, "/metrics").result(30).status_code == 200


def test_files_that_are_looked_for_hold_up_no_fit_of_what_is_sent(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr(DataFiles, "find", slow)
    with slow.of_many(client, "/fit", content=b'{"name": "a", "nb_concepts": 2, "files": ["*"]}') as other:
        assert other.submit(client.post, "/fit?name=a&nb_concepts=2", content=A).result(30).status_code == 202


def test_dictionaries_that_are_changed_hold_up_no_fit(
    client: TestClient, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.fits_hang = True
    id = client.post("/fit?name=a&nb_concepts=2", content=A).json()["id"]
    slow = Slow()
    monkeypatch.setattr(Store, "publish", slow)
    with slow.of_many(client, "/dictionaries/b", "PUT") as other:
        assert other.submit(client.post, "/fit?name=a&nb_concepts=2", content=A).result(30).status_code == 202
        assert other.submit(client.post, f"/jobs/{id}/cancel").result(30).json()["state"] == "cancelled"
        assert other.submit(client.get, "/metrics").result(30).status_code == 200


def test_dictionaries_that_are_fetched_hold_up_no_fit(
    client: TestClient, networked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr(Store, "find", slow)
    with slow.of_many(client, f"/encode?dictionary={networked}") as other:
        accepted = other.submit(client.post, "/fit?name=a&nb_concepts=2", content=A)
        assert accepted.result(30).status_code == 202


def test_requests_for_one_dictionary_fetch_it_once(
    client: TestClient, networked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that fails is told to all of them, and is no answer to who comes later."""
    slow = Slow()
    path = f"/encode?dictionary={networked}"
    with ThreadPoolExecutor(AT_ONCE) as pool, monkeypatch.context() as slowly:
        slowly.setattr(Store, "fetch", slow)
        waiting = [pool.submit(client.post, path, content=A) for _ in range(AT_ONCE)]
        try:
            assert slow.began.acquire(timeout=30)
            assert not slow.began.acquire(timeout=0.5)
        finally:
            slow.goes_on.set()
        assert {answer.result().status_code for answer in waiting} == {503}
    assert client.post(path, content=A).status_code == 200


def test_so_many_calls_at_once_as_are_told() -> None:
    most, under_way, counted, guard = 3, 0, [], threading.Lock()

    def call(argument: int) -> int:
        nonlocal under_way
        with guard:
            under_way += 1
            counted.append(under_way)
        barrier.wait(30)
        with guard:
            under_way -= 1
        return argument

    async def called() -> list[int]:
        threads = Threads("test", most)
        try:
            return await asyncio.gather(*(threads(call, number) for number in range(4 * most)))
        finally:
            threads.shutdown()

    barrier = threading.Barrier(most)
    assert asyncio.run(called()) == list(range(4 * most))
    assert max(counted) == most


def test_what_is_logged_in_a_thread_is_of_its_request() -> None:
    async def told() -> object:
        of_request.set({"request_id": "seven"})
        threads = Threads("test")
        try:
            return await threads(of_request.get)
        finally:
            threads.shutdown()

    assert asyncio.run(told()) == {"request_id": "seven"}
