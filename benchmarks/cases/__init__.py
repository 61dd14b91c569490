"""The questions that are asked, one a file: each has a `run(bench)` that returns its figures and tables."""

import sys
from dataclasses import dataclass

from benchmarks.data import DataSet, DataSets
from benchmarks.libraries import OURS
from benchmarks.process import Library, run_fresh, run_here

OF_THE_CORE = (
    "fit",
    "small",
    "solvers",
    "encode",
    "repeat",
    "latency",
    "memory",
    "online",
    "scaling",
    "start",
    "choosing",
)
OF_THE_SERVICE = ("service", "during_a_fit", "checkpoints", "capacity")
NAMES = (*OF_THE_CORE, *OF_THE_SERVICE)


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

    def dictionary(self, data: DataSet) -> str:
        """Path of a data set's planted D, or of the D that we fit to it; an npy file."""
        if data.dictionary_path is not None:
            return str(data.dictionary_path)
        path = data.path.with_name(data.path.stem + "-D.npy")
        if not path.exists():
            request = {"A": str(data.path), "nb_concepts": data.nb_concepts, "settings": {}, "keep_D": str(path)}
            self.ours.ask("fit", limit_seconds=300, **request)
        return str(path)

    def printed(self, code: str, *arguments: str) -> str:
        """By Python code in a process of its own, or where `quick` in this one: to import torch takes seconds."""
        return run_here(code, *arguments) if self.quick else run_fresh(code, *arguments)[1]

    def say(self, line: str) -> None:
        """Tell how far the run has come."""
        print(f"  {line}", file=sys.stderr, flush=True)
