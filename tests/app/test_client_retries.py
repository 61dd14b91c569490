"""When calls are sent again, against a transport that plays what is told to it."""

import asyncio
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from app.client import (
    AsyncClient,
    Client,
    DictserveError,
    Overloaded,
    TimedOut,
    Unavailable,
    Unreachable,
    blocking,
    calls,
    config,
)
from app.client import retries as policy
from app.commands.connection import connected
from app.errors import KINDS, WorkerCompiles, WorkerStarts
from app.settings import Settings
from tests.waiting import SOON_SECONDS

A = np.ones((2, 3), np.float32)
JOB = {"id": "1", "name": "x", "state": "queued", "progress": {}, "loss_history": []}
BUSY = (503, {"type": "overloaded", "title": "", "status": 503, "detail": "later"})
Step = tuple[int, object] | Exception


class Script(httpx.MockTransport):
    """Answers with one step after another, the last one for ever; keeps the requests."""

    def __init__(self, *steps: Step, headers: dict[str, str] | None = None) -> None:
        super().__init__(self.play)
        self.steps = list(steps)
        self.headers = headers or {}
        self.requests: list[httpx.Request] = []

    def play(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step[0], json=step[1], headers=self.headers)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_encode_is_sent_again_whole(status: int) -> None:
    script = Script((status, {}), (500, {"type": "internal-error", "detail": "d"}))
    with Client(transport=script) as client, pytest.raises(DictserveError) as caught:
        client.encode(A, "x")
    assert caught.value.status == 500
    first, second = script.requests
    assert first.content == second.content
    assert int(second.headers["content-length"]) == len(second.content)
    assert "transfer-encoding" not in second.headers


def test_the_async_client_does_the_same() -> None:
    script = Script(BUSY, httpx.ReadError("cut"), (200, JOB))

    async def fitted() -> str:
        async with AsyncClient(transport=script) as client:
            return (await client.fit(A, nb_concepts=1, name="x", wait=False)).id

    assert asyncio.run(fitted()) == "1"
    assert len({request.content for request in script.requests}) == 1
    assert len(script.requests) == 3


def test_a_fit_keeps_its_key_and_the_next_fit_has_another() -> None:
    script = Script(BUSY, (200, JOB))
    with Client(transport=script) as client:
        client.fit(A, nb_concepts=1, name="x", wait=False)
        client.fit(A, nb_concepts=1, name="x", wait=False)
    first, again, other = (request.headers["idempotency-key"] for request in script.requests)
    assert first == again != other


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.import_dictionary("x", A),
        lambda client: client.remove("x"),
    ],
)
@pytest.mark.parametrize("step", [BUSY, httpx.ReadError("cut")])
def test_what_twice_would_do_more_is_sent_once(call: Callable[[Client], object], step: Step) -> None:
    script = Script(step)
    with Client(transport=script) as client, pytest.raises(Unavailable):
        call(client)
    assert len(script.requests) == 1


def test_what_never_went_out_is_sent_again() -> None:
    script = Script(httpx.ConnectError("refused"), (204, None))
    with Client(transport=script) as client:
        client.remove("x")
    assert len(script.requests) == 2


def test_retries_are_bounded_and_the_last_error_is_told() -> None:
    script = Script(BUSY)
    with Client(transport=script, retries=2) as client, pytest.raises(Overloaded, match="later"):
        client.dictionaries()
    assert len(script.requests) == 3


def test_retry_after_is_honoured() -> None:
    script = Script(BUSY, (200, {"dictionaries": []}), headers={"retry-after": "1"})
    begun = time.monotonic()
    with Client(transport=script) as client:
        assert client.dictionaries() == []
    assert time.monotonic() - begun >= 1


