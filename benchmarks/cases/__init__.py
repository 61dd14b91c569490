"""The questions that are asked, one a file: each has a `run(bench)` that returns its figures and tables."""

import sys
from dataclasses import dataclass

from benchmarks.data import DataSets
from benchmarks.libraries import OURS
from benchmarks.process import Library

NAMES = ("fit", "solvers", "encode", "repeat", "latency", "memory", "scaling", "start")


@dataclass
class Bench:
    """What a case works with.

    Attributes:
        quick: tiny data and no more than a second for anything, to see that it all runs.
        repeats: of every time that a claim rests on; medians are told.
    """

    libraries: dict[str, Library]
    data: DataSets
    quick: bool = False

    @property
    def repeats(self) -> int:
        return 1 if self.quick else 3

    @property
    def ours(self) -> Library:
        return self.libraries[OURS]

    def say(self, line: str) -> None:
        """Tell how far the run has come."""
        print(f"  {line}", file=sys.stderr, flush=True)
