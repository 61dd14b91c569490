"""``/fit`` and ``/jobs``: from the accepted request to the published dictionary, whatever happens in between."""

import asyncio
import contextlib
import math
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import sqlalchemy as sql
from fastapi.testclient import TestClient

from app.errors import DataUnavailable, JobsAway, JobsUnavailable, StoreUnavailable, WorkerUnavailable
from app.jobs import database_threads, loops, retrying, upkeep
from app.jobs import jobs as jobs_of_all
from app.jobs.data_files import DataFiles
from app.jobs.database import Database
from app.jobs.following import Following
from app.jobs.jobs import ENDED, Jobs
from app.jobs.leases import Leases, leases
from app.main import create_app
from app.schemas import FitRequest, Job
from app.services import Services
from app.settings import Settings
from app.store.references import Reference
from app.store.store import Store
from app.store.uploads import Uploads
from app.supervisor import JobListener
from app.worker.frames import Frame
from app.worker.messages import Failed, FitBegun, FitProgress, ToWorker
from app.workers import Workers
from demo.service import npy
from tests.app.conftest import WorkerDouble, ended
from tests.waiting import SOON_SECONDS, until

A = np.arange(12, dtype=np.float32).reshape(3, 4)
FIT = {"name": "digits", "nb_concepts": 2, "data": A.tolist()}


# Of what is done before a job is on record, or beside that, by code that knows nothing of the database.
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    """On each kind of database."""
    return settings.model_copy(update={"database_url": database_url})


def test_events_after_one_that_there_never_was_are_all_told(client: TestClient) -> None:
    id = client.post("/fit", json=FIT).json()["id"]
    ended(client, id)
    for last in ("1-" + "9" * 5000, "9" * 5000 + "-1", "ended", "1-1-1"):
        answer = client.get(f"/jobs/{id}/events", headers={"last-event-id": last})
        assert "event: end" in answer.text, last