class Clock:
    """In the place of ``time``: pauses take none."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (policy, blocking):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize("seconds", [KINDS[kind].retry_after_seconds for kind in (WorkerStarts, WorkerCompiles)])
@pytest.mark.parametrize("made", [Client, connected], ids=["client", "command line"])
def test_a_service_that_tells_when_to_come_back_is_asked_until_it_is_there(
    clock: Clock, made: Callable[[str], Client], seconds: int
) -> None:
    """One that compiles its kernels takes a minute: that is more often than calls are sent again unasked."""

    def compiling(_: httpx.Request) -> httpx.Response:
        if clock.now < 60:
            return httpx.Response(BUSY[0], json=BUSY[1], headers={"retry-after": str(seconds)})
        return httpx.Response(200, json={"dictionaries": []})

    default = made("http://127.0.0.1:1")._policy
    with Client(transport=httpx.MockTransport(compiling)) as client:
        assert client.send(calls.dictionaries(), default) == []
    assert 60 <= clock.now < 60 + max(seconds, policy.MAX_PAUSE_SECONDS)


def test_one_that_says_so_for_ever_is_given_up_in_time(clock: Clock) -> None:
    script = Script(BUSY, headers={"retry-after": "10"})
    with Client(transport=script) as client, pytest.raises(Overloaded, match="later"):
        client.dictionaries()
    assert config.DEFAULT_TIMEOUT_SECONDS - 10 <= clock.now < config.DEFAULT_TIMEOUT_SECONDS


def test_one_with_too_much_to_do_is_not_asked_for_long(clock: Clock) -> None:
    """Who calls often would have ever more calls under way."""
    script = Script(BUSY, headers={"retry-after": "1"})
    with Client(transport=script) as client, pytest.raises(Overloaded):
        client.dictionaries()
    assert len(script.requests) == 1 + config.DEFAULT_RETRIES


def test_who_wants_no_retries_gets_none() -> None:
    script = Script(BUSY, headers={"retry-after": "10"})
    with Client(transport=script, retries=0) as client, pytest.raises(Overloaded):
        client.dictionaries()
    assert len(script.requests) == 1


def test_what_the_service_asks_for_takes_none_of_the_retries(clock: Clock) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        script.headers = {} if len(script.requests) % 10 == 9 else {"retry-after": "5"}
        return script.play(request)

    script = Script(BUSY)
    with Client(transport=httpx.MockTransport(answer), retries=2) as client, pytest.raises(Overloaded):
        client.dictionaries()
    assert len(script.requests) == 30


def test_a_service_can_be_away_for_hours(clock: Clock) -> None:
    """Pauses that double did so until they were no number any more."""
    script = Script(*[httpx.ConnectError("refused")] * 2000, (200, {"dictionaries": []}))
    with Client(transport=script, retries=10**6, timeout=float("inf")) as client:
        assert client.dictionaries() == []


def test_a_wait_past_the_timeout_is_not_begun() -> None:
    script = Script(BUSY, headers={"retry-after": "60"})
    begun = time.monotonic()
    with Client(transport=script, timeout=5) as client, pytest.raises(Overloaded):
        client.dictionaries()
    assert time.monotonic() - begun < 4.5


def test_a_slow_answer_is_not_waited_for_longer_than_told() -> None:
    def trickle(_: httpx.Request) -> httpx.Response:
        def chunks() -> object:
            while True:
                time.sleep(0.02)
                yield b" "

        return httpx.Response(200, content=chunks())  # type: ignore[arg-type]

    begun = time.monotonic()
    with Client(transport=httpx.MockTransport(trickle), timeout=0.2) as client, pytest.raises(TimedOut) as caught:
        client.dictionaries()
    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - begun < SOON_SECONDS


def test_no_service_is_a_connection_error_that_names_the_url() -> None:
    script = Script(httpx.ConnectError("refused"))
    with Client("http://nowhere:1", transport=script, retries=1) as client:
        with pytest.raises(Unreachable, match="http://nowhere:1") as caught:
            client.jobs()
        asked = len(script.requests)
        assert not client.ready()
    assert len(script.requests) == asked + 1  # it is told as it is now
    assert isinstance(caught.value, ConnectionError)


def test_ready_is_told_soon() -> None:
    script = Script((200, {"status": "ready"}))
    with Client(transport=script) as client:
        assert client.ready()
    assert script.requests[0].extensions["timeout"]["read"] <= policy.ONCE_SECONDS


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("3", 3, 3),
        ("", 0, 0),
        ("soon", 0, 0),
        ("-1", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, low: float, high: float) -> None:
    assert low <= policy._retry_after_seconds(value) <= high


@pytest.mark.parametrize(("idle_seconds", "connections"), [(0.0, 1), (1.2, 2)])
def test_a_connection_that_was_idle_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, idle_seconds: float, connections: int
) -> None:
    """The service may be closing it just then, and an import or a removal is not sent again."""
    assert Settings().keep_alive_seconds / 2 >= config.KEEP_ALIVE_SECONDS
    monkeypatch.setattr(config, "KEEP_ALIVE_SECONDS", 1.0)
    made = []

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            made.append(self)

        def do_DELETE(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            client.remove("a")
            time.sleep(idle_seconds)
            client.remove("b")
        server.shutdown()
    assert len(made) == connections


def test_a_token_from_a_file_ends_with_a_line() -> None:
    """That was told as a service that cannot be reached, with the token in the message."""
    script = Script((200, {"dictionaries": []}))
    with Client(transport=script, token="ds_secret\n") as client:  # noqa: S106 - none
        assert client.dictionaries() == []
    assert script.requests[0].headers["authorization"] == "Bearer ds_secret"


@pytest.mark.parametrize("token", ["ds_secret\nds_other", "ds_secretü", "ds secret", "ds_secret\0"])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_token_that_is_none_is_told_without_it(client: type[Client | AsyncClient], token: str) -> None:
    with pytest.raises(ValueError, match="the token has") as caught:
        client(token=token)
    assert "secret" not in str(caught.value)


def test_a_call_that_waits_for_others_of_its_client_is_given_up_in_time() -> None:
    """And leaves its place to those behind it, as one that is cancelled does."""

    async def run() -> None:
        goes_on = asyncio.Event()

        async def answer(_: httpx.Request) -> httpx.Response:
            await goes_on.wait()
            return httpx.Response(200, json=JOB)

        async with AsyncClient(transport=httpx.MockTransport(answer), timeout=20) as client:
            before = [asyncio.create_task(client.job("1")) for _ in range(config.MAX_CONNECTIONS)]
            await asyncio.sleep(0.05)
            with pytest.raises(TimedOut):
                await client.send(calls.job("1"), policy.Policy(retries=5, timeout_seconds=0.2))
            cancelled = asyncio.create_task(client.job("1"))
            after = asyncio.create_task(client.job("1"))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            goes_on.set()
            for call in (*before, after):
                assert (await call).id == "1"

    asyncio.run(run())


def test_a_command_tells_what_it_waits_for(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([(503, {"retry-after": "10"}), (200, {})])

    def handle(_: httpx.Request) -> httpx.Response:
        status, headers = next(answers)
        told = {"type": "worker-unavailable", "title": "", "status": 503, "detail": "kernels are being compiled"}
        return httpx.Response(status, headers=headers, json=told if status == 503 else {"dictionaries": []})

    as_commands = connected("http://127.0.0.1:1")._policy
    with Client(transport=httpx.MockTransport(handle)) as client:
        assert client.send(calls.dictionaries(), as_commands) == []
    assert capsys.readouterr().err == "kernels are being compiled; asked again in 10 s\n"
