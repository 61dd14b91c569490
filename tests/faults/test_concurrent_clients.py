"""Many clients at once: floods past the bounds, same keys, same names, and dictionaries removed while in use."""

import io
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest

from app.store.store import Store
from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.asked import FITTED, ROWS, D, encode, fit, long_fit, problem, put, require_next, suspended
from tests.wire import request

QUEUE_ROWS = 30_000
QUEUE_JOBS = 30
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    base = tmp_path_factory.mktemp("concurrent")
    service = Service(
        base / "models", DICTSERVE_QUEUE_ROWS=str(QUEUE_ROWS), DICTSERVE_QUEUE_JOBS=str(QUEUE_JOBS)
    ).start()
    assert put(service).status_code == 201
    yield service
    assert "unexpected error" not in service.log.read_text()
    assert service.stop() == 0


@pytest.fixture(autouse=True)
def _next(shared: Service) -> Iterator[None]:
    yield
    require_next(shared)


def at_once(
    calls: int, call: Callable[[httpx.Client, int], httpx.Response], service: Service
) -> list[httpx.Response]:
    """The answers to calls that are all under way together."""
    limits = httpx.Limits(max_connections=calls)
    with httpx.Client(base_url=service.url, timeout=60, limits=limits) as client, ThreadPoolExecutor(calls) as pool:
        return list(pool.map(lambda i: call(client, i), range(calls)))


def test_a_thousand_connections_at_once(shared: Service) -> None:
    """All are open before the first asks. Each is served, or told at once to come back."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(("127.0.0.1", shared.port), timeout=30)) for _ in range(1000)
        ]
        for connection in opened:
            connection.sendall(request("POST", "/encode?dictionary=d", npy(ROWS)))
        answers = Counter(connection.recv(65536)[:12] for connection in opened)
    assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}, answers
    assert answers[b"HTTP/1.1 200"] >= 990, answers


def test_a_flood_past_the_queue(shared: Service) -> None:
    """200 requests of a fifth of the queue each: the admitted ones are right, the rest are told when to come back."""
    rows = np.tile(FITTED, (30, 1))
    expected = np.load(io.BytesIO(encode(shared, rows=FITTED).content))
    body = npy(rows)
    answers = at_once(200, lambda client, _: client.post("/encode?dictionary=d", content=body), shared)
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}, statuses
    for answer in answers:
        if answer.status_code == 503:
            assert "send" in problem(answer, 503, "overloaded")
        else:
            codes = np.load(io.BytesIO(answer.content))
            np.testing.assert_allclose(codes, np.tile(expected, (30, 1)), atol=1e-5)


def test_fifty_fits_with_one_key_are_one_job(shared: Service) -> None:
    headers = {"idempotency-key": "fifty"}
    answers = at_once(
        50,
        lambda client, _: client.post("/fit?name=keyed&nb_concepts=3", content=npy(FITTED), headers=headers),
        shared,
    )
    assert {answer.status_code for answer in answers} <= {200, 202}
    (id,) = {answer.json()["id"] for answer in answers}
    assert shared.ended(id)["version"] == 1
    assert shared.client.get("/dictionaries/keyed").json()["versions"] == [1]
    assert list(Store(shared.store).workplace.activations.iterdir()) == []


def test_a_flood_of_fits_past_their_queue(shared: Service) -> None:
    """All under one name: those that are accepted are whole versions of it."""
    running = long_fit(shared)
    with suspended(shared.worker_pid):
        answers = at_once(
            2 * QUEUE_JOBS,
            lambda client, i: client.post(
                "/fit", params={"name": "many", "nb_concepts": 3, "max_iter": 5, "seed": i}, content=npy(FITTED)
            ),
            shared,
        )
    accepted = [answer.json() for answer in answers if answer.status_code == 202]
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 503, "overloaded")
    assert len(accepted) == QUEUE_JOBS
    assert len(list(Store(shared.store).workplace.activations.iterdir())) == len(accepted) + 1
    shared.client.delete(f"/jobs/{running}")
    jobs = [shared.ended(job["id"]) for job in accepted]
    assert {job["state"] for job in jobs} == {"succeeded"}
    versions = [job["version"] for job in jobs]
    assert sorted(versions) == shared.client.get("/dictionaries/many").json()["versions"]
    assert sorted(versions) == list(range(1, QUEUE_JOBS + 1))
    for job, version in zip(accepted, versions, strict=True):
        told = shared.client.get(f"/dictionaries/many@{version}").json()
        assert (told["job"], told["parameters"]["seed"]) == (job["id"], job["parameters"]["seed"])
        assert np.isfinite(Store(shared.store).load("many", version)).all()


def test_removed_while_it_encodes(shared: Service) -> None:
    """Codes are those of the version that is named beside them: version i has concepts i times as large."""
    expected = np.load(io.BytesIO(encode(shared, rows=FITTED).content))
    statuses: Counter[int] = Counter()
    farthest: list[float] = []
    stop = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=shared.url, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/encode", json={"dictionary": "brief", "data": FITTED.tolist()})
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    told = answer.json()
                    farthest.append(np.abs(np.array(told["codes"]) * told["version"] - expected).max())
                statuses[client.get("/dictionaries/brief/weights").status_code] += 1
                labelled = client.patch("/dictionaries/brief", json={"labels": {"a": "b"}})
                statuses[labelled.status_code] += 1

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(1, 9):
        assert put(shared, "brief", scale=version).json()["version"] == version
        deleted = at_once(3, lambda client, _: client.delete("/dictionaries/brief"), shared)
        assert {answer.status_code for answer in deleted} <= {204, 404}
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 404}, statuses
    assert statuses[200]
    assert farthest
    assert max(farthest) < 1e-4
    assert put(shared, "brief").json()["version"] == 9


def test_removed_while_a_fit_makes_its_next_version(shared: Service) -> None:
    assert put(shared, "long").status_code == 201
    before = shared.client.get("/dictionaries/long").json()["version"]
    id = long_fit(shared, max_iter=200)
    assert shared.client.delete("/dictionaries/long").status_code == 204
    job = shared.ended(id)
    assert (job["state"], job["version"]) == ("succeeded", before + 1)


def test_removed_while_a_fit_that_starts_from_it_waits(shared: Service) -> None:
    assert put(shared, "start").status_code == 201
    running = long_fit(shared)
    waiting = fit(shared, name="next", nb_concepts=len(D), init="start")
    assert shared.client.delete("/dictionaries/start").status_code == 204
    shared.client.delete(f"/jobs/{running}")
    job = shared.ended(waiting)
    assert (job["state"], job["error"]["status"]) == ("failed", 404), job