@ON_SQLITE
def test_a_database_that_is_away_for_a_moment_ends_nobodys_wait(
    client: TestClient, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.following.RETRY_SECONDS", 0.02)
    monkeypatch.setattr("app.jobs.following.LOOK_SECONDS", 0.02)
    worker.fits_hang = True
    one, other = (client.post("/fit", json=FIT).json()["id"] for _ in range(2))
    asked, real, is_away = Counter[str](), Following.get, False

    async def get(self: Following, id: str) -> Job:
        asked[id] += 1
        if is_away:
            raise JobsAway("the jobs' database cannot be used: its connection was lost")
        return await real(self, id)

    monkeypatch.setattr(Following, "get", get)
    with ThreadPoolExecutor(2) as clients:
        following = clients.submit(client.get, f"/jobs/{one}/events")
        waiting = clients.submit(client.get, f"/jobs/{other}", headers={"prefer": "wait=60"})
        until(lambda: min(asked[one], asked[other]) > 2)
        is_away = True
        asked.clear()
        until(lambda: min(asked[one], asked[other]) > 2)
        is_away = False
        for id in (other, one):
            client.post(f"/jobs/{id}/cancel")
        assert "event: end" in following.result().text
        assert waiting.result().json()["state"] == "cancelled"


@ON_SQLITE
def test_events_tell_a_jobs_state(client: TestClient, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which changes without any progress, where a worker dies and the job goes back into the queue."""
    worker.fits_hang = True
    id = client.post("/fit", json=FIT).json()["id"]
    job = until(lambda: told if (told := client.get(f"/jobs/{id}").json())["progress"]["iteration"] else None)
    at = ("queued", 0, 0), ("running", 1, 0), ("running", 1, 7), ("queued", 1, 7), ("running", 2, 7)

    async def follow(self: Following, begun: Job) -> AsyncIterator[Job]:
        for state, attempts, iteration in at:
            progress = begun.progress.model_copy(update={"iteration": iteration})
            yield begun.model_copy(update={"state": state, "attempts": attempts, "progress": progress})

    monkeypatch.setattr(Following, "follow", follow)

    def told(last: str = "") -> list[tuple[str, int, int]]:
        text = client.get(f"/jobs/{id}/events", headers={"last-event-id": last}).text
        ids = [tuple(map(int, found.split("-"))) for found in re.findall(r"^id: (.*)$", text, re.M)]
        data = [orjson.loads(found) for found in re.findall(r"^data: (.*)$", text, re.M)]
        assert [each["iteration"] for each in data] == [iteration for _, iteration in ids]
        assert all(each.keys() == job["progress"].keys() | {"state"} for each in data)
        return [(each["state"], *at) for each, at in zip(data, ids, strict=True)]

    assert told() == told("1-0") == list(at)
    assert told("1-7") == [at[0], at[1], at[3], at[4]]


def test_who_has_had_the_end_of_a_jobs_events_is_told_that_nothing_follows(
    client: TestClient, worker: WorkerDouble
) -> None:
    """Or an EventSource that is not closed asks again for ever."""
    worker.fits_hang = True
    id = client.post("/fit", json=FIT).json()["id"]
    with ThreadPoolExecutor(1) as pool:  # it cannot have had the end of one that has not ended
        following = pool.submit(client.get, f"/jobs/{id}/events", headers={"last-event-id": "end"})
        client.post(f"/jobs/{id}/cancel")
        assert (following.result().status_code, "event: end" in following.result().text) == (200, True)
    answer = client.get(f"/jobs/{id}/events", headers={"last-event-id": "end"})
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_fit_is_accepted_runs_and_publishes(client: TestClient, store: Store) -> None:
    answer = client.post("/fit", json=FIT)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert (job["state"], job["name"], job["attempts"]) == ("queued", "digits", 0)
    assert job["parameters"] == {
        "nb_concepts": 2, "solver": "hals", "max_iter": 500, "tol": 1e-4, "init": "auto", "seed": 0, "ranks": 1,
        "clip": False,
    }  # fmt: skip

    job = ended(client, job["id"])
    assert (job["state"], job["version"], job["attempts"], job["error"]) == ("succeeded", 1, 1, None)
    assert job["progress"]["relative_error"] == 0.5
    assert job["loss_history"] == [[1, 2.0]]
    assert job["created_at"] <= job["started_at"] <= job["ended_at"]

    told = client.get("/dictionaries/digits").json()
    assert (told["version"], told["versions"], told["nb_concepts"], told["n_features"]) == (1, [1], 2, 4)
    assert told["metrics"] == {"relative_error": 0.5}
    assert told["data"]["rows"] == 3
    assert told["job"] == job["id"]
    np.testing.assert_array_equal(store.load("digits", 1), A[:2])
    assert list(store.workplace.activations.iterdir()) == []  # the data is not kept past its job


def test_npy_with_parameters_in_the_query(client: TestClient, store: Store) -> None:
    arrays = A, A.astype(np.float64), np.asfortranarray(A), A.astype(np.int32)
    for version, array in enumerate(arrays, start=1):
        answer = client.post("/fit", params={"name": "digits", "nb_concepts": 2, "seed": 7}, content=npy(array))
        assert answer.status_code == 202, answer.text
        assert answer.json()["parameters"]["seed"] == 7
        job = ended(client, answer.json()["id"])
        assert (job["state"], job["version"]) == ("succeeded", version)
        np.testing.assert_array_equal(store.load("digits", version), A[:2])


@ON_SQLITE
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_staged_of_an_npy(client: TestClient, worker: WorkerDouble, dtype: type) -> None:
    worker.fits_hang = True
    client.post("/fit?name=a&nb_concepts=1", content=npy(A.astype(dtype)))
    fit = until(lambda: worker.fits, every=0.01)[0]
    read = np.memmap(fit.path, np.float32, "r", fit.data_offset, (fit.rows, fit.n_features))
    np.testing.assert_array_equal(read, A)


@ON_SQLITE
def test_a_fit_whose_worker_goes_as_it_is_told_is_tried_again(
    client: TestClient, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell, refusals = worker.tell_job, ["the worker is starting"] * 3

    def tell_job(job: str, message: ToWorker, listener: JobListener) -> None:
        if refusals:
            raise WorkerUnavailable(refusals.pop())
        tell(job, message, listener)

    monkeypatch.setattr(worker, "tell_job", tell_job)
    job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert (job["state"], job["attempts"], job["error"]) == ("succeeded", 4, None)


@ON_SQLITE
def test_a_long_history_of_losses_is_thinned(client: TestClient, worker: WorkerDouble) -> None:
    worker.checkpoint = FitBegun("", 3000, 1.0), list(np.linspace(9, 3, 3000))
    history = ended(client, client.post("/fit", json=FIT).json()["id"])["loss_history"]
    assert 200 < len(history) <= 500
    assert (history[0], history[-1]) == ([1, 9.0], [3001, 2.0])


def test_a_name_that_exists_gets_its_next_version(client: TestClient) -> None:
    for version in (1, 2, 3):
        assert ended(client, client.post("/fit", json=FIT).json()["id"])["version"] == version
    assert client.get("/dictionaries/digits").json()["versions"] == [1, 2, 3]
    assert client.get("/dictionaries/digits@2").json()["version"] == 2
    (listed,) = client.get("/dictionaries").json()["dictionaries"]
    assert (listed["name"], listed["version"]) == ("digits", 3)


def test_jobs_are_listed_newest_first(client: TestClient) -> None:
    ids = [client.post("/fit", json=FIT).json()["id"] for _ in range(3)]
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == ids[::-1]
    first = client.get("/jobs?limit=2").json()
    assert ([job["id"] for job in first["jobs"]], first["next"]) == (ids[:0:-1], ids[1])
    rest = client.get(f"/jobs?limit=2&cursor={first['next']}").json()
    assert ([job["id"] for job in rest["jobs"]], rest["next"]) == (ids[:1], None)


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_a_job_that_has_ended_tells_how_far_it_came_and_of_no_time_to_go(
    client: TestClient, worker: WorkerDouble, end: str
) -> None:
    worker.fits_hang = end == "cancelled"
    id = client.post("/fit", json=FIT).json()["id"]
    if end == "cancelled":
        until(lambda: client.get(f"/jobs/{id}").json()["progress"]["eta_seconds"] is not None, every=0.01)
        assert client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    job = ended(client, id)
    assert (job["state"], job["loss_history"]) == (end, [[1, 2.0]])
    progress = {"iteration": 1, "loss": 2.0, "eta_seconds": None}
    assert {name: job["progress"][name] for name in progress} == progress  # type: ignore[index]


def test_a_list_leaves_out_what_grows_with_a_job(client: TestClient, worker: WorkerDouble) -> None:
    done = client.post("/fit", json=FIT, headers={"prefer": "wait=10"}).json()
    worker.fits_hang = True
    running = client.post("/fit", json=FIT).json()["id"]
    of_running = until(lambda: told if (told := client.get(f"/jobs/{running}").json())["loss_history"] else None)
    listed = client.get("/jobs").json()["jobs"]
    assert listed == [{k: v for k, v in job.items() if k != "loss_history"} for job in (of_running, done)]
    assert [job["progress"]["loss"] for job in listed] == [2.0, 2.0]  # as the worker told it, of both


def test_jobs_are_listed_by_state_and_name(client: TestClient, worker: WorkerDouble) -> None:
    done = client.post("/fit", json=FIT, headers={"prefer": "wait=10"}).json()["id"]
    worker.fits_hang = True
    waiting = client.post("/fit", json=FIT | {"name": "other"}).json()["id"]
    listed = {
        query: [job["id"] for job in client.get(f"/jobs?{query}").json()["jobs"]]
        for query in ("state=succeeded", "state=failed", "name=other", "name=digits&state=succeeded", "name=nope")
    }
    assert listed == {
        "state=succeeded": [done],
        "state=failed": [],
        "name=other": [waiting],
        "name=digits&state=succeeded": [done],
        "name=nope": [],
    }
    assert client.get("/jobs?state=perhaps").status_code == 422


def test_fifty_requests_with_one_key_are_one_job(client: TestClient, store: Store) -> None:
    headers = {"idempotency-key": "abc"}
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: client.post("/fit", json=FIT, headers=headers), range(50)))
    assert {answer.status_code for answer in answers} <= {200, 202}  # 200 once it has ended
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert ended(client, answers[0].json()["id"])["version"] == 1
    assert (
        client.post("/fit", content=npy(A), params={"name": "digits", "nb_concepts": 2}, headers=headers).json()[
            "state"
        ]
        == "succeeded"
    )  # the same request in another format
    assert list(store.workplace.activations.iterdir()) == []


def test_a_key_is_of_one_request(client: TestClient) -> None:
    headers = {"idempotency-key": "abc"}
    client.post("/fit", json=FIT, headers=headers)
    for other in (FIT | {"seed": 1}, FIT | {"name": "b"}, FIT | {"data": [[1, 2, 3, 4]]}):
        answer = client.post("/fit", json=other, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (422, "idempotency-key-reused")
    assert len(client.get("/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize("days", [0.0, 36_526.0, 1e9, math.inf])
def test_records_are_kept_for_some_time_and_a_century_at_most(days: float) -> None:
    with pytest.raises(ValueError, match="job_retention_days"):
        Settings(job_retention_days=days)


def test_records_of_long_ended_jobs_are_removed(settings: Settings, worker: WorkerDouble) -> None:
    with TestClient(create_app(settings, supervisor=worker)) as client:
        id = client.post("/fit", json=FIT, headers={"prefer": "wait=10"}).json()["id"]
    with TestClient(create_app(settings, supervisor=worker)) as client:
        assert client.get(f"/jobs/{id}").status_code == 200
    time.sleep(0.2)
    forgetful = settings.model_copy(update={"job_retention_days": 0.1 / 86400})
    with TestClient(create_app(forgetful, supervisor=worker)) as client:
        assert client.get(f"/jobs/{id}").status_code == 404
        assert client.get("/dictionaries/digits").status_code == 200


def test_a_running_job_tells_its_progress(client: TestClient, worker: WorkerDouble) -> None:
    worker.fits_hang = True
    id = client.post("/fit", json=FIT).json()["id"]
    answer = until(lambda: told if (told := client.get(f"/jobs/{id}")).json()["progress"]["iteration"] else None)
    job = answer.json()
    assert job["state"] == "running"
    assert answer.headers["retry-after"] == "1"
    assert job["progress"]["loss"] == 2.0
    assert job["progress"]["eta_seconds"] == pytest.approx(0.01 * 499, abs=0.1)


def test_a_fit_that_is_waited_for_answers_with_its_end(client: TestClient, worker: WorkerDouble) -> None:
    answer = client.post("/fit", json=FIT, headers={"prefer": "respond-async, wait=30"})
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=30"
    worker.fits_hang = True
    begun = time.monotonic()
    answer = client.post("/fit", json=FIT, headers={"prefer": "wait=1"})
    assert 0.9 < time.monotonic() - begun < SOON_SECONDS
    assert (answer.status_code, answer.json()["state"]) == (202, "running")


def test_a_job_is_waited_for_by_who_knows_its_id(client: TestClient, worker: WorkerDouble) -> None:
    id = client.post("/fit", json=FIT).json()["id"]
    answer = client.get(f"/jobs/{id}", headers={"prefer": "wait=30"})
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=30"
    assert "retry-after" not in answer.headers
    worker.fits_hang = True
    id = client.post("/fit", json=FIT).json()["id"]
    begun = time.monotonic()
    answer = client.get(f"/jobs/{id}", headers={"prefer": "wait=1"})
    assert 0.9 < time.monotonic() - begun < SOON_SECONDS
    assert (answer.json()["state"], answer.headers["retry-after"]) == ("running", "1")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.get, f"/jobs/{id}", headers={"prefer": "wait=60"})
        time.sleep(0.2)
        client.delete(f"/jobs/{id}")
        assert waiting.result().json()["state"] == "cancelled"
    assert client.get("/jobs/1", headers={"prefer": "wait=30"}).status_code == 404


@ON_SQLITE
def test_a_wait_is_heeded_as_it_may_be_written(client: TestClient) -> None:
    for prefer in ("Wait=30", 'wait="30"', "handling=lenient; a=b , wait = 30", "respond-async,wait=30"):
        answer = client.post("/fit", json=FIT, headers={"prefer": prefer})
        assert (answer.status_code, answer.headers.get("preference-applied")) == (200, "wait=30"), prefer


@ON_SQLITE
def test_preferences_in_several_lines_are_one_list(client: TestClient) -> None:
    lines = [("prefer", "respond-async"), ("prefer", "wait=100000")]
    answer = client.post("/fit", json=FIT, headers=lines)
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=600")


@ON_SQLITE
def test_what_is_no_preference_to_wait_is_none(client: TestClient, worker: WorkerDouble) -> None:
    worker.fits_hang = True
    for prefer in ("nowait=30", "other; wait=30", "wait=-1", "wait"):
        answer = client.post("/fit", json=FIT, headers={"prefer": prefer})
        assert (answer.status_code, "preference-applied" in answer.headers) == (202, False)


def test_a_job_whose_record_is_removed_under_who_waits_is_told_as_it_was(
    client: TestClient, worker: WorkerDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """As another service does it on the same store, which turns no event here."""
    worker.fits_hang = True
    running = client.post("/fit", json=FIT).json()["id"]
    until(lambda: client.get(f"/jobs/{running}").json()["state"] == "running", every=0.01)
    headers = {"idempotency-key": "one", "prefer": "wait=30"}
    id = client.post("/fit", json=FIT, headers={"idempotency-key": "one"}).json()["id"]
    with ThreadPoolExecutor(2) as clients:
        waiting = clients.submit(client.post, "/fit", json=FIT, headers=headers)
        following = clients.submit(client.get, f"/jobs/{id}/events")
        time.sleep(0.5)
        table = jobs_of_all._jobs
        with client.app.state.services.database.transaction() as connection:  # type: ignore[attr-defined]
            connection.execute(table.delete().where(table.c.id == id))
        answer = waiting.result()
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        assert answer.headers["location"] == f"/jobs/{id}"
        assert following.result().status_code == 200
        assert "event: end" not in following.result().text
    assert client.get(f"/jobs/{id}").status_code == 404
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_whether_activations_were_clipped_is_on_record(client: TestClient) -> None:
    for clip in (True, False):
        job = client.post("/fit", json=FIT | {"clip": clip}, headers={"prefer": "wait=30"}).json()
        assert job["parameters"]["clip"] is clip
        record = client.get(f"/dictionaries/{job['name']}@{job['version']}").json()
        assert record["parameters"]["clip"] is clip


@ON_SQLITE
def test_those_who_wait_can_be_let_go_while_later_ones_wait(client: TestClient, worker: WorkerDouble) -> None:
    worker.fits_hang = True
    headers = {"idempotency-key": "one", "prefer": "wait=600"}
    id = client.post("/fit", json=FIT, headers={"idempotency-key": "one"}).json()["id"]
    assert client.portal is not None
    with ThreadPoolExecutor(3) as clients:
        waiting = clients.submit(client.post, "/fit", json=FIT, headers=headers)
        following = clients.submit(client.get, f"/jobs/{id}/events")
        while not (waiting.done() and following.done()):
            client.portal.call(client.app.state.services.fits.following.let_go)  # type: ignore[attr-defined]
            time.sleep(0.05)
        assert waiting.result().status_code == 202  # it has not ended
        assert "event: end" not in following.result().text
        later = clients.submit(client.post, "/fit", json=FIT, headers=headers)
        assert client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
        assert (later.result().status_code, later.result().json()["state"]) == (200, "cancelled")


def test_cancelling(client: TestClient, worker: WorkerDouble, store: Store) -> None:
    worker.fits_hang = True
    running, queued = (client.post("/fit", json=FIT).json()["id"] for _ in range(2))
    until(lambda: client.get(f"/jobs/{running}").json()["state"] == "running", every=0.01)
    for id in (queued, running):
        answer = client.delete(f"/jobs/{id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert client.get("/dictionaries").json() == {"dictionaries": []}
    assert list(store.workplace.activations.iterdir()) == []
    assert client.delete(f"/jobs/{running}").status_code == 204  # an ended job's record is removed
    assert client.get(f"/jobs/{running}").status_code == 404


def test_a_cancel_leaves_what_has_ended(client: TestClient, worker: WorkerDouble) -> None:
    done = client.post("/fit", json=FIT, headers={"prefer": "wait=30"}).json()
    for _ in range(2):
        answer = client.post(f"/jobs/{done['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
    worker.fits_hang = True
    running = client.post("/fit", json=FIT).json()["id"]
    for _ in range(2):
        assert client.post(f"/jobs/{running}/cancel").json()["state"] == "cancelled"
    assert client.post("/jobs/none/cancel").status_code == 404


def test_a_fit_whose_worker_dies_once_is_tried_again(client: TestClient, worker: WorkerDouble) -> None:
    worker.dies_on_fits = 1
    job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert (job["state"], job["attempts"]) == ("succeeded", 2)


def test_a_fit_that_kills_its_worker_twice_is_given_up(
    client: TestClient, worker: WorkerDouble, store: Store
) -> None:
    worker.dies_on_fits = 2
    job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert job["state"] == "failed"
    assert job["error"]["type"] == "fit-abandoned"
    assert len(worker.fits) == 2
    assert list(store.workplace.activations.iterdir()) == []
    assert ended(client, client.post("/fit", json=FIT).json()["id"])["state"] == "succeeded"


@ON_SQLITE
def test_a_fit_whose_files_stay_away_fails_in_time(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from its checkpoint each time, as far as it was when they went away, and no further."""
    monkeypatch.setattr(retrying, "REACH_SECONDS", 0.5)
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.05)

    def held_up(job: str, message: ToWorker, listener: JobListener) -> None:
        listener(Frame(FitBegun(job, 5, 0.0), [np.ones(5)]))
        listener(Frame(FitProgress(job, 8, 20, 2.0, 0.5, 0.1, 0.01)))
        listener(Frame(Failed(job, "DataUnavailable", "the data directory is not there")))

    monkeypatch.setattr(worker, "tell_job", held_up)
    with TestClient(create_app(settings, supervisor=worker)) as client:
        job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert (job["state"], job["error"]["type"]) == ("failed", "data-unavailable")  # type: ignore[index]
    assert job["progress"]["iteration"] == 8  # type: ignore[index]


def test_of_fits_that_wait_for_files_a_few_let_others_go_before(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.01)
    is_away, fit = True, worker.tell_job

    def held_up(job: str, message: ToWorker, listener: JobListener) -> None:
        if is_away:
            listener(Frame(Failed(job, "DataUnavailable", "the data directory is not there")))
        else:
            fit(job, message, listener)

    monkeypatch.setattr(worker, "tell_job", held_up)
    with TestClient(create_app(settings, supervisor=worker)) as client:
        ids = [client.post("/fit", json=FIT).json()["id"] for _ in range(loops.MAX_ASIDE + 3)]
        states = ["running"] * (loops.MAX_ASIDE + 1) + ["queued"] * 2  # the last of those that run has stayed in
        until(lambda: [client.get(f"/jobs/{id}").json()["state"] for id in ids] == states)
        assert client.delete(f"/jobs/{ids[0]}").json()["state"] == "cancelled"
        until(lambda: client.get(f"/jobs/{ids[-2]}").json()["state"] == "running")
        is_away = False
        assert {ended(client, id)["state"] for id in ids[1:]} == {"succeeded"}
        runners = client.app.state.services.fits._loops._tasks  # type: ignore[attr-defined]
        until(lambda: len(runners) == 1)


def test_a_fit_that_waits_for_the_store_can_be_cancelled(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.05)

    def away(*_: object) -> None:
        raise StoreUnavailable("the store's directory of 'digits' cannot be used")

    with TestClient(create_app(settings, supervisor=worker)) as client:
        monkeypatch.setattr(client.app.state.services.store, "made_by", away)  # type: ignore[attr-defined]
        id = client.post("/fit", json=FIT).json()["id"]
        until(lambda: client.get(f"/jobs/{id}").json()["state"] == "running", every=0.01)
        client.post(f"/jobs/{id}/cancel")
        assert ended(client, id)["state"] == "cancelled"


@ON_SQLITE
def test_files_that_are_away_again_and_again_have_their_time_each_time(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "REACH_SECONDS", 0.2)
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.01)
    data = settings.store.parent / "data"
    data.mkdir()
    np.save(data / "a.npy", np.ones((8, 4), np.float32))
    attempts = 0

    def blocks(*_: object) -> Iterator[np.ndarray]:
        nonlocal attempts
        attempts += 1
        yield from np.ones((attempts - 1, 1, 4), np.float32)
        time.sleep(0.15)
        if attempts < 8:
            raise DataUnavailable("the data directory is not there")
        yield np.ones((9 - attempts, 4), np.float32)

    settings = settings.model_copy(update={"data_dir": data})
    with TestClient(create_app(settings, supervisor=worker)) as client:
        monkeypatch.setattr(DataFiles, "blocks", blocks)
        fit = {"name": "x", "nb_concepts": 2, "files": ["a.npy"]}
        assert ended(client, client.post("/fit", json=fit).json()["id"])["state"] == "succeeded"


