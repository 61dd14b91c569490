"""Traces by OpenTelemetry: a span for each request, with its time in the queue and at the worker as two of its own.

On where an endpoint is set in OpenTelemetry's own environment variables and its packages are installed (the extra
``otel``). Where it is off nothing of the SDK is imported, and no request passes through here.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import time_ns
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import __version__
from app.http.access import WATCHING
from app.http.direct import route_of
from app.http.observed import COUNTED_METHODS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

logger = logging.getLogger("dictserve")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FLUSH_SECONDS = 3.0  # for spans that have not been sent at a stop


def is_wanted() -> bool:
    """What OpenTelemetry's environment variables say."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("", "otlp"):
        return False
    return any(os.environ.get(name) for name in ENDPOINTS)


def tracing() -> "Tracing | None":
    """Traces as the environment wants them; None where it wants none, or they cannot be made."""
    if not is_wanted():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        logger.warning("no traces, though an endpoint is set: %s (pip install 'dictserve[otel]')", error)
        return None
    return Tracing(OTLPSpanExporter())


class Tracing:
    """Makes spans, and sends them where the exporter does."""

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # OTEL_SERVICE_NAME is not set
            resource = resource.merge(Resource({SERVICE_NAME: "dictserve"}))
        self._exporter = exporter
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("dictserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(self) -> None:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    async def stop(self) -> None:
        """Send what is left; a collector that does not answer is not waited for long."""
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)

    # -- requests -----------------------------------------------------------------------------------------

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app, each of its requests with a span that goes on with the caller's trace."""
        from opentelemetry.trace import SpanKind, set_span_in_context, use_span

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in WATCHING:
                await app(scope, receive, send)
                return
            carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            method = scope["method"] if scope["method"] in COUNTED_METHODS else "_OTHER"
            span = self._tracer.start_span(
                method,
                self._propagator.extract(carrier),
                SpanKind.SERVER,
                {
                    "http.request.method": method,
                    "url.path": scope["path"],
                    "url.scheme": scope["scheme"],
                },
            )
            if "traceparent" not in carrier:  # log lines tell of the trace that a request has by its header
                self._propagator.inject(carrier, set_span_in_context(span))
                header = (b"traceparent", carrier["traceparent"].encode())
                scope["headers"] = [*scope["headers"], header]

            async def send_traced(message: Message) -> None:
                if "status" in message:
                    _tell_of_answer(span, method, scope, message)
                await send(message)

            with use_span(span, end_on_exit=True):
                await app(scope, receive, send_traced)

        return traced

    # -- what happens to a request ------------------------------------------------------------------------

    def note(self, dictionary: str, rows: int) -> None:
        """What the request that is being served is about."""
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes({"dictserve.dictionary": dictionary, "dictserve.rows": rows})

    @contextmanager
    def solving(self, dictionary: str, rows: int) -> Iterator["Trail"]:
        """Around a solve: its time until it was sent to the worker, and from then on, as two spans."""
        self.note(dictionary, rows)
        trail = Trail()
        try:
            yield trail
        finally:
            sent, ended = trail.sent_ns, time_ns()
            self._tracer.start_span("queue", start_time=trail.asked_ns).end(sent or ended)
            if sent is not None:
                self._tracer.start_span("solve", start_time=sent).end(ended)


class Trail:
    """When a request's first rows were sent to the worker."""

    def __init__(self) -> None:
        self.asked_ns = time_ns()
        self.sent_ns: int | None = None

    def sent(self) -> None:
        if self.sent_ns is None:
            self.sent_ns = time_ns()


def _tell_of_answer(span: "Span", method: str, scope: Scope, message: Message) -> None:
    from opentelemetry.trace import StatusCode

    status: int = message["status"]
    span.set_attribute("http.response.status_code", status)
    if (route := route_of(scope)) is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    for name, value in message.get("headers", ()):
        if name == b"x-request-id":
            span.set_attribute("dictserve.request_id", value.decode("latin-1"))
    if status >= 500:
        span.set_status(StatusCode.ERROR)
