"""Services, and what stands in their place, that answer what none would: each time it is an error of the client's."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import main
from app.client import AsyncClient, Client, DictserveError, JobFailed, Unavailable, errors, following, retries
from app.client.answers import Answer, npy
from app.client.calls import solve_as
from app.client.records import JobRecord
from tests.app.test_client_trickles import Answering, head_of, json_answer, serving

JOB = {"id": "1", "name": "x", "state": "running", "progress": {}}
DEEP = "[" * 200_000
LOGIN = "<html>Please log in"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.01)


def answering(status: int, headers: dict[str, str], body: str | bytes) -> Answering:
    """The same to all; the connection ends it."""
    head = f"HTTP/1.1 {status} Status\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    content = body.encode() if isinstance(body, str) else body
    return lambda connection, _: connection.sendall(head.encode() + b"\r\n" + content)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def far_off(date: str) -> Answering:
    return answering(503, {"retry-after": date}, "")


NO_ANSWERS: dict[str, tuple[Answering, type[DictserveError], int]] = {
    "no gzip": (answering(200, {"content-encoding": "gzip"}, "{}"), errors.UnreadableAnswer, 1),
    "no gzip, and an error": (answering(503, {"content-encoding": "gzip"}, "{}"), Unavailable, 4),
    "no deflate, and an error": (answering(404, {"content-encoding": "deflate"}, "{}"), errors.UnreadableAnswer, 1),
    "a year": (far_off("Mon, 01 Jan 99999999999999999999 00:00:00 GMT"), Unavailable, 4),
    "a zone": (far_off("Mon, 01 Jan 2024 00:00:00 +9999999999999999999"), Unavailable, 4),
    "seconds": (far_off("9" * 400), Unavailable, 4),
    "deep, and an error": (answering(500, {}, DEEP), DictserveError, 1),
    "deep": (answering(200, {}, '{"dictionaries": ' + DEEP), errors.UnreadableAnswer, 1),
    "no text": (answering(200, {}, b"\xff\xfe"), errors.UnreadableAnswer, 1),
    "a number": (answering(200, {}, '{"dictionaries": [3]}'), errors.UnreadableAnswer, 1),
    "null": (answering(200, {}, '{"dictionaries": null}'), errors.UnreadableAnswer, 1),
}


@pytest.mark.parametrize(("answer", "expected", "code"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_an_answer_of_no_service_is_an_error_of_the_client(
    answer: Answering, expected: type[DictserveError], code: int
) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, retries=1) as client:
            await client.dictionaries()

    with serving(answer) as url:
        for ask_it in (Client(url, retries=1).dictionaries, lambda: asyncio.run(ask(url))):
            with pytest.raises(DictserveError) as caught:
                ask_it()
            assert type(caught.value) is expected
        ended, told = run("ls", "--url", url)
        assert ended == code, told
        assert told.startswith("dictserve: the answer ")
        assert "Traceback" not in told


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'shape': (((((",
        "{'descr': ",
        "  {\n    'descr'\n  x",
        "(" * 2000,
        "{1: 2, 'a': 3}",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},)}}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': [('a', 3)], 'fortran_order': False, 'shape': (1,)}",
    ],
)
def test_an_npy_header_that_is_none_is_an_error_of_the_client(header: str) -> None:
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(4)
    with pytest.raises(errors.UnreadableAnswer):
        npy(Answer(200, {"content-type": "application/x-npy"}, bytearray(body)))


def events(content: bytes, headers: str, looks: list[dict[str, object]], asked_for: list[str]) -> Answering:
    """A job whose events are these, and which is looked at meanwhile."""
    left = list(looks)

    def answer(connection, asked: str) -> None:  # type: ignore[no-untyped-def]
        while True:
            asked_for.append(asked.split()[1])
            if "/events" in asked:
                connection.sendall(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{headers}\r\n".encode())
                connection.sendall(content)
                return
            connection.sendall(json_answer(left.pop(0) if len(left) > 1 else left[0]))
            asked = head_of(connection)

    return answer


def waits(url: str) -> list[Callable[[], object]]:
    async def wait() -> None:
        async with AsyncClient(url) as client:
            await (await client.job("1")).wait(timeout=20)

    return [lambda: Client(url).job("1").wait(timeout=20), lambda: asyncio.run(wait())]


CANCELLED = JOB | {"state": "cancelled"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_events_that_are_not_encoded_as_they_say_are_not_asked_for_again(asynchronous: bool) -> None:
    asked_for: list[str] = []
    answer = events(b"event: end\n", "content-encoding: gzip\r\n", [JOB, JOB, JOB, CANCELLED], asked_for)
    with serving(answer) as url, pytest.raises(errors.JobCancelled):
        waits(url)[asynchronous]()
    assert asked_for == ["/jobs/1", "/jobs/1/events", "/jobs/1", "/jobs/1", "/jobs/1"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("error", ["null", '"no memory"', "{}"])
def test_a_failure_without_a_problem_is_one_all_the_same(asynchronous: bool, error: str) -> None:
    end = b'event: end\ndata: {"state": "failed", "error": %s}\n\n' % error.encode()
    with serving(events(end, "", [JOB], [])) as url, pytest.raises(JobFailed, match=r"^job 1 failed"):
        waits(url)[asynchronous]()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("wrong", [{"progress": None}, {"progress": {"iteration": "many"}}, {"state": []}])
def test_a_job_that_is_told_wrongly_is_an_error_of_the_client(asynchronous: bool, wrong: dict[str, object]) -> None:
    with serving(events(b"", "", [JOB, JOB | wrong], [])) as url, pytest.raises(errors.UnreadableAnswer):
        waits(url)[asynchronous]()
    with serving(answering(200, {}, json.dumps({"jobs": [JOB | wrong]}))) as url:
        code, told = run("jobs", "--url", url)
        assert (code, told.count("\n")) == (1, 1), told
    with pytest.raises(errors.UnreadableAnswer):
        JobRecord(JOB | {"progress": None}).progress  # noqa: B018


@pytest.mark.parametrize(
    "garbled",
    [b'{"state": []}', b'{"state": "succeeded", "progress": null}', DEEP.encode(), b"[]", b"null", b'{"id": 3}'],
    ids=lambda garbled: garbled[:40],
)
def test_an_end_that_is_told_wrongly_is_looked_at(garbled: bytes) -> None:
    content = b"event: end\ndata: " + garbled + b"\n\n"
    with serving(events(content, "", [JOB, CANCELLED], [])) as url, pytest.raises(errors.JobCancelled):
        waits(url)[0]()


# -- a page to log in at, in place of everything ----------------------------------------------------------


def test_a_page_in_the_services_place_is_not_kept_as_an_array(tmp_path: Path) -> None:
    (tmp_path / "A.csv").write_text("1,2\n")
    with serving(paged) as url:
        for line in (
            "encode toy {}/A.csv -o {}/Z.npy",
            "encode toy {}/A.csv -o {}/Z.safetensors",
            "decode toy {}/A.csv -o {}/B.csv",
            "decode toy {}/A.csv -o {}/B.json",
            "export toy -o {}/D.npy",
            "export toy",
            "rm toy --yes",
        ):
            code, told = run(*line.replace("{}", str(tmp_path)).split(), "--url", url)
            assert code == 1, line
            assert told.startswith("dictserve: the answer (text/html) cannot be read: ")
    assert [path.name for path in tmp_path.iterdir()] == ["A.csv"]


def paged(connection, asked: str) -> None:  # type: ignore[no-untyped-def]
    """Takes the body, too: a connection that ends with some of it unread is a broken one."""
    connection.settimeout(0.2)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        pass
    answering(200, {"content-type": "text/html"}, LOGIN)(connection, asked)


@pytest.mark.parametrize("type", ["text/csv", "text/csv; charset=utf-8", "Text/CSV;charset=utf-8"])
def test_what_was_asked_for_may_tell_its_characters(type: str) -> None:
    body = bytearray(b"1,2\n")
    call = solve_as("csv", "decode", None, {})  # type: ignore[arg-type]
    assert call.read(Answer(200, {"content-type": type}, body)) == body


def test_a_page_in_the_services_place_is_not_ready() -> None:
    async def ready(url: str) -> bool:
        async with AsyncClient(url) as client:
            return await client.ready()

    told = {LOGIN: None, "{}": None, '{"status": "ready"}': True, '{"status": "alive"}': False}
    for body, expected in told.items():
        with serving(answering(200, {"content-type": "text/html"}, body)) as url:
            for ask in (Client(url).ready, lambda: asyncio.run(ready(url))):
                if expected is None:
                    with pytest.raises(errors.UnreadableAnswer):
                        ask()
                else:
                    assert ask() is expected


def test_a_removal_that_is_answered_with_a_page_has_removed_nothing() -> None:
    with (
        serving(answering(200, {"content-type": "text/html"}, LOGIN)) as url,
        pytest.raises(errors.UnreadableAnswer, match="200 in place of 204"),
    ):
        Client(url).remove("x")


# -- orders to the terminal -------------------------------------------------------------------------------

ORDERS = "\x1b[31mred\x1b]0;title\x07\x7f\u009b2J"


@pytest.mark.parametrize(
    "body",
    [f"<html>{ORDERS}</html>", json.dumps({"type": "internal-error", "detail": ORDERS})],
    ids=["a page", "a problem"],
)
def test_an_error_gives_the_terminal_no_orders(body: str) -> None:
    with serving(answering(500, {"content-type": "text/html"}, body)) as url:
        with pytest.raises(DictserveError) as caught:
            Client(url).dictionaries()
        code, told = run("ls", "--url", url)
    assert code == 1
    for text in (str(caught.value), told.rstrip("\n")):
        assert text.isprintable()
        assert r"\x1b[31mred\x1b]0;title\x07\x7f\x9b2J" in text
    assert ORDERS in caught.value.detail  # as it came, for a program


@pytest.mark.parametrize("line", ["fit A.csv --name x --nb-concepts 2 --no-wait", "cancel 1", "label toy a=b"])
def test_what_a_service_names_gives_the_terminal_no_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "A.csv").write_text("1,2\n")
    monkeypatch.chdir(tmp_path)
    told_of = {"id": ORDERS, "name": ORDERS, "state": ORDERS, "progress": {}, "version": 1}
    with serving(answering(200, {}, json.dumps(told_of | {"nb_concepts": 1, "n_features": 1}))) as url:
        code, told = run(*line.split(), "--url", url)
    assert code == 0, told
    assert told.rstrip("\n").isprintable()
