"""A fit followed to its end, by events that come whole, in pieces, broken off, or not at all."""

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest

from app.client import (
    AsyncClient,
    Client,
    Job,
    JobCancelled,
    JobFailed,
    Progress,
    StillRunning,
    UnknownJob,
    Unreachable,
    following,
    retries,
)
from app.client.display import shown
from app.client.records import JobRecord

PROGRESS = {"iteration": 0, "max_iter": 9, "loss": None}
DICTIONARY = {"name": "x", "version": 3, "nb_concepts": 2, "n_features": 4, "metrics": {}, "labels": {}}


def record(state: str, iteration: int = 0, **more: object) -> dict[str, object]:
    progress = PROGRESS | {"iteration": iteration}
    return {"id": "1", "name": "x", "state": state, "version": None, "progress": progress, "loss_history": []} | more


def event(name: str, data: object, id: str) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\nid: {id}\n\n".encode()


TWO = event("progress", PROGRESS | {"iteration": 1}, "1-1") + event("progress", PROGRESS | {"iteration": 2}, "1-2")
END = event("end", record("succeeded", 3, version=3), "end")


class Service(httpx.MockTransport):
    """One job; ``streams`` are what its events' requests are answered with, one after another."""

    def __init__(self, *streams: httpx.Response, looks: list[dict[str, object]]) -> None:
        super().__init__(self.answer)
        self.streams = list(streams)
        self.looks = looks
        self.last_ids: list[str | None] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/jobs/1/events":
                self.last_ids.append(request.headers.get("last-event-id"))
                return self.streams.pop(0)
            case "/jobs/1":
                return httpx.Response(200, json=self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])
            case "/dictionaries/x@3":
                return httpx.Response(200, json=DICTIONARY)
        return httpx.Response(404, json={"type": "unknown-job", "detail": "gone"})


def stream(content: bytes, pieces: int = 1_000_000, cut: bool = False) -> httpx.Response:
    class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for start in range(0, len(content), pieces):
                yield content[start : start + pieces]
            if cut:
                raise httpx.ReadError("cut")

        async def __aiter__(self):  # type: ignore[no-untyped-def]
            for piece in self:
                yield piece

    return httpx.Response(200, stream=Pieces(), headers={"content-type": "text/event-stream; charset=utf-8"})


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.01)


def iterations(service: Service) -> list[int]:
    with Client(transport=service) as client:
        return [progress.iteration for progress in client.job("1").events()]


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_events_in_pieces_of_any_size(pieces: int, newline: bytes) -> None:
    content = (b": ping\n\n" + TWO + END).replace(b"\n", newline)
    service = Service(stream(content, pieces), looks=[record("queued")])
    assert iterations(service) == [1, 2, 3]


def test_a_job_that_goes_back_into_the_queue_is_known_to_be_there() -> None:
    followed = following.Following(record("queued"), None)
    followed.opened(200, {"content-type": "text/event-stream"})
    states = []
    for state in ("queued", "running", "queued"):
        list(followed.feed(event("progress", PROGRESS | {"iteration": 2, "state": state}, "1-2")))
        states.append(followed.record["state"])
    assert states == ["queued", "running", "queued"]


def test_a_broken_stream_is_taken_up_where_it_broke() -> None:
    service = Service(stream(TWO, cut=True), stream(END), looks=[record("queued"), record("running", 2)])
    assert iterations(service) == [1, 2, 3]
    assert service.last_ids == [None, "1-2"]


def test_where_no_stream_comes_through_the_job_is_looked_at() -> None:
    page = httpx.Response(200, content=b"<html>", headers={"content-type": "text/html"})
    looks = [record("queued"), record("running", 1), record("running", 1), record("succeeded", 3, version=3)]
    service = Service(page, looks=looks)
    assert iterations(service) == [1, 3]
    assert len(service.last_ids) == 1


@pytest.mark.parametrize(
    "garbled",
    [
        b"event: progress\ndata: {\n\n",
        b"event: progress\n\n",
        b"event: progress\ndata: [1]\n\n",
        b'event: progress\ndata: {"iteration": "many"}\n\n',
        b"event: progress\ndata: \xff\n\n",
        b"event: end\ndata: [1]\n\n",
        b'event: end\ndata: {"progress": 3}\n\n',
    ],
)
def test_where_the_stream_is_garbled_the_job_is_looked_at(garbled: bytes) -> None:
    async def followed() -> list[int]:
        async with AsyncClient(transport=service()) as client:
            return [progress.iteration async for progress in (await client.job("1")).events()]

    def service() -> Service:
        looks = [record("queued"), record("running", 2), record("succeeded", 3, version=3)]
        return Service(stream(TWO + garbled + END), looks=looks)

    assert iterations(service()) == [1, 2, 3]
    assert asyncio.run(followed()) == [1, 2, 3]


