"""What must hold of everything that the clients were answered, whatever was killed meanwhile.

A call that was not answered may or may not have happened, but nothing of it happens after its connection broke: the
process that would have done it was dead by then.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.faults.crash.clients import Reference
from tests.faults.crash.log import Fault, Operation

TOLERANCE = 1e-5  # of codes and activations, relative to the largest
ENDED = ("succeeded", "failed", "cancelled")
EXPECTED = {
    "import": {201},
    "fit": {200, 202},
    "job": {200, 404},
    "cancel": {200, 204, 404},
    "jobs": {200},
    "dictionaries": {200},
    "encode": {200, 404},
    "decode": {200, 404},
    "weights": {200, 404},
    "record": {200, 404},
    "label": {200, 404},
    "delete": {204, 404},
}
OF_A_VERSION = ("encode", "decode", "weights", "record", "label")
NEVER = float("inf")
RECOVERY_SECONDS = 3.0  # a database that was away is asked for once a second


@dataclass(frozen=True)
class Outage:
    """From a kill until the service was ready again; of a database until it had answered again."""

    begun: float
    ended: float
    of: str
    error: str = "worker-unavailable"  # with which who comes meanwhile may be refused

    def overlaps(self, operation: Operation) -> bool:
        return operation.asked <= self.ended and operation.ended >= self.begun


@dataclass
class Version:
    """A version that a client was told of, made at some time between ``asked`` and ``told``."""

    asked: float
    told: float
    maker: str  # an import's digest, or a job's id
    by: Operation
    maybe_deleted: float = NEVER  # from when on it may be gone
    deleted: float = NEVER  # from when on it must be


class History:
    """All operations, and what follows from them."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.by_kind: dict[str, list[Operation]] = defaultdict(list)
        for operation in operations:
            self.by_kind[operation.kind].append(operation)
        self.outages = list(self._outages())
        self.jobs: dict[str, list[Operation]] = defaultdict(list)  # answers that tell of a job, as they came
        for operation in sorted(operations, key=lambda operation: operation.ended):
            if operation.kind in ("fit", "job", "cancel") and operation.done:
                self.jobs[operation.told.get("id") or operation.answer["id"]].append(operation)
        self.versions: dict[Reference, Version] = {}
        self.given_twice = list(self._find_versions())
        self._find_deletes()

    def outages_at(self, operation: Operation) -> list[Outage]:
        return [outage for outage in self.outages if outage.overlaps(operation)]

    def _outages(self) -> Iterator[Outage]:
        ready = [operation.ended for operation in self.by_kind["ready"]]
        for operation in self.operations:
            if operation.kind.startswith("kill"):
                next_ready = bisect_left(ready, operation.ended)
                end = ready[next_ready] if next_ready < len(ready) else NEVER
                yield Outage(operation.asked, end, operation.kind.removeprefix("kill "))
            elif operation.kind.startswith(
                ("database", "service")
            ):  # a service that stood still has not asked either
                yield Outage(operation.asked, operation.ended + RECOVERY_SECONDS, operation.kind, "jobs-unavailable")

    def _find_versions(self) -> Iterator[Fault]:
        first_asked: dict[str, float] = {}  # of a key: an unanswered request may have made the job already
        asked_at: dict[str, float] = {}
        for operation in self.by_kind["fit"]:
            first_asked.setdefault(operation.told["key"], operation.asked)
            if operation.done:
                asked_at[operation.answer["id"]] = first_asked[operation.told["key"]]
        for operation in sorted(self.operations, key=lambda operation: operation.ended):
            if operation.kind == "import" and operation.done:
                maker, asked = operation.told["digest"], operation.asked
            elif operation.kind in ("fit", "job", "cancel") and operation.answer.get("state") == "succeeded":
                maker = operation.answer["id"]
                asked = asked_at[maker]
            else:
                continue
            reference = (operation.answer["name"], operation.answer["version"])
            known = self.versions.setdefault(reference, Version(asked, operation.ended, maker, operation))
            if known.maker != maker:
                yield Fault("a version's number was given twice", (known.by, operation))

    def _find_deletes(self) -> None:
        of_name = defaultdict(list)
        for reference, version in self.versions.items():
            of_name[reference[0]].append((reference, version))
        for operation in self.by_kind["delete"]:
            if not operation.maybe_done:
                continue
            name, number = operation.told["name"], operation.told["version"]
            for reference, version in of_name[name]:
                if number not in (None, reference[1]) or version.asked > operation.ended:
                    continue
                version.maybe_deleted = min(version.maybe_deleted, operation.asked)
                if operation.done and (number is not None or version.told < operation.asked):
                    version.deleted = min(version.deleted, operation.ended)


