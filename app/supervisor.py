"""The service's side of the worker: a child process as an object that starts, listens, and starts again.

It never gives up: a worker that dies or hangs is replaced, at growing intervals while the deaths go on. What was
waiting for the dead one is told at once, so that clients can come back.
"""

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.errors import WorkerStarts, WorkerUnavailable, error_by_name
from app.outage import Outage
from app.settings import Settings
from app.worker import frames
from app.worker.launch import Launched
from app.worker.messages import (
    ENDS_OF_FITS,
    Configure,
    DeviceLost,
    Failed,
    Heartbeat,
    Key,
    Message,
    Ready,
    Solve,
    Solved,
    ToWorker,
)

logger = logging.getLogger("dictserve")

HEARTBEAT_SECONDS = 1.0
FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 10.0
KILLED_SECONDS = 10.0  # that a process may take to end of SIGKILL: its memory is given back
STEADY_SECONDS = 30.0  # a worker that lived this long clears the record of deaths before it
DIED = "the worker died; send the request again in a moment"

State = Literal["starting", "ready", "down"]
JobListener = Callable[[frames.Frame | None], None]  # a frame of the job's, or None: the worker died


@dataclass
class Health:
    """What is known of the worker now."""

    state: State
    pid: int | None
    device: str  # as it was told, until the worker has said what it is
    heartbeat_age_seconds: float | None
    restarts: int
    last_end: str | None  # how the one before it ended
    cached_dictionaries: int
    cached_bytes: int
    device_allocated_bytes: int | None = None  # a GPU's; none on the CPU
    device_reserved_bytes: int | None = None
    device_total_bytes: int | None = None
    is_fitting: bool = False


