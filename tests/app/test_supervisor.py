"""The service's side of the channel, without a worker at the other end."""

import asyncio
import errno
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from app.errors import WorkerUnavailable
from app.settings import Settings
from app.supervisor import Supervisor, _end
from app.worker import frames
from app.worker.launch import Launched, channel
from app.worker.messages import Key

ROW = np.ones((1, 4), np.float32)


def test_a_worker_that_cannot_be_sent_to_is_ended(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whatever came after what could not be sent would wait behind it for good."""

    def fail(packed: frames.Packed, to: object) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    async def run() -> None:
        ours, theirs = channel()
        ours.setblocking(False)
        with ours, theirs:
            supervisor, killed = Supervisor(settings), []
            supervisor._channel, supervisor._state = ours, "ready"
            supervisor._process = SimpleNamespace(pid=1, kill=lambda: killed.append(True))  # type: ignore[assignment]
            before = asyncio.ensure_future(supervisor.solve(Key("encode", "digits", 1), ROW))
            monkeypatch.setattr(frames.Packed, "send", fail)
            failed = supervisor.solve(Key("encode", "digits", 1), ROW)
            for waits in (before, failed):
                with pytest.raises(WorkerUnavailable):
                    await asyncio.wait_for(waits, 5)
            assert killed
            assert not supervisor._unsent

    asyncio.run(run())


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), StopIteration(), MemoryError()])
def test_a_worker_whose_frame_cannot_be_read_is_ended(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Else who waits for what was in it would wait for good, though the worker lives and says so."""

    def fail(source: object) -> None:
        raise error

    async def run() -> None:
        ours, theirs = channel()
        with ours, theirs:
            supervisor, killed = Supervisor(settings), []
            supervisor._channel, supervisor._state = ours, "ready"
            supervisor._process = SimpleNamespace(pid=1, kill=lambda: killed.append(True))  # type: ignore[assignment]
            monkeypatch.setattr(frames, "receive", fail)
            supervisor._receive()
            assert killed

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_it_begins_with_the_process_that_was_launched_before(settings: Settings, dies: bool) -> None:
    """Or, where that has died since, with another."""

    async def run() -> None:
        first = Launched(settings)
        if dies:
            first.kill()
        supervisor = Supervisor(settings, "cpu", first=first)
        await supervisor.start()
        await asyncio.wait_for(supervisor.wait_ready(), 100)
        health = supervisor.health
        assert (health.pid == first.pid, health.restarts) == (not dies, int(dies))
        assert health.last_end == ("was ended by SIGKILL" if dies else None)
        await supervisor.stop()
        assert await first.ended() == (-signal.SIGKILL if dies else 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("code", "told"),
    [(0, "ended with exit code 0"), (-15, "was ended by SIGTERM"), (-40, "was ended by signal 40")],
)
def test_how_a_process_has_ended_is_told_by_its_signal(code: int, told: str) -> None:
    assert _end(code) == told