def check(history: History) -> list[Fault]:
    """Every promise that was not kept."""
    checks = (_answers, _order_of_versions, _reads, _latest, _values, _labels, _jobs, _keys)
    return [*history.given_twice, *(fault for check in checks for fault in check(history))]


def _answers(history: History) -> Iterator[Fault]:
    """Nobody is refused or cut off but for a kill, and a refusal says when to come back."""
    for kind, expected in EXPECTED.items():
        for operation in history.by_kind[kind]:
            if operation.status is None:
                if not {"service", "group"} & {outage.of for outage in history.outages_at(operation)}:
                    yield Fault("no answer, and the service was not killed", (operation,))
            elif operation.status == 503:
                if operation.answer["type"] not in {outage.error for outage in history.outages_at(operation)}:
                    yield Fault("refused, and nothing was killed", (operation,))
                if operation.answer["retry_after"] is None:
                    yield Fault("503 without Retry-After", (operation,))
            elif operation.status not in expected:
                yield Fault("an answer that nobody should get", (operation,))


def _order_of_versions(history: History) -> Iterator[Fault]:
    """A version that was asked for after another was told of has the higher number: none is ever given again."""
    highest: dict[str, tuple[int, Version]] = {}
    told = sorted(history.versions.items(), key=lambda item: item[1].told)
    position = 0
    for (name, number), version in sorted(history.versions.items(), key=lambda item: item[1].asked):
        while position < len(told) and told[position][1].told < version.asked:
            (earlier_name, earlier), by = told[position]
            if earlier > highest.get(earlier_name, (0, by))[0]:
                highest[earlier_name] = (earlier, by)
            position += 1
        if name in highest and highest[name][0] >= number:
            yield Fault("a later version has no higher number", (highest[name][1].by, version.by))


def _reads(history: History) -> Iterator[Fault]:
    """A version is there from when it was told of until somebody deletes it, and then never again."""
    for kind in (*OF_A_VERSION, "delete"):
        for operation in history.by_kind[kind]:
            number = operation.told["version"] or operation.answer.get("version")
            version = history.versions.get((operation.told["name"], number))
            if operation.status == 404 and operation.told["version"] is not None:
                if version is None or operation.ended < version.maybe_deleted:
                    yield Fault("a version is not there, and nobody has deleted it", (operation,))
            elif operation.status == 200:
                if operation.told["version"] not in (None, operation.answer["version"]):
                    yield Fault("another version was answered with", (operation,))
                if version is not None and operation.asked > version.deleted:
                    yield Fault("a deleted version is there", (operation,))


def _latest(history: History) -> Iterator[Fault]:
    """A name means a version no older than the latest one told of before."""
    of_name = defaultdict(list)
    for (name, number), version in history.versions.items():
        of_name[name].append((number, version))
    for kind in ("encode", "record"):
        for operation in history.by_kind[kind]:
            if operation.told["version"] is not None or operation.status not in (200, 404):
                continue
            answered = operation.answer.get("version", 0)
            for number, version in of_name[operation.told["name"]]:
                if number > answered and version.told < operation.asked and operation.ended < version.maybe_deleted:
                    yield Fault(f"version {number} was there, and is not the latest", (version.by, operation))


def _values(history: History) -> Iterator[Fault]:
    """Codes, activations and weights of a version are the same at all times; an import's weights are those sent."""
    for kind in ("encode", "decode"):
        first: dict[Reference, Operation] = {}
        for operation in history.by_kind[kind]:
            if operation.status != 200:
                continue
            known = first.setdefault((operation.told["name"], operation.answer["version"]), operation)
            before, now = np.array(known.answer["values"]), np.array(operation.answer["values"])
            if before.shape != now.shape or not np.allclose(before, now, rtol=0, atol=TOLERANCE * before.max()):
                yield Fault(f"{kind} gave something else than before", (known, operation))
    digests: dict[Reference, Operation] = {}
    for operation in history.by_kind["weights"]:
        if operation.status != 200:
            continue
        reference = (operation.told["name"], operation.answer["version"])
        known = digests.setdefault(reference, operation)
        if known.answer["digest"] != operation.answer["digest"]:
            yield Fault("weights are not what they were", (known, operation))
        version = history.versions.get(reference)
        if version is not None and version.by.kind == "import" and version.maker != operation.answer["digest"]:
            yield Fault("weights are not what was imported", (version.by, operation))