def test_a_stop_leaves_the_job_to_the_next_start(settings: Settings, worker: WorkerDouble) -> None:
    worker.fits_hang = True
    with TestClient(create_app(settings, supervisor=worker)) as client:
        id = client.post("/fit", json=FIT).json()["id"]
        until(lambda: client.get(f"/jobs/{id}").json()["state"] == "running", every=0.01)
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        job = ended(client, id)
    assert (job["state"], job["attempts"]) == ("succeeded", 2)


def test_a_fit_that_goes_on_from_a_checkpoint_says_so(settings: Settings, worker: WorkerDouble) -> None:
    """Its progress, losses and time go on from there; the time of all attempts adds up."""
    worker.fits_hang = True
    losses = [9.0, 8.0, 7.0, 6.0, 5.0]
    with TestClient(create_app(settings, supervisor=worker)) as client:
        id = client.post("/fit", json=FIT).json()["id"]
        until(lambda: client.get(f"/jobs/{id}").json()["progress"]["iteration"], every=0.01)
        assert client.get(f"/jobs/{id}").json()["resumed_from"] is None
    worker.checkpoint = FitBegun("", 5, 0.06), losses
    with TestClient(create_app(settings, supervisor=worker)) as client:
        while (job := client.get(f"/jobs/{id}").json())["progress"]["iteration"] < 6:
            assert job["progress"]["iteration"] in (1, 5)  # as it was left, or as it goes on; never before that
            time.sleep(0.01)
        assert (job["resumed_from"], job["attempts"]) == (5, 2)
        assert job["progress"]["seconds"] == pytest.approx(0.02)
        assert job["progress"]["eta_seconds"] == pytest.approx((0.06 + 0.01) / 6 * 494, abs=0.06)
        assert job["loss_history"] == [[i, loss] for i, loss in enumerate([*losses, 2.0], start=1)]
    worker.fits_hang = False
    worker.checkpoint = None  # it was of no use, this time
    with TestClient(create_app(settings, supervisor=worker)) as client:
        job = ended(client, id)
        assert (job["state"], job["attempts"], job["resumed_from"]) == ("succeeded", 3, None)
        assert job["loss_history"] == [[1, 2.0]]
        assert client.get("/dictionaries/digits").json()["seconds"] == pytest.approx(0.03)


