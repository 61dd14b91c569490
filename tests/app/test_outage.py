"""What fails again and again fills no log."""

import asyncio

import pytest

from app.errors import JobsUnavailable
from app.jobs import database_threads
from app.jobs.database_threads import DatabaseThreads
from app.outage import Outage


def test_it_is_told_once_and_again_where_something_else_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("nothing can be done")
    outage.end()
    for error in (OSError("a"), OSError("a"), OSError("b"), ValueError("b"), ValueError("b")):
        outage.note(error)
    outage.end()
    outage.end()
    outage.note(ValueError("b"))
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "over" not in line] == [
        f"nothing can be done: {what}" for what in ("a", "b", "b", "b")
    ]
    assert [line for line in told if "over" in line] == ["over after 0 s: nothing can be done"]
    assert told[3].startswith("over")


def test_other_numbers_are_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("nothing can be done")
    for free in (17, 4096, 23):
        outage.note(OSError(f"the disk has {free} bytes"))
    assert [record.getMessage() for record in caplog.records] == ["nothing can be done: the disk has 17 bytes"]


def test_what_nobody_expects_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("nothing can be done")
    for _ in range(3):
        try:
            raise RuntimeError("a")
        except RuntimeError as error:
            outage.note(error, is_expected=False)
    (record,) = caplog.records
    assert record.exc_info is not None


def test_a_record_that_cannot_be_written_for_a_while_is_told_twice(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_threads, "RETRY_SECONDS", 0.001)
    left = iter(range(20))

    def write() -> str:
        if (attempt := next(left)) < 19:
            raise JobsUnavailable("the database is locked")
        return f"written at attempt {attempt}"

    async def written() -> str:
        database = DatabaseThreads()
        try:
            return await database.surely(write)
        finally:
            database.shutdown()

    assert asyncio.run(written()) == "written at attempt 19"
    assert [record.getMessage() for record in caplog.records] == [
        "a job's record cannot be written: the database is locked",
        "over after 0 s: a job's record cannot be written",
    ]