def _labels(history: History) -> Iterator[Fault]:
    """A label is what somebody wrote last: the value of a write that no other one certainly followed, as far as the
    writes that were asked before the reading was over tell."""
    writes: dict[tuple[str, int, str], list[Operation]] = defaultdict(list)
    for operation in history.by_kind["label"]:
        if operation.maybe_done:
            writes[operation.told["name"], operation.told["version"], operation.told["key"]].append(operation)
    by_reference: dict[Reference, list[str]] = defaultdict(list)
    for name, number, key in writes:
        by_reference[name, number].append(key)
    for kind in ("record", "label"):
        for operation in history.by_kind[kind]:
            if operation.status != 200:
                continue
            reference = (operation.told["name"], operation.answer["version"])
            for key in by_reference[reference]:
                value = operation.answer["labels"].get(key)
                if value not in _possible(writes[*reference, key], operation):
                    yield Fault(f"label {key} is {value!r}", (*writes[*reference, key][-3:], operation))
            unknown = operation.answer["labels"].keys() - set(by_reference[reference])
            if unknown:
                yield Fault(f"nobody wrote labels {unknown}", (operation,))


def _possible(writes: list[Operation], read: Operation) -> set[str | None]:
    before = [write for write in writes if write.asked <= read.ended]
    sure = [write.asked for write in before if write.done and (write.ended <= read.asked or write is read)]
    latest = max(sure, default=-NEVER)  # what ended before this one was asked has been overwritten
    possible = {write.told["value"] for write in before if write.ended >= latest}
    return possible if sure else possible | {None}


def _jobs(history: History) -> Iterator[Fault]:
    """An accepted job exists until its record is removed, ends once and for all, and gives what was asked for."""
    removals = defaultdict(list)
    for operation in history.by_kind["cancel"]:
        if operation.maybe_done:
            removals[operation.told["id"]].append(operation)
    for operation in (*history.by_kind["job"], *history.by_kind["cancel"]):
        if operation.status == 404:
            maybe = [removal for removal in removals[operation.told["id"]] if removal.asked < operation.ended]
            if not maybe:
                yield Fault("a job is not there, and nobody has removed it", (operation,))
    for id, told in history.jobs.items():
        end: Operation | None = None
        removed: Operation | None = None
        for operation in told:
            if operation.status == 204:
                removed = removed or operation
                continue
            if removed is not None and operation.asked > removed.ended:
                yield Fault("a removed job is there", (removed, operation))
            job = operation.answer
            if end is not None and operation.asked > end.ended and _outcome(job) != _outcome(end.answer):
                yield Fault("a job that had ended has changed", (end, operation))
            if job["state"] in ENDED:
                end = end or operation
            if job["state"] == "failed" and (job["error"] or {}).get("type") != "fit-abandoned":
                yield Fault("a fit failed", (operation,))
            if job["resumed_from"] is not None and (job["attempts"] < 2 or job["resumed_from"] < 1):
                yield Fault("a fit went on from nothing", (operation,))
            if (job["state"] == "succeeded") != (job["version"] is not None):
                yield Fault("a job has succeeded without a version, or has one without", (operation,))
        last = told[-1]
        if last.who == "reader" and last.answer.get("state", "cancelled") not in ENDED:
            yield Fault(f"job {id} has not ended", (last,))


def _outcome(job: dict) -> tuple[object, ...]:  # type: ignore[type-arg]
    return job["state"], job["version"], job["error"]


def _keys(history: History) -> Iterator[Fault]:
    """An Idempotency-Key makes one job."""
    first: dict[str, Operation] = {}
    for operation in history.by_kind["fit"]:
        if operation.done:
            known = first.setdefault(operation.told["key"], operation)
            if known.answer["id"] != operation.answer["id"]:
                yield Fault("a second job of one Idempotency-Key", (known, operation))