def test_a_checkpoint_goes_with_its_job(settings: Settings, worker: WorkerDouble) -> None:
    """However it ends; not before, and not where another process may need it."""
    with TestClient(create_app(settings, supervisor=worker)) as client:
        checkpoints = client.app.state.services.fits._resources.checkpoints  # type: ignore[attr-defined]
        directory = Store(settings.store).workplace.checkpoints

        def kept(id: str) -> None:
            checkpoints.path(id).write_text("")

        worker.fits_hang = True
        running, queued = (client.post("/fit", json=FIT).json()["id"] for _ in range(2))
        until(lambda: client.get(f"/jobs/{running}").json()["state"] == "running", every=0.01)
        kept(running)
        kept(queued)
        (directory / "1-dead.nobodys.safetensors").write_text("")
        assert client.delete(f"/jobs/{queued}").json()["state"] == "cancelled"
        assert client.delete(f"/jobs/{running}").json()["state"] == "cancelled"
        assert [path.name for path in directory.iterdir()] == ["1-dead.nobodys.safetensors"]

        left = client.post("/fit", json=FIT).json()["id"]
        until(lambda: client.get(f"/jobs/{left}").json()["state"] == "running", every=0.01)
        kept(left)
        own = checkpoints.path(left).name
    worker.fits_hang = False
    assert [path.name for path in directory.glob(f"*.{left}.*")] == [own]
    with TestClient(create_app(settings, supervisor=worker)) as client:
        assert ended(client, left)["state"] == "succeeded"
        assert list(directory.iterdir()) == []
        place = worker.fits[-1].checkpoint
        assert place is not None
        assert Path(place.path).name != own  # it was taken over
        assert place.interval_seconds == 30
    without = settings.model_copy(update={"checkpoint_interval_seconds": 0})
    with TestClient(create_app(without, supervisor=worker)) as client:
        ended(client, client.post("/fit", json=FIT).json()["id"])
        assert worker.fits[-1].checkpoint is None


