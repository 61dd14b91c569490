"""Fits, from the accepted request to the published dictionary: the queue, the one that runs, and its end.

A job's record is written before its request is answered, and its end after its dictionary is durable. Whatever
dies in between, the job is taken up again: from the database, by this process or another on the same store, and its
fit from the last checkpoint.
"""

import asyncio
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec
import numpy as np
import orjson

from app.checkpoints import Checkpoints
from app.data_files import DataFiles, Named
from app.errors import (
    FitAbandoned,
    InvalidFields,
    JobsUnavailable,
    KeyReused,
    StoreUnavailable,
    UnknownDictionary,
    WorkerUnavailable,
    problem_of,
)
from app.jobs import ENDED, JobLost, Jobs, Record
from app.leases import Leases
from app.one_thread import OneThread
from app.ranks import RankProcesses
from app.schemas import FitParameters, Job, Progress, State
from app.settings import Settings
from app.store import Reference, Store, owner_of, timestamp
from app.supervisor import Supervisor, error_of
from app.uploads import Staged, Uploads
from app.worker.frames import Frame
from app.worker.messages import (
    INIT_METHODS,
    CancelFit,
    CheckpointPlace,
    Failed,
    Fit,
    FitBegun,
    FitCancelled,
    FitProgress,
    FitStopped,
    Fitted,
    StopFit,
)

logger = logging.getLogger("dictserve")

MAX_WORKER_DEATHS = 2
MAX_HISTORY = 500
IDLE_SECONDS = 5.0  # between two looks for jobs that other processes have left
LOOK_SECONDS = 1.0  # between two looks for what other processes have done to jobs: queued them, ended them
RENEWALS = 6  # of a lease, in its time
RETRY_SECONDS = 1.0
CANCEL_SECONDS = 5.0
STOP_SECONDS = 10.0  # in which the fit under way ends its iteration and writes its checkpoint, at a stop
FOLLOW_SECONDS = 0.25

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class _Running:
    """The job under way, with what is newer than its record."""

    record: Record  # as it was claimed
    progress: Progress
    loss_history: list[tuple[int, float]] = field(default_factory=list)
    resumed_from: int | None = None
    seconds_before: float = 0.0  # of the attempts before this one
    seconds_kept: float = 0.0  # of those, what came into the checkpoint
    on_worker: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)  # ends the staging of files

    @property
    def job(self) -> Job:
        return self.record.job

    def begin(self, begun: FitBegun, losses: np.ndarray) -> None:
        """Take what the worker says of where the fit begins."""
        self.resumed_from, self.seconds_kept = begun.iteration or None, begun.seconds
        self.loss_history = history_of(losses)
        self.progress = Progress(
            iteration=begun.iteration,
            max_iter=self.progress.max_iter,
            loss=self.loss_history[-1][1] if self.loss_history else None,
            seconds=self.seconds_before,
        )

    def note(self, told: FitProgress) -> None:
        """Take a progress message into what is told of the job."""
        left = told.max_iter - told.iteration
        eta = (self.seconds_kept + told.seconds) / told.iteration * left if told.iteration else None
        self.progress = Progress(
            iteration=told.iteration,
            max_iter=told.max_iter,
            loss=told.loss,
            relative_error=told.relative_error,
            kkt_residual=told.kkt_residual,
            seconds=round(self.seconds_before + told.seconds, 3),
            eta_seconds=None if eta is None else round(eta, 1),
        )
        history = self.loss_history
        if told.loss is not None and (not history or history[-1][0] < told.iteration):
            self.loss_history = thinned([*history, (told.iteration, told.loss)])

    def told(self) -> dict[str, Any]:
        """What is newer than the job's record."""
        return {name: getattr(self, name) for name in ("progress", "loss_history", "resumed_from")}


