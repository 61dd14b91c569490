"""Fault cases, counted: all of tests/faults, and what docs/faults.md names elsewhere."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from structlog.stdlib import ProcessorFormatter

import core  # noqa: F401 - before torch

import torch  # isort: skip
from tests.postgres import database_url, postgres
from tests.s3 import s3

__all__ = ["database_url", "postgres", "s3"]  # fixtures

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
# Of cases that pass, where all files of tests/faults have run whole; a machine that lacks what some need (PostgreSQL,
# a browser, the right to mount a disk) skips no more than the rest.
LEAST, LEAST_SHARE = 150, 0.85


@pytest.fixture(autouse=True)
def _torch_draws_the_same_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_log_is_written_after_its_test() -> Iterator[None]:
    """A command that settles how logs are written has them written to its own stderr, which a test closes."""
    root = logging.getLogger()
    level, formatwarning = root.level, warnings.formatwarning
    yield
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, ProcessorFormatter):  # ours: pytest's come and go with what it captures
            root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
    warnings.formatwarning = formatwarning


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


def _lacks(counted: dict[str, int]) -> str:
    """What is missing of the cases that must pass, in words; "" where nothing is."""
    least = max(LEAST, round(LEAST_SHARE * sum(counted.values())))
    return f"; at least {least} must pass" if counted["passed"] < least else ""


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
    if reporter is not None and _all_ran(reporter, session.config) and _lacks(_counted(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counted = _counted(terminalreporter)
    if not any(counted.values()):
        return
    told = ", ".join(f"{count} {outcome}" for outcome, count in counted.items() if count)
    lacks = _lacks(counted) if _all_ran(terminalreporter, config) else ""
    terminalreporter.write_line(f"fault cases: {told}{lacks}")
