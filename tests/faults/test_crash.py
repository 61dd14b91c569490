"""A short crash run, and that its checks would find what they look for."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.crash import answers, disk
from tests.faults.crash.log import Operation
from tests.faults.crash.run import Report, run

# a killed service is up again within seconds, but not on a machine that does something else, too
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 2
SEED = 40  # of which the worker is killed, then the service, and in the end both

KINDS = {"import", "fit", "job", "cancel", "encode", "decode", "weights", "record", "label", "delete"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash")


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return run(folder, KILLS, seed=SEED)


def test_promises_hold_whatever_is_killed(report: Report) -> None:
    print(report)
    assert not report.faults, "\n".join(fault.told(report.operations) for fault in report.faults[:5])
    assert report.kills == {"worker": 1, "service": 1}
    assert {kind for kind, count in report.done.items() if count} >= KINDS


def version(store: Path) -> Path:
    """Some version that is there."""
    return next(path.parent for path in store.glob("*/*/meta.json"))


def replaced(path: Path, content: bytes) -> Callable[[], object]:
    """Write a file; how to undo it."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    return path.unlink if before is None else lambda: path.write_bytes(before)


def flipped(store: Path) -> Callable[[], object]:
    path = version(store) / "dictionary.safetensors"
    content = path.read_bytes()
    return replaced(path, content[:-1] + bytes([content[-1] ^ 1]))


def half_made(store: Path) -> Callable[[], object]:
    path = version(store) / "meta.json"
    hidden = path.rename(store.parent / "hidden")
    return lambda: hidden.rename(path)


def without_figures(store: Path) -> Callable[[], object]:
    path = next(store.glob("*/*/figures.safetensors"))
    hidden = path.rename(store.parent / "hidden")
    return lambda: hidden.rename(path)


def renumbered(store: Path) -> Callable[[], object]:
    path = version(store)
    elsewhere = path.rename(path.parent / "99999")
    return lambda: elsewhere.rename(path)


def job_left_running(store: Path) -> Callable[[], object]:
    def set_state(id: str, state: str) -> None:
        with sqlite3.connect(store / ".dictserve" / "jobs.sqlite3") as connection:
            connection.execute("UPDATE jobs SET state = ? WHERE id = ?", (state, id))
        connection.close()

    with sqlite3.connect(store / ".dictserve" / "jobs.sqlite3") as connection:
        id, state = connection.execute("SELECT id, state FROM jobs").fetchone()
    connection.close()
    set_state(id, "running")
    return lambda: set_state(id, state)


DAMAGES: dict[str, Callable[[Path], Callable[[], object]]] = {
    "checksum does not hold": flipped,
    "holds ['dictionary.safetensors": half_made,
    "the figures are not those": without_figures,
    "tells of": renumbered,
    "was left over": lambda store: replaced(store / ".dictserve" / "staging" / "1-a.b", b""),
    "checkpoints/1-a.b.safetensors was left over": lambda store: replaced(
        store / ".dictserve" / "checkpoints" / "1-a.b.safetensors", b""
    ),
    "1-a.c.safetensors: the checksum does not hold": lambda store: replaced(
        store / ".dictserve" / "checkpoints" / "1-a.c.safetensors", b"x" * 100
    ),
    "cannot be read": lambda store: replaced(version(store) / "labels.json", b"{"),
    "is running": job_left_running,
}


@pytest.mark.parametrize("said", DAMAGES)
def test_what_is_wrong_on_the_disk_is_found(report: Report, folder: Path, said: str) -> None:
    store, history = folder / "models", answers.History(report.operations)
    undo = DAMAGES[said](store)
    try:
        found = [*disk.check_versions(store), *disk.check_checkpoints(store), *disk.check_jobs(store, history)]
        found += [] if found and "left over" not in said else disk.check_store(store, history)
        assert any(said in fault.text for fault in found), found
    finally:
        undo()


def changed(operation: Operation, **answer: object) -> Operation:
    return replace(operation, answer=operation.answer | answer)


def last(operations: list[Operation], kind: str, **answer: object) -> Operation:
    """The last answered one of a kind by the reader, when nothing was killed any more."""
    return next(
        operation
        for operation in reversed(operations)
        if operation.kind == kind
        and operation.who == "reader"
        and operation.status == 200
        and answer.items() <= operation.answer.items()
    )


def lies(operations: list[Operation]) -> Iterator[tuple[str, Operation, Operation]]:
    """What would be a broken promise: the fault, what was answered, and what is said to have been."""
    record = last(operations, "record")
    versions = answers.History(operations).versions
    kept = {reference for reference, made in versions.items() if made.maybe_deleted == answers.NEVER}
    weights = next(  # of an import that nobody has deleted
        operation
        for operation in operations
        if operation.kind == "weights"
        and operation.status == 200
        and (reference := (operation.told["name"], operation.answer["version"])) in kept
        and versions[reference].by.kind == "import"
    )
    encoded = [operation for operation in operations if operation.kind == "encode" and operation.status == 200]
    first = {(operation.told["name"], operation.answer["version"]): operation for operation in reversed(encoded)}
    encode = next(o for o in encoded if first[o.told["name"], o.answer["version"]] is not o)
    job = last(operations, "job", state="succeeded")
    yield "encode gave something else", encode, changed(encode, values=[[1.0]])
    yield "weights are not what", weights, changed(weights, digest="0")
    yield "label", record, changed(record, labels={"nobody": "x"})
    yield "version is not there", weights, replace(weights, status=404)
    yield "job is not there", job, replace(job, status=404, answer={})
    yield "went on from nothing", job, changed(job, resumed_from=5, attempts=1)
    imported = next(operation for operation in operations if operation.kind == "import" and operation.done)
    yield "given twice", job, changed(job, version=imported.answer["version"], name=imported.told["name"])
    yield "has not ended", job, changed(job, state="running", version=None)
    yield "no answer, and the service was not killed", record, replace(record, status=None, answer={})
    refusal = {"type": "worker-unavailable", "retry_after": "1"}
    yield "refused, and nothing was killed", record, replace(record, status=503, answer=refusal)
    yield "nobody should get", record, replace(record, status=500, answer={"type": "internal-error"})


def test_a_broken_promise_is_found(report: Report) -> None:
    for said, answered, lie in lies(report.operations):
        told = [lie if operation is answered else operation for operation in report.operations]
        found = [fault.text for fault in answers.check(answers.History(told))]
        assert any(said in text for text in found), (said, found)