class Fits:
    """Runs jobs one after another on the worker."""

    def __init__(self, settings: Settings, jobs: Jobs, leases: Leases, store: Store, supervisor: Supervisor) -> None:
        self.uploads = Uploads(store)
        self.data_files = DataFiles(settings)
        self.checkpoints = Checkpoints(store)
        self._settings = settings
        self._jobs = jobs
        self._leases = leases
        self._store = store
        self._supervisor = supervisor
        self._ranks = RankProcesses(settings)
        self._database = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._writes = OneThread("jobs-write")  # apart: one that waits for a lock holds up no reader
        self._wake = asyncio.Event()
        self._running: _Running | None = None
        self._stopping = False
        self._turn = asyncio.Event()  # set, and replaced by the next, each time a job ends
        self._is_leaving = False
        self._taken_over_at = 0.0
        self._loop: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._take_over()
        self._renewing = asyncio.create_task(self._keep_lease(), name="lease")
        if self._settings.fits:
            self._loop = asyncio.create_task(self._run(), name="fits")

    def end_waits(self) -> None:
        """Let everybody go who waits for a job or follows one: the service stops, and a job may take hours."""
        self._is_leaving = True
        self._end_turn()

    async def stop(self) -> None:
        """Leave the fit under way, with a checkpoint; its job goes back into the queue for the next start."""
        self._stopping = True
        self.end_waits()
        if self._loop is not None:
            if self._running is not None and self._running.on_worker:
                with contextlib.suppress(WorkerUnavailable):  # of one that is dead the last checkpoint is left
                    await self._runner(self._running.job).tell(StopFit(self._running.job.id))
                await asyncio.wait({self._loop}, timeout=STOP_SECONDS)
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        await self._ranks.stop()
        if self._running is not None:
            try:
                running = self._running
                await self._writes(self._jobs.requeue, running.record, worker_died=False, told=running.told())
            except (JobsUnavailable, JobLost) as error:  # the next start finds it all the same: its owner is dead
                logger.error("job %s is left as it is: %s", self._running.job.id, error)
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})
        self._database.shutdown()
        self._writes.shutdown()

    # -- what routes ask for ------------------------------------------------------------------------------

    async def submit(
        self, parameters: FitParameters, data: Staged | Named, idempotency_key: str | None = None
    ) -> Job:
        """A new job for activations; durable when this returns. A key that was used gives the job it made.

        Raises:
            InvalidFields: ``init`` names no dictionary, or one that does not suit ``nb_concepts`` or the data.
            NameTaken: the store has something else by the name.
            KeyReused: the key was used with other parameters or data.
            Overloaded: too many fits wait.
        """
        told = {name: getattr(parameters, name) for name in FitParameters.model_fields if name != "name"}
        if parameters.epochs is None:  # not of a fit that is not online, nor of requests of versions before it
            del told["epochs"]
        request = orjson.dumps([parameters.name, told, *data.identity], option=orjson.OPT_SORT_KEYS)
        request_hash = hashlib.sha256(request).hexdigest()
        if idempotency_key is not None and (earlier := await self._of_key(idempotency_key, request_hash)):
            self.uploads.discard(data.file)
            return earlier
        self._store.require_free(parameters.name)
        pinned = told | {"init": self._pinned_init(parameters, data.n_features)}
        if isinstance(data, Named):
            pinned["files"] = data.patterns
            if data.epochs is not None:
                pinned |= {"online": True, "epochs": data.epochs}
        job = await self._writes(
            self._jobs.add,
            parameters.name,
            pinned,
            data.as_record(),
            owner=owner_of(Path(data.file)),
            queue_jobs=self._settings.queue_jobs,
            idempotency_key=idempotency_key,
            request_hash=request_hash,
        )
        if job is None:  # another request with this key was a moment earlier
            return await self.submit(parameters, data, idempotency_key)
        self._wake.set()
        return job

    def _pinned_init(self, parameters: FitParameters, n_features: int) -> str:
        """``init``, a dictionary with the version that it means now."""
        if parameters.init in INIT_METHODS:
            return parameters.init
        try:
            record = self._store.record(Reference.parse(parameters.init))
        except UnknownDictionary as error:
            methods = ", ".join(INIT_METHODS)
            raise InvalidFields.at("init", msg=f"not a method ({methods}), and {error}") from None
        where = f"dictionary {record.name}@{record.version}"
        if parameters.nb_concepts != record.nb_concepts:
            told = f"{parameters.nb_concepts} concepts, but {where}, to start from, has {record.nb_concepts}"
            raise InvalidFields.at("nb_concepts", msg=told)
        if n_features != record.n_features:
            told = f"{n_features} columns, but {where}, to start from, has {record.n_features} features"
            raise InvalidFields.at("data", msg=told)
        return f"{record.name}@{record.version}"

    async def _of_key(self, idempotency_key: str, request_hash: str) -> Job | None:
        record = await self._in_thread(self._jobs.of_key, idempotency_key)
        if record is not None and record.request_hash != request_hash:
            raise KeyReused(f"job {record.job.id} was made with this Idempotency-Key and other parameters or data")
        return None if record is None else self._freshened(record.job)

    async def get(self, id: str) -> Job:
        running = self._running
        if running is not None and running.job.id == id:  # what is known here is newer than its record
            return self._freshened(running.job)
        return self._freshened((await self._in_thread(self._jobs.get, id)).job)

    async def follow(self, id: str) -> AsyncIterator[Job]:
        """The job each time that it has got on, at most every quarter of a second, until it has ended (or the
        service stops)."""
        told: Job | None = None
        while told is None or (told.state not in ENDED and not self._is_leaving):
            job = await self.get(id) if told is None else await self.wait(id, FOLLOW_SECONDS)
            if told is None or (job.state, job.progress) != (told.state, told.progress):
                yield job
            told = job

    async def wait(self, id: str, seconds: float) -> Job:
        """The job once it has ended, or as it is when the time is up or the service stops."""
        deadline = time.monotonic() + seconds
        while True:
            turn = self._turn
            job = await self.get(id)
            remaining = deadline - time.monotonic()
            if job.state in ENDED or remaining <= 0 or self._is_leaving:
                return job
            # Another process's job turns no event here: look again now and then.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(turn.wait(), min(remaining, LOOK_SECONDS))

    async def newest(
        self, limit: int, *, before: str | None = None, state: State | None = None, name: str | None = None
    ) -> list[Job]:
        records = await self._in_thread(self._jobs.newest, limit, before=before, state=state, name=name)
        return [self._freshened(record.job) for record in records]

    async def cancel(self, id: str) -> Job | None:
        """End a job that has not ended, and tell its record; remove the record of one that has (None)."""
        record = await self._in_thread(self._jobs.get, id)
        if record.job.state in ENDED:
            await self._writes(self._jobs.delete, id)
            return None
        deadline = time.monotonic() + CANCEL_SECONDS
        while record.job.state not in ENDED and time.monotonic() < deadline:
            await self._try_cancel(record)
            record = await self._in_thread(self._jobs.get, id)
        return record.job

    async def _try_cancel(self, record: Record) -> None:
        """One try at ending a job where it is now; it may move on meanwhile (be claimed, lose its worker, end)."""
        running, turn = self._running, self._turn
        if record.job.state == "queued":
            if await self._writes(self._jobs.cancel_queued, record.job.id):
                await self._in_thread(self._discard, record)
                self._end_turn()
        elif running is not None and running.job.id == record.job.id:
            await self._stop_attempt(running)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(turn.wait(), RETRY_SECONDS)
        else:  # another process sees it when it writes how far it is, or renews its lease
            await self._writes(self._jobs.request_cancel, record.job.id)
            await asyncio.sleep(0.1)

    async def _stop_attempt(self, running: _Running) -> None:
        """Have an attempt come to its end before its fit does; what it then writes holds if the job is still its."""
        running.stopped.set()
        with contextlib.suppress(WorkerUnavailable):
            await self._runner(running.job).tell(CancelFit(running.job.id))

    def _freshened(self, job: Job) -> Job:
        running = self._running
        if running is None or running.job.id != job.id or job.state != "running":
            return job
        return job.model_copy(update=running.told())

    # -- the loop -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._stopping:
            try:
                await self._supervisor.wait_ready()
                record = await self._writes(self._jobs.claim, self._store.owner)
                if record is None:
                    await self._idle()
                else:
                    await self._run_job(record)
            except (JobsUnavailable, StoreUnavailable) as error:
                logger.error("fits are held up: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # whatever it is, fits are to go on
                logger.exception("fits are held up")
                await asyncio.sleep(RETRY_SECONDS)

    async def _keep_lease(self) -> None:
        """Renew the lease, and see whether the job under way is still ours and wanted."""
        pause = self._settings.lease_seconds / RENEWALS
        while True:
            await asyncio.sleep(pause)
            pause = self._settings.lease_seconds / RENEWALS
            try:
                if not await self._writes(self._leases.renew):
                    await self._writes(self._leases.take_another)
                running = self._running
                if running is not None and not await self._in_thread(self._jobs.is_wanted, running.record):
                    await self._stop_attempt(running)
            except (JobsUnavailable, StoreUnavailable) as error:
                logger.warning("the lease cannot be renewed: %s", error)
                pause = min(pause, RETRY_SECONDS)
            except Exception:  # whatever it is, the lease is to be kept
                logger.exception("the lease cannot be renewed")

    async def _idle(self) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)
        if time.monotonic() - self._taken_over_at > IDLE_SECONDS:
            await self._take_over()

    async def _take_over(self) -> None:
        """Put the jobs of dead processes back into the queue, and sweep what nobody needs any more."""
        ours = {self._running.job.id} if self._running is not None else set[str]()

        def take_over() -> None:
            self._leases.end_dead()
            for record in self._jobs.take_over(self._store.owner, ours):
                if record.job.state in ENDED:
                    self._discard(record)
                else:
                    kept = "with" if self.checkpoints.exists(record.job.id) else "without"
                    told = "job %s was left by a process that is gone, %s a checkpoint; it is taken up again"
                    logger.warning(told, record.job.id, kept)
            self.uploads.sweep(self._leases.alive, self._jobs.data_files)
            self.checkpoints.sweep(self._leases.alive, self._jobs.unended)
            oldest = datetime.now(UTC) - timedelta(days=self._settings.job_retention_days)
            self._jobs.forget_ended(timestamp(oldest))

        await self._writes(take_over)
        self._taken_over_at = time.monotonic()

    async def _run_job(self, record: Record) -> None:
        job = record.job
        # until the worker says where it begins, it is where it was
        self._running = _Running(
            record,
            job.progress.model_copy(update={"eta_seconds": None}),
            job.loss_history,
            job.resumed_from,
            seconds_before=job.progress.seconds,
        )
        try:
            await self._attempt(record, self._running)
        except JobLost as error:
            await self._lose(record, error)
        except Exception as error:  # whatever it is, the next job is to be run
            try:
                await self._end(record, self._jobs.fail, _problem(error))
            except JobLost as lost:
                await self._lose(record, lost)
        finally:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # else `stop` puts the job back
                self._running = None
                self._end_turn()

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    async def _attempt(self, record: Record, running: _Running) -> None:
        job = record.job
        published = await self._in_thread(self._store.made_by, job.name, job.id)
        if published is not None:  # an earlier attempt came that far
            await self._end(record, self._jobs.succeed, published.version)
            return
        if record.worker_deaths >= MAX_WORKER_DEATHS:
            raise FitAbandoned(f"the worker died {record.worker_deaths} times on this fit; it is not tried again")
        if "sha256" not in record.data and record.data.get("epochs") is None:
            staged = await self._stage_files(Named.of_record(record.data), running)
            if staged is None:
                await self._end(record, self._jobs.end_cancelled)
                return
            record = replace(record, data=record.data | staged.as_record())
            await self._surely(self._jobs.record_data, record, record.data)  # another attempt finds them staged
        await self._in_thread(self.checkpoints.adopt, job.id)
        events: asyncio.Queue[Frame | None] = asyncio.Queue()
        try:
            if (ranks := _ranks_of(job)) > 1:
                await self._ranks.tell_job(job.id, self._fit_message(record), events.put_nowait, ranks)
            else:
                await self._supervisor.tell_job(job.id, self._fit_message(record), events.put_nowait)
            running.on_worker = True
        except WorkerUnavailable:
            await self._requeue(running, worker_died=False)
            return
        next_writing = asyncio.get_running_loop().time() + self._settings.progress_interval_seconds
        while True:
            frame = await events.get()
            if frame is None:
                await self._requeue(running, worker_died=True)
                return
            match frame.message:
                case FitBegun() as begun:
                    running.begin(begun, frame.arrays[0])
                    if job.attempts > 1:
                        await self._write_progress(running)
                case FitProgress() as told:
                    running.note(told)
                    if asyncio.get_running_loop().time() >= next_writing:
                        await self._write_progress(running)
                        # From now on: a slow database is not to be asked ever more often.
                        next_writing = asyncio.get_running_loop().time() + self._settings.progress_interval_seconds
                case Fitted(_, seconds):
                    D, metrics, losses = frame.arrays
                    running.loss_history = history_of(losses)
                    await self._publish(record, running, D, orjson.loads(metrics.tobytes()), seconds)
                    return
                case FitStopped():
                    await self._requeue(running, worker_died=False)
                    return
                case FitCancelled():
                    await self._end(record, self._jobs.end_cancelled)
                    return
                case Failed() as failed:
                    await self._end(record, self._jobs.fail, _problem(error_of(failed)))
                    return

    async def _stage_files(self, named: Named, running: _Running) -> Staged | None:
        """The rows of files in one file of the store, as an upload would be; None where the job was cancelled."""
        stopped = running.stopped
        blocks = self.data_files.blocks(named)
        try:
            return await asyncio.to_thread(
                self.uploads.stage_blocks, named.file, named.rows, named.n_features, blocks, stopped.is_set
            )
        except asyncio.CancelledError:  # the service stops, and does not wait for a thread's whole work
            stopped.set()
            raise

    async def _publish(
        self, record: Record, running: _Running, D: np.ndarray, metrics: dict[str, Any], seconds: float
    ) -> None:
        job = record.job
        told = ("rows", "n_features", "sha256")  # the last of staged activations alone
        data: dict[str, Any] = {key: record.data[key] for key in told if key in record.data}
        if "files" in record.data:
            data["files"] = [{"name": told["name"], "rows": told["rows"]} for told in record.data["files"]]

        def publish() -> int:
            return self._store.publish(
                job.name,
                D,
                parameters=job.parameters,
                data=data,
                metrics=metrics,
                loss_history=running.loss_history,
                seconds=running.seconds_before + seconds,
                software=self._supervisor.software,
                job=job.id,
            ).version

        if not await self._surely_read(self._jobs.is_wanted, record):
            await self._end(record, self._jobs.end_cancelled)
            return
        publishing = asyncio.create_task(asyncio.to_thread(publish))
        try:
            version = await asyncio.shield(publishing)
        except asyncio.CancelledError:  # the service stops: who takes the job up next must find its dictionary
            await asyncio.wait({publishing})
            raise
        await self._surely(self._jobs.record_progress, record, **running.told())
        await self._end(record, self._jobs.succeed, version)
        logger.info("job %s has fitted %s@%d in %.1f s", job.id, job.name, version, seconds)

    async def _end(self, record: Record, write: Callable[..., object], *outcome: Any) -> None:
        """Write how a job ended; its data and its checkpoint are not needed any more."""
        await self._surely(write, record, *outcome)
        await self._in_thread(self._discard, record)

    async def _lose(self, record: Record, error: JobLost) -> None:
        """Leave a job to whoever has taken it up; what is left of one that has ended nobody else may know of."""
        logger.warning("%s: it is left alone", error)
        if record.job.id not in await self._surely_read(self._jobs.unended):
            await self._in_thread(self._discard, record)

    def _discard(self, record: Record) -> None:
        self.uploads.discard(record.data["file"])
        self.checkpoints.discard(record.job.id)

    async def _requeue(self, running: _Running, *, worker_died: bool) -> None:
        record = await self._surely(self._jobs.requeue, running.record, worker_died=worker_died, told=running.told())
        if record.job.state in ENDED:
            await self._in_thread(self._discard, record)

    async def _write_progress(self, running: _Running) -> None:
        """A fit goes on though its progress cannot be written: the next time writes it all."""
        try:
            if not await self._writes(self._jobs.record_progress, running.record, **running.told()):
                await self._stop_attempt(running)
        except JobLost:
            await self._stop_attempt(running)
        except JobsUnavailable as error:
            logger.warning("the progress of job %s cannot be written: %s", running.job.id, error)

    def _runner(self, job: Job) -> Supervisor | RankProcesses:
        """Where the job runs."""
        return self._ranks if _ranks_of(job) > 1 else self._supervisor

    def _fit_message(self, record: Record) -> Fit:
        data = record.data
        elsewhere = ("files", "online", "epochs", "ranks")
        parameters = {name: value for name, value in record.job.parameters.items() if name not in elsewhere}
        if parameters["init"] not in INIT_METHODS:
            parameters |= {"init": "auto", "start": parameters["init"]}
        online = data.get("epochs") is not None
        return Fit(
            job=record.job.id,
            path="" if online else str(self.uploads.path(data["file"]).absolute()),
            data_offset=0 if online else data["data_offset"],
            rows=data["rows"],
            n_features=data["n_features"],
            data_sha256=data.get("sha256", ""),
            checkpoint=self._checkpoint_place(record.job.id),
            online=self.data_files.in_place(Named.of_record(data)) if online else None,
            **parameters,
        )

    def _checkpoint_place(self, job: str) -> CheckpointPlace | None:
        interval = self._settings.checkpoint_interval_seconds
        if interval == 0:
            return None
        path, staged = self.checkpoints.path(job).absolute(), self.checkpoints.staged(job).absolute()
        return CheckpointPlace(str(path), str(staged), interval)

    async def _surely(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write, again and again while the database cannot be used: the end of a fit is not to be lost."""
        while True:
            try:
                return await self._writes(write, *args, **kwargs)
            except JobsUnavailable as error:
                logger.error("a job's record cannot be written: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _surely_read(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return await self._in_thread(read, *args, **kwargs)
            except JobsUnavailable as error:
                logger.error("a job's record cannot be read: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._database, lambda: call(*args, **kwargs))


def _ranks_of(job: Job) -> int:
    """How many processes share out its rows; jobs of earlier versions do not say."""
    ranks: int = job.parameters.get("ranks", 1)
    return ranks


def history_of(losses: np.ndarray) -> list[tuple[int, float]]:
    """The loss after each iteration, as a job's record has it."""
    return thinned(list(enumerate(losses.tolist(), start=1)))


def thinned(history: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Every second point, once there are too many; the first and the last always stay."""
    while len(history) > MAX_HISTORY:
        history = [*history[:-1:2], history[-1]]
    return history


def _problem(error: Exception) -> dict[str, Any]:
    problem: dict[str, Any] = msgspec.to_builtins(problem_of(error).problem)
    return problem
