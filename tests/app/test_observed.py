"""What an operator sees: figures, request ids, log lines."""

import asyncio
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app import logs
from app.http import observed
from app.http.tokens import add, new_token
from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from demo.service import npy
from tests.app.conftest import WorkerDouble
from tests.figures import figures
from tests.waiting import until

ROOT = Path(__file__).parents[2]
ROWS = npy(np.ones((3, 4), np.float32))


def test_requests_are_counted_by_route(client: TestClient, digits: str) -> None:
    for _ in range(2):
        assert client.post(f"/encode?dictionary={digits}", content=ROWS).status_code == 200
    assert client.post("/encode?dictionary=none", content=ROWS).status_code == 404
    assert client.get(f"/dictionaries/{digits}").status_code == 200
    assert client.get("/dictionaries/another").status_code == 404
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    told = figures(client)
    assert told["dictserve_requests_total", "POST", "/encode", "200"] == 2
    assert told["dictserve_requests_total", "POST", "/encode", "404"] == 1
    assert told["dictserve_requests_total", "GET", "/dictionaries/{reference}", "200"] == 1
    assert told["dictserve_requests_total", "GET", "/dictionaries/{reference}", "404"] == 1
    assert told["dictserve_requests_total", "GET", "none", "404"] == 2
    assert told["dictserve_request_seconds_count", "/encode"] == 3
    assert (told["dictserve_batches_total", "double"], told["dictserve_rows_total", "double"]) == (2, 6)
    assert (told["dictserve_queue_rows",], told["dictserve_queue_bytes",]) == (0, 0)


