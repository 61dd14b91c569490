"""What a case tells: figures with their goals, and tables of what was measured."""

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

MEASURED_WITH = ("torch", "numpy", "numba", "scipy", "scikit-learn")

Cell = str | float | int | None


@dataclass(frozen=True)
class Figure:
    """One number and what it should be.

    Attributes:
        value: None where it could not be measured; `note` says why.
        at_least, at_most: the goal; neither for a figure that is merely stated.
        lower_bound: the true value is this or more (a peer was cut off).
    """

    name: str
    value: float | None
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    lower_bound: bool = False
    note: str = ""

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{self.unit}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}{self.unit}"

    @property
    def verdict(self) -> str:
        if not self.goal:
            return "stated"
        if self.value is None:
            return "not measured"
        if self.at_least is not None:
            if self.value >= self.at_least:
                return "met"
            return "open" if self.lower_bound else "missed"
        assert self.at_most is not None
        return "met" if self.value <= self.at_most else "missed"

    @property
    def shown(self) -> str:
        return "–" if self.value is None else f"{'≥ ' * self.lower_bound}{number(self.value)}{self.unit}"


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass
class Result:
    """What a case found, and when, where and by which command."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Result":
        return cls([Figure(**f) for f in told["figures"]], [Table(**t) for t in told["tables"]], told["made"])


def circumstances(command: str, seconds: float, libraries: dict[str, str]) -> dict[str, Any]:
    """What makes a figure worth something later: when, where and with what it was made."""
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(seconds),
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in MEASURED_WITH},
        "libraries": libraries,
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def number(x: float) -> str:
    """Three significant digits, without an exponent where that reads well."""
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"
    return f"{x:.1e}"