class Supervisor:
    """Owns the worker process of one device. All methods belong to one event loop.

    Args:
        among: how many workers share the machine's cores.
        first: the process to begin with, where it has been launched already.

    Attributes:
        devices: how many there are, of which this worker has the first, where ``device`` is "auto".
        software: the versions of what the worker computes with.
    """

    def __init__(
        self, settings: Settings, device: str = "auto", among: int = 1, first: Launched | None = None
    ) -> None:
        self._settings = settings
        self._device = device
        self._among = among
        self.devices = 1
        self._first = first
        self._process: Launched | None = None
        self._channel: socket.socket | None = None
        self._state: State = "down"
        self._ready = asyncio.Event()
        self._counted = asyncio.Event()
        self.software: dict[str, str] = {}
        self._heard_at = 0.0
        self._heartbeat = Heartbeat(0, 0)
        self._restarts = 0
        self._last_end: str | None = None
        self._device_lost: str | None = None
        self._outage = _without_worker(device)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[list[np.ndarray]]] = {}
        self._job_listener: tuple[str, JobListener] | None = None
        self._fits_beside = 0
        self._unsent: deque[frames.Packed] = deque()  # there was no room on the channel for these
        self._life: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._life = asyncio.create_task(self._keep_alive(), name="supervisor")

    async def stop(self) -> None:
        """Close the channel, which ends the worker; kill it where that takes too long."""
        if self._life is not None:
            self._life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._life

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def wait_counted(self) -> None:
        """Wait until ``devices`` is known, of a worker whose own device may have failed."""
        await self._counted.wait()

    @property
    def is_ready(self) -> bool:
        """Whether the worker takes work, and its loop was heard to turn lately."""
        return self._state == "ready" and not self.is_stuck

    @property
    def is_stuck(self) -> bool:
        """Whether it should take work, and its loop was not heard to turn lately."""
        return self._state == "ready" and self._silence() > self._settings.worker_stale_seconds

    @property
    def is_fitting(self) -> bool:
        """Whether a fit runs on it, or on its device by the side of it."""
        return self._job_listener is not None or self._fits_beside > 0

    @contextlib.contextmanager
    def beside_a_fit(self) -> Iterator[None]:
        """While other processes run a fit on the worker's device."""
        self._fits_beside += 1
        try:
            yield
        finally:
            self._fits_beside -= 1

    @property
    def health(self) -> Health:
        heard = self._state == "ready"
        memory = self._heartbeat.device_memory
        return Health(
            state=self._state,
            pid=self._process.pid if self._process is not None else None,
            device=self._device,
            heartbeat_age_seconds=round(self._silence(), 3) if heard else None,
            restarts=self._restarts,
            last_end=self._last_end,
            cached_dictionaries=self._heartbeat.cached_dictionaries,
            cached_bytes=self._heartbeat.cached_bytes,
            device_allocated_bytes=None if memory is None else memory.allocated,
            device_reserved_bytes=None if memory is None else memory.reserved,
            device_total_bytes=None if memory is None else memory.total,
            is_fitting=self.is_fitting,
        )

    async def _keep_alive(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            born = time.monotonic()
            unexpected: Exception | None = None
            try:
                reason = await self._live_once()
            except OSError as error:  # no process to be had just now
                reason = f"could not be started: {error}"
            except Exception as error:  # whatever it is, the next worker is to be started
                reason, unexpected = "was lost", error
            if time.monotonic() - born > STEADY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            self._restarts += 1
            self._last_end = reason
            gone = WorkerUnavailable(f"the worker on {self._device} {reason}; another is started")
            self._outage.note(unexpected or gone, is_expected=unexpected is None)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    async def _live_once(self) -> str:
        """One worker from its start to its end; says how it ended."""
        loop = asyncio.get_running_loop()
        process, self._first = self._first or Launched(self._settings), None
        ours = process.channel
        ours.setblocking(False)
        self._process, self._channel, self._state, self._device_lost = process, ours, "starting", None
        self._heard_at = time.monotonic()
        ended = process.ended()
        loop.add_reader(ours, self._receive)
        hung = None
        try:
            with contextlib.suppress(WorkerUnavailable):  # gone at once: how is told when it has ended
                self._send(self._configuration())
            while not ended.done():
                slept_at = time.monotonic()
                await asyncio.wait({ended}, timeout=HEARTBEAT_SECONDS)
                self._forgive(time.monotonic() - slept_at - HEARTBEAT_SECONDS)
                hung = self._hung()
                if hung is not None:
                    process.kill()
                    await asyncio.wait({ended}, timeout=KILLED_SECONDS)
                    if not ended.done():
                        loop.remove_reader(ours)
                        self._give_up(hung)
                        await ended  # no other may have its device before
            with contextlib.suppress(frames.Closed, BlockingIOError):
                while True:  # what it has sent until its end
                    self._hear(frames.receive(ours))
        finally:
            loop.remove_reader(ours)
            loop.remove_writer(ours)
            self._lose_worker()
            ours.close()
            await self._reap(process, ended)
        if self._device_lost is not None:
            return f"has left, for its device has failed: {self._device_lost}"
        return hung or _end(ended.result())

    def _count(self, devices: int) -> None:
        self.devices = max(devices, self.devices)
        self._counted.set()

    def _configuration(self) -> Configure:
        return Configure(
            store=str(self._settings.store),
            objects=self._settings.object_store,
            device=self._device,
            cache_bytes=self._settings.cache_bytes,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            among=self._among,
        )

    def _hung(self) -> str | None:
        limit = (
            self._settings.worker_start_seconds if self._state == "starting" else self._settings.worker_hang_seconds
        )
        silence = self._silence()
        return f"was not heard of for {silence:.0f} s and was killed" if silence > limit else None

    def _forgive(self, seconds: float) -> None:
        """Count no silence in which this process itself did not run: of a container that is paused both stand still,
        and the worker is not to die of it."""
        self._heard_at = min(self._heard_at + max(0.0, seconds), time.monotonic())

    def _silence(self) -> float:
        return time.monotonic() - self._heard_at

    def _give_up(self, hung: str) -> None:
        """Let nobody wait for a worker that outlives SIGKILL: in a call of a driver, or on a mount that is away."""
        self._last_end = f"{hung}, but the system does not let it go"
        logger.error("the worker on %s %s; its machine may have to be started anew", self._device, self._last_end)
        self._lose_worker()

    def _lose_worker(self) -> None:
        """Tell everything that waits for the worker that it is gone."""
        self._state, self._channel, self._process = "down", None, None
        self._ready.clear()
        self._heartbeat = Heartbeat(0, 0)
        self._lose_solves()
        if self._job_listener is not None:
            _, listener = self._job_listener
            self._job_listener = None
            listener(None)

    def _lose_solves(self) -> None:
        while self._unsent:
            self._unsent.popleft().close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(WorkerUnavailable("the worker died on the way; send the request again"))

    async def _reap(self, process: Launched, ended: asyncio.Future[int]) -> None:
        """Wait for the process, which leaves once the channel is closed; a busy one is not waited for long."""
        if not ended.done():
            await asyncio.wait({ended}, timeout=1.0)
        if not ended.done():
            process.kill()
            await asyncio.wait({ended}, timeout=KILLED_SECONDS)

    # -- hearing ------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take the frame that is there; the loop calls again while there are more."""
        channel = self._channel
        if channel is None:
            return
        try:
            frame = frames.receive(channel)
        except frames.Closed:
            asyncio.get_running_loop().remove_reader(channel)  # the process's end is awaited elsewhere
        except Exception:  # no descriptor left for it, or no memory: whoever waits for it would wait for good
            logger.exception("what the worker has sent cannot be read; it is ended")
            asyncio.get_running_loop().remove_reader(channel)
            if self._process is not None:
                self._process.kill()
        else:
            self._hear(frame)

    def _hear(self, frame: frames.Frame) -> None:
        self._heard_at = time.monotonic()
        match frame.message:
            case Ready(device, software, devices):
                self._outage.end()
                # What "auto" has found stays: a service whose GPU has gone is not to go on without, unnoticed.
                self._device, self._outage = device, _without_worker(device)
                self._count(devices)
                self.software, self._state = software, "ready"
                self._ready.set()
                logger.info("the worker (process %s) is ready on %s", self.health.pid, device)
            case Heartbeat() as heartbeat:
                self._heartbeat = heartbeat
            case DeviceLost(why, devices):
                self._device_lost = why
                self._count(devices)
            case Solved(task):
                self._settle(task, frame.arrays)
            case Failed(int(task)) as failed:
                self._settle(task, error_by_name(failed.error, failed.detail))
            case message:
                job = getattr(message, "job", None) or getattr(message, "id", None)
                if self._job_listener is not None and self._job_listener[0] == job:
                    _, listener = self._job_listener
                    if isinstance(message, ENDS_OF_FITS):
                        self._job_listener = None
                    listener(frame)

    def _settle(self, task: int, outcome: list[np.ndarray] | Exception) -> None:
        future = self._waiting.pop(task, None)
        if future is None or future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    # -- telling ------------------------------------------------------------------------------------------

    def solve(self, key: Key, rows: frames.Rows) -> Awaitable[list[np.ndarray]]:
        """Have rows encoded or decoded: the arrays of ``Solved``, once they are awaited.

        Raises, when awaited:
            WorkerUnavailable: there is no worker now, or it died on the way.
            Other errors of the two trees: as the worker met them.
        """
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            if self._state != "ready":
                raise WorkerStarts("the worker is starting; send the request again in a moment")
            self._send(Solve(number, key), [rows])
        except Exception as error:
            self._settle(number, error)
        return future

    def tell_job(self, job: str, message: ToWorker, listener: JobListener) -> None:
        """Send a job's first message and hear what comes of it. There is one job at a time."""
        if self._state != "ready":
            raise WorkerUnavailable("the worker is starting")
        self._job_listener = (job, listener)
        self._send(message)

    def tell(self, message: ToWorker) -> None:
        self._send(message)

    def _send(self, message: Message, arrays: Sequence[frames.Rows] = ()) -> None:
        """Send where there is room on the channel and nothing waits for it; else as soon as there is."""
        if self._channel is None:
            raise WorkerUnavailable(DIED)
        self._unsent.append(frames.Packed(message, arrays))
        if len(self._unsent) == 1 and not self._send_unsent(self._channel):
            asyncio.get_running_loop().add_writer(self._channel, self._send_more, self._channel)

    def _send_more(self, channel: socket.socket) -> None:
        with contextlib.suppress(WorkerUnavailable):  # whoever waits has been told
            if not self._send_unsent(channel):
                return
        asyncio.get_running_loop().remove_writer(channel)

    def _send_unsent(self, channel: socket.socket) -> bool:
        """Send what there is room for; whether that was all. Raises WorkerUnavailable where nobody is there."""
        try:
            while self._unsent:
                self._unsent[0].send(channel)
                self._unsent.popleft().close()
        except BlockingIOError:
            return False
        except frames.Closed:  # the process's end is awaited elsewhere
            self._lose_solves()
            raise WorkerUnavailable(DIED) from None
        except OSError:  # whatever it is, what waits behind this would wait for good
            logger.exception("the worker cannot be sent what it is to do; it is ended")
            self._lose_solves()
            if self._process is not None:
                self._process.kill()
            raise WorkerUnavailable(DIED) from None
        return True


def _without_worker(device: str) -> Outage:
    return Outage(f"{device} is without a worker", logging.WARNING)


def _end(code: int) -> str:
    """How a process of this exit code ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    # those that are for a program's own use have no names
    named = -code in set(signal.Signals)
    return f"was ended by {signal.Signals(-code).name}" if named else f"was ended by signal {-code}"
