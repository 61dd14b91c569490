"""Log lines as text or JSON, on stderr; what a request logs carries its id, and its trace's where it has one."""

import logging
import re
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from app.settings import LogFormat  # the worker, which starts without pydantic's settings, logs too

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

_PARTS = set(" =\"'")  # of what stands in a line of text

# What each line says that is logged on behalf of a request; one variable, which is set faster than structlog's.
of_request: ContextVar[Mapping[str, str]] = ContextVar("of_request", default=MappingProxyType({}))


def configure(format: "LogFormat", level: str) -> None:
    """Settle how every logger of this process writes."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _with_request,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[structlog.typing.Processor]
    if format == "json":
        final = [
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    else:
        final = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _as_text]
    handler = logging.StreamHandler()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.formatwarning = _warning
    # It tells, with tracebacks, that lost connections cannot be closed in order: `jobs.database` told of the loss.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Without the source's line below."""
    return f"{filename}:{lineno}: {category.__name__}: {message}"


def trace_id(traceparent: str) -> str | None:
    """The trace's id of a W3C traceparent header; None where it is not one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found is not None and found[1].strip("0") else None


def _with_request(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event.pop("color_message", None)  # uvicorn's, for terminals: the message once more
    event.pop("_ray_timestamp_ns", None)  # Ray's, on every line
    return {**of_request.get(), **event}


def _as_text(_: object, __: str, event: structlog.typing.EventDict) -> str:
    """Time LEVEL: message key=value, and the traceback of an exception below."""
    level = event.pop("level", "info").upper()
    time = event.pop("timestamp")
    event.pop("logger", None)
    exception = structlog.processors.format_exc_info(None, "", event).pop("exception", None)
    message = _escaped(str(event.pop("event")).strip())
    event.pop("exc_info", None)
    told = "".join(f" {key}={_on_one_line(value)}" for key, value in event.items())
    return f"{time} {level}: {message}{told}" + (f"\n{exception}" if exception else "")


def _on_one_line(value: object) -> str:
    """What a client sent (a path) begins no line of its own, nor another value, and tells a terminal nothing."""
    text = str(value)
    return text if text.isprintable() and not _PARTS & set(text) else repr(text)


def _escaped(text: str) -> str:
    """An error's lines as one: CUDA's have several."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
