"""Calls one after another, none of which waits behind one that is stuck."""

import asyncio
import threading

import pytest

from app.errors import JobsUnavailable
from app.jobs import database_threads
from app.jobs.database_threads import WriteThread


@pytest.fixture(autouse=True)
def _soon_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_threads, "STUCK_SECONDS", 0.1)


def test_calls_come_in_order_and_give_what_they_give() -> None:
    async def main() -> None:
        calls, done = WriteThread("test"), list[int]()
        await asyncio.gather(*(calls(done.append, i) for i in range(20)))
        assert done == list(range(20))
        assert await calls(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await calls(divmod, 7, 0)
        calls.shutdown()

    asyncio.run(main())


def test_behind_a_stuck_call_others_are_refused_until_it_has_ended() -> None:
    async def main() -> None:
        calls, free, done = WriteThread("test"), threading.Event(), list[str]()
        stuck = asyncio.create_task(calls(free.wait, 10))
        queued = asyncio.create_task(calls(done.append, "queued"))  # while nobody knows yet that it is stuck
        await asyncio.sleep(0.2)
        with pytest.raises(JobsUnavailable, match="an earlier write still waits"):
            await calls(done.append, "later")
        free.set()
        assert await stuck
        with pytest.raises(JobsUnavailable, match="an earlier write still waits"):
            await queued
        await calls(done.append, "after")
        assert done == ["after"]
        calls.shutdown()

    asyncio.run(main())
