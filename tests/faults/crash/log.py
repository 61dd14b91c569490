"""Operations as their client saw them: written down as they go, read back by the checks."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Operation:
    """What was asked and, where an answer came, what it was. Times are of the monotonic clock, in seconds."""

    who: str
    number: int
    kind: str
    told: dict[str, Any]
    asked: float
    ended: float = float("inf")
    status: int | None = None  # None: no answer came, and it may or may not have happened
    answer: dict[str, Any] = field(default_factory=dict)
    lost: str | None = None  # why no answer came
    sent: bool = True  # False: the connection was refused, so it has not happened

    @property
    def done(self) -> bool:
        return self.status is not None and self.status < 300

    @property
    def maybe_done(self) -> bool:
        return self.done or (self.status is None and self.sent)

    @property
    def subject(self) -> object:
        """The dictionary's name, or the job's id where it tells of a job alone."""
        return self.told.get("name") or self.answer.get("name") or self.told.get("id")

    def __str__(self) -> str:
        outcome = f"{self.status} {self.answer}" if self.status is not None else f"no answer ({self.lost})"
        return f"{self.asked:.3f}–{self.ended:.3f} {self.who}#{self.number} {self.kind} {self.told} → {outcome}"


class Log:
    """One client's file: a line when it asks, a line when it knows."""

    def __init__(self, folder: Path, who: str) -> None:
        self._who = who
        self._file = (folder / f"{who}.jsonl").open("w", buffering=1)
        self._numbers = itertools.count()
        self.counts: Counter[str] = Counter()  # done, by kind

    def ask(self, kind: str, **told: Any) -> Operation:
        operation = Operation(self._who, next(self._numbers), kind, told, time.monotonic())
        self._write(number=operation.number, kind=kind, told=told, asked=operation.asked)
        return operation

    def answered(self, operation: Operation, status: int, **answer: Any) -> Operation:
        operation.status, operation.answer = status, answer
        self.counts[operation.kind] += operation.done
        return self._ended(operation, status=status, answer=answer)

    def lost(self, operation: Operation, why: str, *, sent: bool) -> Operation:
        operation.lost, operation.sent = why, sent
        return self._ended(operation, lost=why, sent=sent)

    def close(self) -> None:
        self._file.close()

    def _ended(self, operation: Operation, **outcome: Any) -> Operation:
        operation.ended = time.monotonic()
        self._write(number=operation.number, ended=operation.ended, **outcome)
        return operation

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")


def read_logs(folder: Path) -> list[Operation]:
    """Every operation of every client, in the order in which they were asked."""
    found = []
    for path in folder.glob("*.jsonl"):
        operations: dict[int, Operation] = {}
        for line in map(json.loads, path.read_text().splitlines()):
            if "asked" in line:
                operations[line["number"]] = Operation(who=path.stem, **line)
            else:
                for name, value in line.items():
                    setattr(operations[line["number"]], name, value)
        found.extend(operations.values())
    return sorted(found, key=lambda operation: operation.asked)


@dataclass(frozen=True)
class Fault:
    """A promise that was not kept, with the operations that show it."""

    text: str
    operations: tuple[Operation, ...] = ()

    def told(self, history: Iterable[Operation], around: float = 0.5) -> str:
        """The fault, what shows it, and what was done to the same dictionary, and to the service, around the last."""
        lines = [f"FAULT {self.text}", *(f"  {operation}" for operation in self.operations)]
        if self.operations:
            last = self.operations[-1]
            lines += ["  around the last of these:"]
            lines += [
                f"    {operation}"
                for operation in history
                if operation.asked < last.ended + around
                and operation.ended > last.asked - around
                and (operation.who == "killer" or operation.subject == last.subject)
            ]
        return "\n".join(lines)