@pytest.mark.parametrize("leaves", [False, True])
def test_the_clients_time_is_not_the_services(leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow line is no slow service: what it takes to send a body and to read an answer is told apart."""
    now, counted, logged = [0.0], [], []
    parts: list[Message] = [{"type": "http.request", "more_body": True}, {"type": "http.request", "more_body": False}]
    if leaves:
        parts[1] = {"type": "http.disconnect"}

    class Counts:
        def observe(self, method: str, route: str, status: str, seconds: float) -> None:
            counted.append((status, seconds))

    async def receive() -> Message:
        now[0] += 100
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        now[0] += 1000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            await receive()
        if leaves:
            return
        now[0] += 1  # the service's own
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})
        await receive()  # as who streams an answer does, to see whether its client has left: that may last for long

    monkeypatch.setattr("app.http.observed.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(observed.logger, "info", lambda _, extra: logged.append((extra["ms"], extra["client_ms"])))
    scope: Scope = {"type": "http", "method": "POST", "path": "/encode", "headers": []}
    asyncio.run(observed.Observed(app, Counts(), access_log=True)(scope, receive, send))  # type: ignore[arg-type]
    assert counted == [("gone", 0)] if leaves else [("200", 101)]
    assert logged == [(200_000, 200_000)] if leaves else [(2_301_000, 2_200_000)]


def test_faults_are_counted_from_none_on(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert sees what a figure grows by: a first fault made its figure, with 1 in it, and was no growth."""

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    fault = "dictserve_requests_total", "GET", "/dictionaries", "500"
    assert figures(client)[fault] == 0
    monkeypatch.setattr(Store, "names", broken)
    assert client.get("/dictionaries").status_code == 500
    assert figures(client)[fault] == 1


def test_every_figure_is_told_of_in_the_docs(client: TestClient) -> None:
    told = "".join((ROOT / path).read_text() for path in ("docs/operations.md", "deploy/alerts.yml"))
    names = set(re.findall(r"^# TYPE (dictserve_\w+) ", client.get("/metrics").text, re.MULTILINE))
    assert len(names) > 20
    assert [name for name in sorted(names) if not re.search(rf"\b{name}(_total|_bucket)?\b", told)] == []


def test_the_state_is_told(client: TestClient) -> None:
    client.post("/fit?name=x&nb_concepts=2&max_iter=5", content=ROWS, headers={"Prefer": "wait=20"})
    told = figures(client)
    assert told["dictserve_worker_ready", "double"] == 1
    assert told["dictserve_jobs", "succeeded"] == 1
    assert told["dictserve_jobs", "running"] == 0
    assert 0 < told["dictserve_store_free_bytes",] <= told["dictserve_store_size_bytes",]
    assert told["process_open_fds",] > 0
    assert [told[f"dictserve_device_{kind}_bytes", "double"] for kind in ("allocated", "reserved", "total")] == [
        3,
        4,
        5,
    ]


def test_jobs_are_counted_as_they_end(client: TestClient, worker: WorkerDouble) -> None:
    """Whatever becomes of their records."""

    def ended() -> list[float]:
        told = figures(client)
        return [told["dictserve_jobs_ended_total", state] for state in ("succeeded", "failed", "cancelled")]

    def fit() -> str:
        answer = client.post("/fit?name=x&nb_concepts=2&max_iter=5", content=ROWS, headers={"Prefer": "wait=20"})
        id: str = answer.json()["id"]
        return id

    assert ended() == [0, 0, 0]
    assert client.delete(f"/jobs/{fit()}").status_code == 204
    worker.dies_on_fits = 2
    fit()
    assert ended() == [1, 1, 0]
    worker.fits_hang = True
    id = client.post("/fit?name=x&nb_concepts=2&max_iter=5", content=ROWS).json()["id"]
    until(lambda: client.get(f"/jobs/{id}").json()["state"] == "running")
    waiting = client.post("/fit?name=x&nb_concepts=2&max_iter=5", content=ROWS).json()["id"]
    client.delete(f"/jobs/{waiting}")
    assert ended() == [1, 1, 1]
    client.delete(f"/jobs/{id}")
    until(lambda: ended() == [1, 1, 2])


def test_a_request_has_an_id(client: TestClient) -> None:
    ids = {client.get("/livez").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert client.get("/livez", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 200, "<script>"):
        assert client.get("/livez", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad
    assert client.get("/nowhere").headers["x-request-id"]


def test_a_cache_that_others_share_keeps_no_events(client: TestClient) -> None:
    """The framework says `no-cache` of them, and a shared one may keep what has to be asked for again."""
    id = client.post("/fit?name=x&nb_concepts=2&max_iter=5", content=ROWS, headers={"Prefer": "wait=20"}).json()["id"]
    headers = client.get(f"/jobs/{id}/events").headers
    assert headers.get_list("cache-control") == ["private, no-cache"]


def test_metrics_need_a_token_unless_they_are_open(tmp_path: Path) -> None:
    add(tmp_path / "tokens", "a", ["read"], new_token(), {})
    for metrics_open, status in ((False, 401), (True, 200)):
        settings = Settings(store=tmp_path / "models", tokens_file=tmp_path / "tokens", metrics_open=metrics_open)
        with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
            assert client.get("/metrics").status_code == status
            assert client.get("/dictionaries").status_code == 401


def test_alerts_are_about_figures_that_there_are(client: TestClient) -> None:
    client.get("/livez")
    told = {name for name, *_ in figures(client)}
    text = (Path(__file__).parents[2] / "deploy" / "alerts.yml").read_text()
    named = set(re.findall(r"\bdictserve_\w+", text))
    assert len(named) >= 8
    assert named <= told
    documented = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for alert in re.findall(r"alert: (\w+)", text):
        assert f"`{alert}`" in documented


def test_json_lines_carry_the_request(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    settings = settings.model_copy(update={"access_log": True})
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-ID": "r1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        client.get("/livez", headers=headers)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (told,) = [line for line in lines if line.get("path") == "/livez"]
    assert told["event"] == "request"
    assert (told["request_id"], told["trace_id"], told["status"], told["method"]) == ("r1", trace, "200", "GET")
    assert told["level"] == "info"
    assert told["ms"] >= told["client_ms"] >= 0
    assert told["timestamp"].endswith("Z")


def test_a_path_begins_no_line_of_its_own(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text", "info")
    settings = settings.model_copy(update={"access_log": True})
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        client.get("/x%0AERROR: forged%1b[31m")
        client.get("/x%20status=200")
    told, other = [line for line in capsys.readouterr().err.splitlines() if "path=" in line]
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO: request ", told)
    assert r"path='/x\nERROR: forged\x1b[31m'" in told
    assert "path='/x status=200' status=404" in other  # nor a value


def test_text_lines_and_tracebacks() -> None:
    code = """
import logging
from app import logs
logs.configure("text", "info")
log = logging.getLogger("dictserve")
log.info("one %s", 1, extra={"color_message": "one, in colours", "of": "two"})
log.debug("unseen")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("CUDA error: it's\\n\x1b[31m gone\\n")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = run.stderr.splitlines()
    told = [line.partition("Z ") for line in lines[:2]]
    assert [line for _, _, line in told] == ["INFO: one 1 of=two", "ERROR: CUDA error: it's\\n\\x1b[31m gone"]
    now = datetime.now(UTC)
    assert all(abs(now - datetime.fromisoformat(f"{time}+00:00")).total_seconds() < 60 for time, _, _ in told)
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-1].startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    "text", ["", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-xyz-b7ad6b7169203331-01", "a" * 500]
)
def test_what_is_no_traceparent(text: str) -> None:
    assert logs.trace_id(text) is None


def test_warnings_are_lines_too(tmp_path: Path) -> None:
    """Of where and what; not the source's line, which `warnings` adds where it finds it."""
    code = "import warnings; from app import logs; logs.configure('json', 'info'); warnings.warn('slow\\nstart')\n"
    (script := tmp_path / "script.py").write_text(code)
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    (line,) = run.stderr.splitlines()
    told = json.loads(line)
    assert (told["level"], told["event"]) == ("warning", f"{script}:1: UserWarning: slow\nstart")
