"""A library in a process of its own, as an object that is asked and answers."""

import io
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from benchmarks.libraries import LIBRARIES

START_SECONDS = 120
REST_SECONDS = 0.05  # threads of the process asked before spin on for some milliseconds


class Absent(Exception):
    """The library cannot be loaded; the message says why."""


class TimedOut(Exception):
    """The answer took longer than it was given."""


class Failed(Exception):
    """The library raised an error, or its process ended."""


class Library:
    """A library in a child process, which is started with the first question and again after a time-out."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version: str | None = None
        self.absent: str | None = None
        self._process: subprocess.Popen[str] | None = None

    def ask(self, do: str, *, limit_seconds: float, **request: Any) -> dict[str, Any]:
        """The answer to a request of `benchmarks.child.Child`.

        Raises:
            Absent, TimedOut, Failed: as their names say.
        """
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        time.sleep(REST_SECONDS)
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        told = self._answer(limit_seconds)
        if "error" in told:
            raise Failed(told["error"])
        return told

    def launch(self) -> None:
        """Start the process if there is none, without waiting for it."""
        if self._process is None and self.absent is None:
            self.version = None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.child", self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def start(self) -> None:
        """Make sure that the process is there and has loaded its library.

        Raises:
            Absent: it cannot be loaded.
        """
        self.launch()
        if self.absent is not None:
            raise Absent(self.absent)
        if self.version is not None:
            return
        told = self._answer(START_SECONDS)
        if "error" in told:
            self.stop()
            self.absent = told["error"]
            raise Absent(self.absent)
        self.version = told["version"]

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _answer(self, limit_seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_seconds):
                self.stop()
                raise TimedOut(f"over {limit_seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.stop()
            raise Failed(f"its process ended with exit code {code}")
        told: dict[str, Any] = json.loads(line)
        return told


@contextmanager
def libraries() -> Iterator[dict[str, Library]]:
    """Every library by name; their processes end with the block."""
    known = {name: Library(name) for name in LIBRARIES}
    try:
        yield known
    finally:
        for library in known.values():
            library.stop()


def run_fresh(code: str, *arguments: str) -> tuple[float, str]:
    """Python code in a process of its own: seconds from its start to its end, and what it printed."""
    begun = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, env=os.environ
    )
    return time.perf_counter() - begun, run.stdout.strip()


def run_here(code: str, *arguments: str) -> str:
    """What such code prints, run in this process."""
    own, sys.argv = sys.argv, ["-c", *arguments]
    try:
        with redirect_stdout(io.StringIO()) as printed:
            exec(code, {"__name__": "__main__"})  # noqa: S102
    finally:
        sys.argv = own
    return printed.getvalue().strip()