def test_both_clients_follow_alike() -> None:
    async def followed() -> tuple[list[int], str]:
        service = Service(stream(TWO, 5, cut=True), stream(END), looks=[record("queued"), record("running", 2)])
        async with AsyncClient(transport=service) as client:
            job = await client.job("1")
            found = [progress.iteration async for progress in job.events()]
            return found, (await job.wait()).reference

    assert asyncio.run(followed()) == ([1, 2, 3], "x@3")


def test_waiting_gives_the_dictionary_and_the_job_knows_its_end() -> None:
    service = Service(stream(TWO + END), looks=[record("queued")])
    with Client(transport=service) as client:
        job = client.job("1")
        assert job.wait().reference == "x@3"
        assert (job.state, job.version, job.progress.iteration, job.ended) == ("succeeded", 3, 3, True)
        assert job.wait().reference == "x@3"  # no further look is needed


def test_a_job_knows_whether_it_was_interrupted() -> None:
    job = JobRecord(record("running", 9, attempts=2, resumed_from=7))
    assert (job.attempts, job.resumed_from) == (2, 7)
    assert JobRecord(record("queued", attempts=0)).resumed_from is None  # of a service that has no checkpoints


class Away(Service):
    """Not there for some requests, once the job is known."""

    def __init__(self, *streams: httpx.Response, looks: list[dict[str, object]], away: int) -> None:
        super().__init__(*streams, looks=looks)
        self.away = away

    def answer(self, request: httpx.Request) -> httpx.Response:
        if len(self.looks) == 1 and self.away:
            self.away -= 1
            raise httpx.ConnectError("refused")
        return super().answer(request)


def test_a_service_that_is_gone_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than a call has retries: it takes its jobs up again."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 1e-4)
    looks = [record("queued"), record("succeeded", 3, version=3)]
    with Client(transport=Away(stream(TWO, cut=True), looks=looks, away=12), retries=0) as client:
        assert client.job("1").wait().version == 3


def test_one_that_stays_away_is_told_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [record("queued"), record("running", 1)]
    with Client(transport=Away(stream(TWO, cut=True), looks=looks, away=10**6), timeout=1.0) as client:
        job = client.job("1")
        with pytest.raises(Unreachable, match="job 1 goes on once the service is back"):
            job.wait()
        with pytest.raises(StillRunning):
            job.wait(timeout=0.2)


def test_a_cancel_can_be_sent_twice() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(503 if len(asked) == 2 else 200, json=record("succeeded", 3, version=3))

    with Client(transport=httpx.MockTransport(answer)) as client:
        job = client.job("1")
        job.cancel()
    assert job.state == "succeeded"
    assert asked == ["GET /jobs/1", "POST /jobs/1/cancel", "POST /jobs/1/cancel"]


def test_time_that_is_up_is_told_with_the_jobs_state() -> None:
    service = Service(*[stream(b"") for _ in range(100)], looks=[record("running", 1)])
    with Client(transport=service) as client:
        for seconds in (0.0, 0.05):
            with pytest.raises(StillRunning, match="running") as caught:
                client.job("1").wait(timeout=seconds)
            assert isinstance(caught.value, TimeoutError)


def test_a_job_that_has_just_ended_is_seen_even_by_a_wait_of_no_time() -> None:
    service = Service(stream(END), looks=[record("running")])
    with Client(transport=service) as client:
        assert client.job("1").wait(timeout=0).version == 3


def test_failures_are_told_with_their_problem() -> None:
    problem = {"type": "device-out-of-memory", "title": "", "status": 507, "detail": "too little memory"}
    with Client(transport=Service(looks=[record("failed", error=problem)])) as client:
        with pytest.raises(JobFailed, match="too little memory") as caught:
            client.job("1").wait()
        assert (caught.value.type, caught.value.status) == ("device-out-of-memory", 507)
    with Client(transport=Service(looks=[record("cancelled")])) as client, pytest.raises(JobCancelled):
        client.job("1").wait()


def test_a_job_whose_record_is_removed_meanwhile() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(404, json={"type": "unknown-job", "detail": "gone"}))
    with Client(transport=transport) as client, pytest.raises(UnknownJob):
        Job(client, record("running")).wait()


def test_a_bar_is_shown_on_a_terminal_or_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted, seen in ((True, True), (None, False), (False, False)):
        with shown(wanted, "digits") as show:
            show(Progress(iteration=3, max_iter=9, loss=2.5, relative_error=0.25))
        told = capsys.readouterr()
        assert ("digits" in told.err and "loss 2.5, relative error 0.25" in told.err) == seen
        assert told.out == ""


def test_who_interrupts_a_wait_is_told_what_goes_on() -> None:
    def interrupted(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    with Client(transport=httpx.MockTransport(interrupted)) as client, pytest.raises(KeyboardInterrupt) as caught:
        Job(client, record("running")).wait()
    assert caught.value.__notes__ == ["job 1 goes on: `client.job('1').cancel()` ends it"]


def test_a_bar_leaves_what_others_print_where_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It went to stderr, where a pipe did not see it."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were a terminal
    with shown(True, "x"):
        print("told")
    assert capsys.readouterr().out == "told\n"
