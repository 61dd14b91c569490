"""``/jobs/{id}/events``, read as a browser would."""

import json
import time
from contextlib import AbstractContextManager
from http.client import HTTPConnection, HTTPResponse

import httpx
import pytest

from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service
from tests.waiting import until

FITTED, _ = split_digits()


def events(service: Service, id: str, last: str | None = None, most: int = 10_000) -> list[dict[str, str]]:
    """The events until the stream ends, or the first so many."""
    with following(service, id, last) as stream:
        return events_of(stream, most)


def following(service: Service, id: str, last: str | None = None) -> AbstractContextManager[httpx.Response]:
    headers = {} if last is None else {"last-event-id": last}
    return httpx.stream("GET", f"{service.url}/jobs/{id}/events", headers=headers, timeout=60)


def events_of(stream: httpx.Response, most: int = 10_000) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    assert stream.headers["content-type"].startswith("text/event-stream")
    event: dict[str, str] = {}
    for line in stream.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif "data" in event:
            found.append(event)
            event = {}
            if len(found) == most:
                break
    return found


def test_progress_then_the_end(shared: Service) -> None:
    id = shared.fit(FITTED, name="followed", nb_concepts=64, solver="mu", tol=0, max_iter=200)
    *progress, end = events(shared, id)
    assert {event["event"] for event in progress} == {"progress"}
    iterations = [json.loads(event["data"])["iteration"] for event in progress]
    assert len(iterations) > 2
    assert iterations == sorted(set(iterations))
    assert (end["event"], json.loads(end["data"])["state"]) == ("end", "succeeded")
    assert [event["event"] for event in events(shared, id)] == ["end"]  # it has ended: nothing else is to be told


def test_a_broken_stream_is_taken_up_where_it_broke(shared: Service) -> None:
    id = shared.fit(FITTED, name="followed", nb_concepts=64, solver="mu", tol=0, max_iter=100_000)
    shared.until(id, "running", iteration=1)
    last = events(shared, id, most=2)[-1]
    later = events(shared, id, last=last["id"], most=1)[0]
    assert json.loads(later["data"])["iteration"] > json.loads(last["data"])["iteration"]
    assert shared.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert [event["event"] for event in events(shared, id, last=later["id"])] == ["end"]


@pytest.mark.parametrize("last", ["nonsense", "1-x", "-", "9" * 100 + "-1"])
def test_ids_that_are_none_are_passed_over(shared: Service, last: str) -> None:
    id = shared.fit(FITTED[:100], name="followed", nb_concepts=4)
    assert events(shared, id, last=last)[-1]["event"] == "end"


def test_an_unknown_job_is_a_404(shared: Service) -> None:
    answer = shared.client.get("/jobs/nope/events")
    assert (answer.status_code, answer.json()["type"]) == (404, "unknown-job")


def asked(service: Service, method: str, path: str, body: bytes | None = None) -> HTTPConnection:
    """A request that waits for a job, sent: its answer is to be read."""
    connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request(method, path, body, {"prefer": "wait=600"})
    return connection


def job_in(answer: HTTPResponse) -> tuple[str, str]:
    job = json.loads(answer.read())
    return job["state"], job["id"]


def test_who_waits_for_a_job_does_not_hold_up_a_stop(mortal: Service) -> None:
    """The waiting request is told how the job is now; the stream ends whole, to be taken up after the restart."""
    id = mortal.fit(FITTED, name="followed", nb_concepts=64, tol=0, max_iter=100_000)
    mortal.until(id, "running", iteration=1)

    waiting = asked(mortal, "POST", "/fit?name=x&nb_concepts=2", npy(FITTED))
    watching = asked(mortal, "GET", f"/jobs/{id}")
    (queued,) = until(lambda: mortal.client.get("/jobs?state=queued").json()["jobs"])
    with following(mortal, id) as stream, following(mortal, queued["id"]) as queued_stream:
        time.sleep(0.5)  # in which what was asked is read
        begun = time.monotonic()
        assert mortal.stop() == 0
        assert time.monotonic() - begun < 20  # of the 30 s of grace; the worker is busy with a slice
        told, queued_told = events_of(stream), events_of(queued_stream)  # no broken answers: those raise
    answer = waiting.getresponse()
    assert (answer.status, job_in(answer)) == (202, ("queued", queued["id"]))
    assert job_in(watching.getresponse()) == ("running", id)
    assert {event["event"] for event in told} == {"progress"}
    assert [event["event"] for event in queued_told] in ([], ["progress"])
