"""Fault cases, counted: all of tests/faults, and what docs/faults.md names elsewhere. An S3 to test with."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from hypothesis import settings

import core  # noqa: F401 - before torch

import torch  # isort: skip
from tests.postgres import database_url, postgres

__all__ = ["database_url", "postgres"]  # fixtures

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "faults.md"
NAMED = re.compile(r"`((?:app|core|e2e|faults)/\S+?\.py)::(\w+)")
LONGEST = "tests/test_benchmarks.py", "tests/e2e/", "tests/faults/", "tests/core/"
if not torch.cuda.is_available():
    # Read as kernels are defined, Triton's own among them: by whichever test comes first that has them imported.
    os.environ["TRITON_INTERPRET"] = "1"
# The same examples in every run, so that one fails for what has changed; `make fuzz` looks for others.
settings.register_profile("repeated", derandomize=True, deadline=None)
settings.register_profile("others", deadline=None, print_blob=True)
settings.load_profile("repeated")
LEAST = 150  # cases, where all files of tests/faults have run whole


def one_write_at_a_time(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The WSGI application, with writes one after the other: of two that create an object only if there is none, S3
    has one fail, and this server, which looks and then writes, has both succeed if they look at once.
    """
    writing = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start_response)
        with writing:
            return list(application(environ, start_response))

    return serve


class S3:
    """A server that speaks S3, in a thread of this process, and what a client needs to know of it."""

    _buckets = count()  # all servers of a process have the same

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._port = 0
        self.start()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        # This process is client and server at once, on cores that are busy: it is given more time than an S3 is.
        patience = {"connect_timeout": 30, "read_timeout": 60}
        self.options = {"key": "key", "secret": "secret", "endpoint_url": self.endpoint, "config_kwargs": patience}
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def start(self) -> None:
        """Again where it was, if it has been stopped; what it holds is still there."""
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self.server.start()
        assert self.server._server is not None
        self.server._server.app = one_write_at_a_time(self.server._server.app)  # type: ignore[attr-defined]
        _, self._port = self.server.get_host_and_port()

    def new_url(self) -> str:
        """A prefix in a bucket of its own."""
        from s3fs import S3FileSystem

        url = f"s3://bucket-{next(self._buckets)}/models"
        S3FileSystem(**self.options).mkdir(urlparse(url).netloc)
        return url


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    s3 = S3()
    yield s3
    s3.server.stop()


def named_tests() -> set[tuple[str, str]]:
    """File under tests/ and function of every test that docs/faults.md names."""
    return set(NAMED.findall(TABLE.read_text()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    named = named_tests()
    for item in items:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        if file.startswith("faults/") or (file, item.name.partition("[")[0]) in named:
            item.add_marker(pytest.mark.fault)
    # Files that start services take longest: they come first, so that in the end no process waits for another's.
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


def _counted(reporter: pytest.TerminalReporter) -> dict[str, int]:
    """How many fault cases ended how."""
    return {
        outcome: len(
            {  # of a file that is skipped, or cannot be read, the report has no keywords
                report.nodeid
                for report in reporter.stats.get(outcome, [])
                if "fault" in getattr(report, "keywords", ())
            }
        )
        for outcome in ("passed", "failed", "error", "skipped")
    }


def _all_ran(reporter: pytest.TerminalReporter, config: pytest.Config) -> bool:
    """Whether this was a run of at least all of tests/faults."""
    reports = [
        report for outcome in ("passed", "failed", "error", "skipped") for report in reporter.stats.get(outcome, [])
    ]
    ran = {Path(report.nodeid.partition("::")[0]).name for report in reports}
    selected = config.option.keyword or config.option.markexpr or any("::" in str(given) for given in config.args)
    return not selected and all(path.name in ran for path in (ROOT / "tests" / "faults").glob("test_*.py"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _all_ran(reporter, session.config) and _counted(reporter)["passed"] < LEAST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counted = _counted(terminalreporter)
    if not any(counted.values()):
        return
    told = ", ".join(f"{count} {outcome}" for outcome, count in counted.items() if count)
    wanted = f" of at least {LEAST}" * (_all_ran(terminalreporter, config) and counted["passed"] < LEAST)
    terminalreporter.write_line(f"fault cases: {told}{wanted}")
