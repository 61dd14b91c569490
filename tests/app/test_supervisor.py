"""The service's side of the channel, without a worker at the other end."""

import asyncio
import errno
import signal
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from app import supervisor as supervisors
from app.errors import WorkerStarts, WorkerUnavailable
from app.settings import Settings
from app.supervisor import Supervisor, _end
from app.worker import frames
from app.worker.launch import Launched, channel
from app.worker.messages import DeviceLost, Key, Ready

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


def test_a_worker_that_dies_at_once_is_started_ever_less_often(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And soon again once one has lived for a while."""
    lives = iter([0.0] * 9 + [100.0, 0.0])
    clock, pauses = [0.0], []

    class Over(BaseException):
        pass

    async def live_once() -> str:
        if (lived := next(lives, None)) is None:
            raise Over
        clock[0] += lived
        return "was ended by SIGKILL"

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    supervisor = Supervisor(settings)
    monkeypatch.setattr(supervisor, "_live_once", live_once)
    monkeypatch.setattr(supervisors, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(supervisors, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(Over):
        asyncio.run(supervisor._keep_alive())
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 0.1, 0.2]
    assert supervisor.health.restarts == 11


class Stuck:
    """A process that outlives SIGKILL for as long as it likes, as in a call of a driver that never returns."""

    pid = 1

    def __init__(self) -> None:
        self.channel, self.theirs = channel()
        self.kills = 0
        self.end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        self.kills += 1

    def ended(self) -> asyncio.Future[int]:
        return self.end


def test_nobody_waits_for_a_worker_that_cannot_be_killed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for it is told; another is started once it has gone, since it may still hold the device."""
    monkeypatch.setattr(supervisors, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(supervisors, "KILLED_SECONDS", 0.05)
    settings = settings.model_copy(update={"worker_hang_seconds": 0.1})

    async def run() -> None:
        stuck, heard = Stuck(), []
        others = [Stuck()]
        monkeypatch.setattr(supervisors, "Launched", lambda settings: others[0])
        supervisor = Supervisor(settings, "cuda:0", first=stuck)  # type: ignore[arg-type]
        await supervisor.start()
        with pytest.raises(WorkerStarts):
            await supervisor.solve(Key("encode", "digits", 1), ROW)
        frames.send(stuck.theirs, Ready("cuda:0", {}, 1))
        await asyncio.wait_for(supervisor.wait_ready(), 5)
        supervisor._job_listener = ("job", heard.append)
        with pytest.raises(WorkerUnavailable):
            await asyncio.wait_for(supervisor.solve(Key("encode", "digits", 1), ROW), 5)
        assert (stuck.kills, heard, supervisor.health.state, supervisor.health.restarts) == (1, [None], "down", 0)
        told = supervisor.health.last_end
        assert told is not None
        assert told.endswith("was killed, but the system does not let it go")
        stuck.end.set_result(-signal.SIGKILL)
        frames.send(others[0].theirs, Ready("cuda:0", {}, 1))
        await asyncio.wait_for(supervisor.wait_ready(), 5)
        assert supervisor.health.restarts == 1
        await asyncio.wait_for(supervisor.stop(), 5)  # of one that does not go, either

    asyncio.run(run())


def test_a_device_that_cannot_be_used_is_told_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And again where something else is wrong, and when it is over; each of the workers that were tried was told."""
    monkeypatch.setattr(supervisors, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(supervisors, "MAX_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(supervisors, "KILLED_SECONDS", 0.01)

    def leaving() -> Stuck:
        worker = Stuck()
        frames.send(worker.theirs, DeviceLost("cuda:1 cannot be used:\nno such device"))
        worker.end.set_result(1)
        return worker

    def refused() -> Stuck:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    def lost() -> Stuck:
        raise RuntimeError("nobody expects this")

    def ready() -> Stuck:
        worker = Stuck()
        frames.send(worker.theirs, Ready("cuda:1", {}, 1))
        return worker

    async def run() -> None:
        starts: list[Callable[[], Stuck]] = [*3 * [leaving], *3 * [refused], *3 * [lost], ready]
        monkeypatch.setattr(supervisors, "Launched", lambda settings: starts.pop(0)())
        supervisor = Supervisor(settings, "cuda:1")
        await supervisor.start()
        await asyncio.wait_for(supervisor.wait_ready(), 5)
        assert supervisor.health.restarts == 9
        await asyncio.wait_for(supervisor.stop(), 5)

    asyncio.run(run())
    told, worker = "cuda:1 is without a worker", "the worker on cuda:1"
    left = "has left, for its device has failed: cuda:1 cannot be used:\nno such device"
    assert [record.getMessage() for record in caplog.records] == [
        f"{told}: {worker} {left}; another is started",
        f"{told}: {worker} could not be started: [Errno 11] Resource temporarily unavailable; another is started",
        f"{told}: nobody expects this",
        f"over after 0 s: {told}",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [False, False, True, False]


@pytest.mark.parametrize(
    ("code", "told"),
    [(0, "ended with exit code 0"), (-15, "was ended by SIGTERM"), (-40, "was ended by signal 40")],
)
def test_how_a_process_has_ended_is_told_by_its_signal(code: int, told: str) -> None:
    assert _end(code) == told