def test_an_end_is_told_once_nothing_is_left_of_the_job(
    client: TestClient, store: Store, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to who has asked before the job was taken up, and has its record only after its end was written."""
    is_asked, may_discard = threading.Event(), threading.Event()
    get, discard = Jobs.get, Uploads.discard

    def slow_get(jobs: Jobs, id: str) -> Any:
        is_asked.set()
        until(lambda: get(jobs, id).job.state in ENDED, every=0.01)
        return get(jobs, id)

    worker.alive = False
    id = client.post("/fit", json=FIT).json()["id"]
    monkeypatch.setattr(Jobs, "get", slow_get)
    monkeypatch.setattr(Uploads, "discard", lambda *told: may_discard.wait(SOON_SECONDS) and discard(*told))
    with ThreadPoolExecutor(1) as threads:
        told = threads.submit(lambda: client.get(f"/jobs/{id}").json()["state"])
        assert is_asked.wait(SOON_SECONDS)
        worker.alive = True
        assert told.result() == "running"
        may_discard.set()
    assert ended(client, id)["state"] == "succeeded"
    assert list(store.workplace.activations.iterdir()) == []


def test_a_job_published_before_a_crash_is_not_fitted_again(settings: Settings, worker: WorkerDouble) -> None:
    """Between publishing and recording: the dictionary itself says which job made it."""
    with TestClient(create_app(settings, supervisor=worker)) as client:
        first = ended(client, client.post("/fit", json=FIT).json()["id"])
    with TestClient(create_app(settings, supervisor=worker)) as client:
        jobs = client.app.state.services.jobs  # type: ignore[attr-defined]
        jobs._update(jobs_row(first["id"]), state="running", version=None, owner="1-dead", ended_at=None)
    with TestClient(create_app(settings, supervisor=worker)) as client:
        again = ended(client, str(first["id"]))
        assert (again["state"], again["version"], again["attempts"]) == ("succeeded", 1, 2)
        assert client.get("/dictionaries/digits").json()["versions"] == [1]
    assert len(worker.fits) == 1


@dataclass
class Publishing:
    """Publishing held up: ``begun`` once it has, until ``go`` is set."""

    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def publishing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publishing]:
    held, publish = Publishing(), Store.publish

    def when_told(*args: object, **told: object) -> object:
        held.begun.set()
        assert held.go.wait(30)
        return publish(*args, **told)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "publish", when_told)
    yield held
    held.go.set()


def test_a_cancel_while_it_publishes_is_answered_with_what_became_of_it(
    client: TestClient, store: Store, publishing: Publishing
) -> None:
    id = client.post("/fit", json=FIT).json()["id"]
    assert publishing.begun.wait(10)
    with ThreadPoolExecutor(1) as pool:
        cancelling = pool.submit(client.delete, f"/jobs/{id}")
        time.sleep(0.1)
        publishing.go.set()
        answer = cancelling.result()
    assert (answer.status_code, answer.json()["state"], answer.json()["version"]) == (200, "succeeded", 1)
    assert store.versions("digits") == [1]


def test_an_attempt_after_one_that_may_yet_publish_is_not_cancelled(
    client: TestClient, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the job might be told as cancelled, and have a dictionary."""
    monkeypatch.setattr("app.jobs.following.CANCEL_SECONDS", 0.2)
    worker.fits_hang = True
    jobs: Jobs = client.app.state.services.jobs  # type: ignore[attr-defined]
    id = client.post("/fit", json=FIT).json()["id"]
    until(lambda: client.get(f"/jobs/{id}").json()["progress"]["iteration"])
    assert jobs.begin_publishing(jobs.get(id))
    assert client.delete(f"/jobs/{id}").json()["state"] == "running"
    assert jobs.get(id).job.state == "running"


def test_a_job_that_publishes_is_not_cancelled_by_whoever_takes_it_up(
    client: TestClient, store: Store, publishing: Publishing
) -> None:
    """A process that is held up there, or dies, may have published it, or may yet."""
    jobs: Jobs = client.app.state.services.jobs  # type: ignore[attr-defined]
    id = client.post("/fit", json=FIT).json()["id"]
    assert publishing.begun.wait(10)
    jobs.request_cancel(id)  # as another process does
    owner = client.app.state.services.store.workplace.owner  # type: ignore[attr-defined]
    assert [record.job.id for record in jobs.take_over(owner, ())] == [id]  # as one that takes its owner for dead
    assert not jobs.cancel_queued(id)
    assert jobs.get(id).job.state not in ENDED
    publishing.go.set()
    job = ended(client, id)
    assert (job["state"], job["version"], store.versions("digits")) == ("succeeded", 1, [1])


def test_what_was_to_be_cancelled_before_it_published_leaves_no_version(
    client: TestClient, store: Store, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its fit ends as the cancel comes."""
    jobs: Jobs = client.app.state.services.jobs  # type: ignore[attr-defined]
    begin = Jobs.begin_publishing
    monkeypatch.setattr(
        Jobs, "begin_publishing", lambda self, attempt: (jobs.request_cancel(attempt.job.id), begin(self, attempt))[1]
    )
    job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert (job["state"], job["version"], store.versions("digits")) == ("cancelled", None, [])


def jobs_row(id: object) -> object:
    from app.jobs.jobs import _jobs

    return _jobs.c.id == id


def test_too_many_queued_fits(settings: Settings) -> None:
    small = settings.model_copy(update={"queue_jobs": 2})
    double = WorkerDouble(small)
    double.fits_hang = True
    with TestClient(create_app(small, supervisor=double)) as client:
        first = client.post("/fit", json=FIT, headers={"idempotency-key": "k"})
        answers = [first, *(client.post("/fit", json=FIT) for _ in range(4))]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert refused[-1].json()["type"] == "overloaded"
        assert int(refused[-1].headers["retry-after"]) > 0
        assert client.post("/fit", json=FIT, headers={"idempotency-key": "k"}).json()["id"] == first.json()["id"]
        unended = len(client.get("/jobs").json()["jobs"])
        assert len(list(Store(small.store).workplace.activations.iterdir())) == unended == 5 - len(refused)


@ON_SQLITE
def test_a_dictionary_that_is_not_there(store: Store) -> None:
    assert store.made_by("digits", "x") is None
    assert store.versions(Reference("digits").name) == []


def test_fits_can_be_left_to_another_process(settings: Settings, worker: WorkerDouble) -> None:
    """As on Ray: who answers runs none, and another on the same store soon finds what was asked for."""
    idle = WorkerDouble(settings)
    front = create_app(settings.model_copy(update={"fits": False}), supervisor=idle)
    with TestClient(front) as client, TestClient(create_app(settings, supervisor=worker)):
        answer = client.post("/fit", json=FIT, headers={"prefer": "wait=30"})
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
        assert client.get("/dictionaries/digits").status_code == 200
    assert (len(idle.fits), len(worker.fits)) == (0, 1)


@pytest.mark.parametrize("column", ["progress", "data"])
def test_a_job_whose_record_is_damaged_has_failed_and_others_go_on(
    settings: Settings, worker: WorkerDouble, column: str
) -> None:
    accepts = settings.model_copy(update={"fits": False})
    with TestClient(create_app(accepts, supervisor=worker)) as client:
        ids = [client.post("/fit", json=FIT).json()["id"] for _ in range(2)]
    database = Database(str(settings.database_url))
    with database.transaction() as connection:
        connection.execute(sql.text(f"UPDATE jobs SET {column} = '{{}}' WHERE id = '{ids[0]}'"))  # noqa: S608
    database.close()
    with TestClient(create_app(settings, supervisor=worker)) as client:
        assert ended(client, ids[1])["state"] == "succeeded"
        damaged = ended(client, ids[0])
        assert (damaged["state"], damaged["error"]["type"]) == ("failed", "job-damaged")  # type: ignore[index]
        assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == ids[::-1]
        assert client.delete(f"/jobs/{ids[0]}").status_code == 204


def test_a_database_that_is_far_away_takes_every_fit(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done every few seconds takes several transactions: no write is to be taken for stuck for that."""
    monkeypatch.setattr(upkeep, "TAKEOVER_SECONDS", 0.01)
    transaction = Database.transaction

    def slow(database: Database) -> AbstractContextManager[sql.Connection]:
        time.sleep(0.4 * database_threads.STUCK_SECONDS / 2)
        return transaction(database)

    with TestClient(create_app(settings, supervisor=worker)) as client:
        monkeypatch.setattr(Database, "transaction", slow)
        answers = [client.post("/fit", json=FIT) for _ in range(5)]
        monkeypatch.undo()
    assert [answer.status_code for answer in answers] == [202] * 5, answers[-1].text


def test_what_a_lost_machine_had_staged_is_removed_once_its_lease_is_ended(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be long after the start, and by another service."""
    monkeypatch.setattr(upkeep, "TAKEOVER_SECONDS", 0.01)
    lost = Services(settings, Workers(settings, [worker]))
    workplace = lost.store.workplace
    workplace.owner = "another-1-a"
    lost.open()
    staged = workplace.staging / workplace.owned_name()
    staged.mkdir()
    with TestClient(create_app(settings, supervisor=worker)) as client:
        time.sleep(0.1)
        assert staged.exists()
        lost.leases.give_back()
        until(lambda: list(workplace.staging.iterdir()) == [])
        services: Services = client.app.state.services  # type: ignore[attr-defined]
        assert [lock.name for lock in (workplace.directory / "owners").iterdir()] == [services.store.workplace.owner]


def test_of_many_services_each_looks_less_often_for_what_dead_ones_left(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how many there are when it last looked."""
    pauses = {n: [upkeep.takeover_pause(n) for _ in range(50)] for n in (0, 1, 8, 16, 48, 1000)}
    told = {n: (min(pause), max(pause)) for n, pause in pauses.items()}
    bounds = {0: (4, 5), 1: (4, 5), 8: (4, 5), 16: (8, 10), 48: (24, 30), 1000: (24, 30)}
    assert all(low <= told[n][0] < told[n][1] <= high for n, (low, high) in bounds.items()), told

    asked: list[int] = []
    monkeypatch.setattr(upkeep, "takeover_pause", lambda processes: asked.append(processes) or 0.01)
    with TestClient(create_app(settings, supervisor=worker)):
        until(lambda: asked)
        assert set(asked) == {1}
        database = Database(str(settings.database_url))
        with database.transaction() as connection:
            for i in range(20):
                database.insert_new(connection, leases, owner=f"other-{i}", until=2.0**40)
        database.close()
        until(lambda: asked[-1] == 21)


def test_data_that_is_slow_to_remove_costs_nobody_the_lease(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    renew, renewed = Leases.renew, threading.Semaphore(0)

    def refused(*_: Any, **__: Any) -> None:
        raise JobsUnavailable("the connection was lost")

    def slow(*_: Any) -> None:
        begun.set()
        goes_on.wait(30)

    def noted(leases: Leases) -> bool:
        renewed.release()
        return renew(leases)

    with TestClient(create_app(settings.model_copy(update={"lease_seconds": 1}), supervisor=worker)) as client:
        services = client.app.state.services  # type: ignore[attr-defined]
        with monkeypatch.context() as patched:
            patched.setattr(Jobs, "add", refused)
            patched.setattr(Jobs, "surely_data_files", refused)
            assert client.post("/fit", json=FIT).status_code == 503
            patched.setattr(Uploads, "discard", slow)
            patched.setattr(Jobs, "surely_data_files", lambda _: set())
            try:
                assert begun.wait(20)  # the data of a request that failed is being removed
                patched.setattr(Leases, "renew", noted)
                for _ in range(4):
                    assert renewed.acquire(timeout=3)
            finally:
                goes_on.set()
        assert services.store.workplace.owner in services.leases.alive()


def test_a_job_that_is_on_record_keeps_its_data_whatever_its_client_was_told(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the answer to COMMIT is lost: the data was removed, and the job failed."""
    add = Jobs.add

    def lost(*args: Any, **kwargs: Any) -> None:
        add(*args, **kwargs)
        raise JobsUnavailable("the connection was lost")

    monkeypatch.setattr(Jobs, "add", lost)
    assert client.post("/fit", json=FIT).status_code == 503
    (job,) = client.get("/jobs").json()["jobs"]
    assert ended(client, job["id"])["state"] == "succeeded"
    assert list(store.workplace.activations.iterdir()) == []


def test_a_job_whose_request_is_given_up_while_it_is_recorded_keeps_its_data(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, begun = Jobs.add, threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        time.sleep(0.3)
        return add(*args, **kwargs)

    monkeypatch.setattr(Jobs, "add", slow)
    fits = client.app.state.services.fits  # type: ignore[attr-defined]

    async def given_up() -> None:
        upload = fits.uploads.new_path()
        data = fits.uploads.stage(A, upload)
        task = asyncio.create_task(fits.submissions.submit(FitRequest(name="digits", nb_concepts=2), data))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert client.portal is not None
    client.portal.call(given_up)
    (job,) = until(lambda: client.get("/jobs").json()["jobs"], every=0.01)
    assert ended(client, job["id"])["state"] == "succeeded"
    assert list(store.workplace.activations.iterdir()) == []


def test_data_without_a_job_is_removed_once_the_database_says_that_there_is_none(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = False
    asked = Jobs.surely_data_files

    def refused(*_: Any, **__: Any) -> None:
        raise JobsUnavailable("the connection was lost")

    monkeypatch.setattr(Jobs, "add", refused)
    monkeypatch.setattr(Jobs, "surely_data_files", lambda jobs: asked(jobs) if is_there else refused())
    with TestClient(create_app(settings.model_copy(update={"lease_seconds": 1}), supervisor=worker)) as client:
        assert client.post("/fit", json=FIT).status_code == 503
        activations = Store(settings.store).workplace.activations
        assert len(list(activations.iterdir())) == 1
        is_there = True
        until(lambda: not list(activations.iterdir()))
