"""Spans of requests, as OpenTelemetry's own in-memory exporter has them; and nothing of it where none are wanted."""

import gzip
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app import main, tracing
from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from app.tracing import Tracing, is_wanted
from demo.service import npy
from tests.app.conftest import D, WorkerDouble, publish

ROWS = npy(np.ones((3, 4), np.float32))
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
Spans = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Tracing:
    made = Tracing(InMemorySpanExporter())
    monkeypatch.setattr(main, "tracing", lambda: made)
    return made


@pytest.fixture
def client(traces: Tracing, settings: Settings, worker: WorkerDouble) -> Iterator[TestClient]:
    with TestClient(create_app(settings, supervisor=worker), raise_server_exceptions=False) as client:
        publish(Store(settings.store), "digits", D)
        yield client


@pytest.fixture
def spans(traces: Tracing) -> Spans:
    def ended() -> dict[str, ReadableSpan]:
        """Those that have ended since this was last asked, by name."""
        assert isinstance(traces._exporter, InMemorySpanExporter)
        traces._provider.force_flush()
        found = traces._exporter.get_finished_spans()
        traces._exporter.clear()
        by_name = {span.name: span for span in found}
        assert len(by_name) == len(found)
        return by_name

    return ended


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_an_encode_has_a_span_with_its_time_in_the_queue_and_at_the_worker(client: TestClient, spans: Spans) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "r1"}
    assert client.post("/encode?dictionary=digits", content=ROWS, headers=headers).status_code == 200
    found = spans()
    assert set(found) == {"POST /encode", "queue", "solve"}
    request, queue, solve = found["POST /encode"], found["queue"], found["solve"]
    told = attributes(request)
    assert told["http.route"] == "/encode"
    assert told["http.response.status_code"] == 200
    assert (told["dictserve.dictionary"], told["dictserve.rows"]) == ("digits@1", 3)
    assert told["dictserve.request_id"] == "r1"
    assert request.resource.attributes["service.name"] == "dictserve"
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    for child in (queue, solve):
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
    assert request.start_time <= queue.start_time <= queue.end_time == solve.start_time <= solve.end_time  # type: ignore[operator]
    assert solve.end_time <= request.end_time  # type: ignore[operator]


@pytest.mark.parametrize(
    ("method", "path", "name", "status"),
    [
        ("GET", "/dictionaries/digits", "GET /dictionaries/{reference}", 200),
        ("GET", "/dictionaries/absent", "GET /dictionaries/{reference}", 404),
        ("GET", "/nowhere/1", "GET", 404),
        ("BREW", "/nowhere/1", "_OTHER", 404),
        ("POST", "/fit?name=x&nb_concepts=2&max_iter=5", "POST /fit", 202),
        ("POST", "/encode?dictionary=absent", "POST /encode", 404),
    ],
)
def test_every_request_has_one(
    client: TestClient, spans: Spans, method: str, path: str, name: str, status: int
) -> None:
    assert client.request(method, path, content=ROWS).status_code == status
    (span,) = spans().values()
    assert (span.name, attributes(span)["http.response.status_code"]) == (name, status)
    assert span.status.status_code.name == "UNSET"  # a 4xx is the client's doing
    assert span.parent is None
    if name == "POST /fit":
        assert (attributes(span)["dictserve.dictionary"], attributes(span)["dictserve.rows"]) == ("x", 3)


def test_a_fault_of_the_services_own_is_told(client: TestClient, spans: Spans, worker: WorkerDouble) -> None:
    worker.alive = False
    assert client.post("/encode?dictionary=digits", content=ROWS).status_code == 503
    found = spans()
    assert found["POST /encode"].status.status_code.name == "ERROR"


def test_what_watches_the_service_leaves_no_spans(client: TestClient, spans: Spans) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/v2/health/live"):
        client.get(path)
    assert spans() == {}


def test_pieces_of_one_request_are_one_solve(
    traces: Tracing, spans: Spans, settings: Settings, worker: WorkerDouble
) -> None:
    settings = settings.model_copy(update={"batch_rows": 1})
    with TestClient(create_app(settings, supervisor=worker)) as client:
        publish(Store(settings.store), "digits", D)
        assert client.post("/encode?dictionary=digits", content=ROWS).status_code == 200
        assert set(spans()) == {"POST /encode", "queue", "solve"}


@pytest.fixture
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_clean_environment")
def test_a_collector_gets_them(settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "concepts")
        with TestClient(create_app(settings, supervisor=worker)) as client:
            client.get("/dictionaries")
        collector.shutdown()
    (told,) = received[0].resource_spans
    assert [span.name for scope in told.scope_spans for span in scope.spans] == ["GET /dictionaries"]
    assert "concepts" in [a.value.string_value for a in told.resource.attributes if a.key == "service.name"]


@pytest.mark.usefixtures("_clean_environment")
def test_a_collector_that_is_gone_does_not_hold_up_a_stop(
    settings: Settings, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.5)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with TestClient(create_app(settings, supervisor=worker)) as client:
        assert client.get("/dictionaries").status_code == 200
        begun = time.monotonic()
    assert time.monotonic() - begun < 8


@pytest.mark.usefixtures("_clean_environment")
@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_when_traces_are_wanted(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: bool) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_wanted() == wanted


def run(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True, timeout=60
    )


def test_where_none_are_wanted_nothing_is_imported() -> None:
    code = """
import sys
from app.main import create_app
app = create_app()
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
print(app.state.services.tracing)
"""
    assert run(code).stdout.splitlines() == ["[]", "None"]


def test_without_the_packages_the_service_works_and_says_so() -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from app.main import create_app
print(create_app().state.services.tracing)
"""
    ran = run(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    assert ran.stdout.strip() == "None"
    assert "pip install 'dictserve[otel]'" in ran.stderr
