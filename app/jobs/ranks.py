"""Fits on several processes of this machine, which share out the rows: started for the job, gone with it.

To ``app.jobs.runner`` this looks as the supervisor does: it is told of a job, and the job's frames come back. One of
the processes that dies takes the others with it, and the job hears that its worker died.
"""

import asyncio
import contextlib
import logging
import socket
import tempfile
from pathlib import Path
from typing import Any

from app.errors import WorkerUnavailable
from app.settings import Settings
from app.supervisor import JobListener
from app.worker import frames
from app.worker.launch import Launched
from app.worker.messages import (
    ENDS_OF_FITS,
    CancelFit,
    Configure,
    Fit,
    FitCancelled,
    FitStopped,
    StopFit,
)
from app.workers import Workers

logger = logging.getLogger("dictserve")

LAST_WORDS_SECONDS = 2.0  # after a process has died, for what it or another has to say of it


class RankProcesses:
    """The jobs that run on ranks. All methods belong to one event loop."""

    def __init__(self, settings: Settings, workers: Workers) -> None:
        self._settings = settings
        self._workers = workers
        self._jobs: dict[str, _Ranks] = {}

    def tell_job(self, job: str, message: Fit, listener: JobListener, ranks: int) -> None:
        """Start a job on so many processes, and hear what comes of it: its frames, None if one of them died."""
        running = _Ranks(self._settings, message, listener)
        self._jobs[job] = running
        running.task = asyncio.create_task(self._run(job, running, ranks), name=f"ranks-{job}")

    def tell(self, message: CancelFit | StopFit) -> None:
        """End a job at once. One that is stopped goes on, later, from its last checkpoint."""
        running = self._jobs.get(message.job)
        if running is None:
            raise WorkerUnavailable("the processes of this fit have ended")
        end = FitCancelled(message.job) if isinstance(message, CancelFit) else FitStopped(message.job)
        running.hear(frames.Frame(end))

    async def stop(self) -> None:
        """Kill what still runs."""
        tasks = [running.task for running in self._jobs.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: str, running: "_Ranks", ranks: int) -> None:
        try:
            with contextlib.ExitStack() as beside:
                for worker in list(self._workers)[:ranks]:  # they take the first devices, as these do
                    beside.enter_context(worker.beside_a_fit())
                await running.run(ranks)
        except Exception:  # whatever it is, the job is to hear of it
            logger.exception("the ranks of job %s failed", job)
        finally:
            if self._jobs.get(job) is running:  # and not, meanwhile, another attempt
                del self._jobs[job]
            running.lose()


class _Ranks:
    """One job's processes."""

    def __init__(self, settings: Settings, message: Fit, listener: JobListener) -> None:
        self.task: asyncio.Task[None] | None = None
        self._settings = settings
        self._message = message
        self._listener = listener
        self._ended = asyncio.Event()

    def hear(self, frame: frames.Frame) -> None:
        """Pass on what is told, up to the first end that is."""
        if self._ended.is_set():
            return
        if isinstance(frame.message, ENDS_OF_FITS):
            self._ended.set()
        self._listener(frame)

    def lose(self) -> None:
        """Tell that the job has no processes any more, unless its end was told."""
        if not self._ended.is_set():
            self._ended.set()
            self._listener(None)

    async def run(self, ranks: int) -> None:
        processes: list[Launched] = []
        exits: list[asyncio.Future[int]] = []
        with tempfile.TemporaryDirectory(prefix="dictserve-ranks-") as folder, contextlib.ExitStack() as channels:
            try:
                for rank in range(ranks):
                    process = Launched(self._settings, str(rank), str(ranks), str(Path(folder) / "rendezvous"))
                    processes.append(process)
                    exits.append(process.ended())
                    self._begin(process.channel, channels)
                await self._wait(exits)
            finally:
                for process in processes:
                    process.kill()
                await asyncio.gather(*exits)

    def _begin(self, ours: socket.socket, channels: contextlib.ExitStack) -> None:
        channels.callback(ours.close)
        settings = self._settings
        with contextlib.suppress(frames.Closed):  # its end is awaited elsewhere
            frames.send(
                ours,
                Configure(
                    store=str(settings.store),
                    objects=settings.object_store,
                    device=settings.devices,
                    cache_bytes=0,
                    heartbeat_seconds=0,
                    patience_seconds=settings.worker_hang_seconds,
                ),
            )
            frames.send(ours, self._message)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, self._receive, ours)
        channels.callback(loop.remove_reader, ours)

    def _receive(self, channel: socket.socket) -> None:
        try:
            frame = frames.receive(channel)
        except frames.Closed:
            asyncio.get_running_loop().remove_reader(channel)
        else:
            self.hear(frame)

    async def _wait(self, exits: list[asyncio.Future[int]]) -> None:
        """Until the job's end has been told, or a process that others need is gone."""
        ended = asyncio.create_task(self._ended.wait())
        going = dict(enumerate(exits))
        try:
            while not ended.done():
                either: set[asyncio.Future[Any]] = {ended, *going.values()}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                for rank, code in [(rank, code) for rank, code in going.items() if code.done()]:
                    del going[rank]
                    if rank == 0 or code.result() != 0:
                        await asyncio.wait({ended}, timeout=LAST_WORDS_SECONDS)
                        if not ended.done():
                            told = "rank %d of job %s ended with exit code %s; the others are ended too"
                            logger.warning(told, rank, self._message.job, code.result())
                        return
        finally:
            ended.cancel()
