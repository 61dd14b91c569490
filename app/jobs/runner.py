"""Runs one claimed job until it ends or goes back into the queue. Of the runners that share a worker, one at a time
has its turn."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from app.errors import (
    DataUnavailable,
    FitAbandoned,
    JobsUnavailable,
    StoreAway,
    StoreUnavailable,
    WorkerUnavailable,
    error_by_name,
)
from app.jobs.attempt import Attempt, history_of
from app.jobs.data_files import NamedFiles
from app.jobs.database_threads import RETRY_SECONDS
from app.jobs.fit_message import fit_message
from app.jobs.jobs import ENDED, JobLost, Record
from app.jobs.ranks import RankProcesses
from app.jobs.resources import Resources
from app.jobs.retrying import AWAY_SECONDS, Cancelled, Patience, reach
from app.outage import Outage
from app.problems import problem_of
from app.schemas import AnyJob, Job, State
from app.store.references import Reference
from app.store.uploads import Staged
from app.supervisor import Supervisor
from app.worker.frames import Frame
from app.worker.messages import (
    INIT_METHODS,
    CancelFit,
    Failed,
    FitBegun,
    FitCancelled,
    FitProgress,
    FitStopped,
    Fitted,
    StopFit,
)

logger = logging.getLogger("dictserve")

MAX_WORKER_DEATHS = 2
MAX_SERVICE_DEATHS = 10  # with no checkpoint further: others kill services too, so that one death proves little


class Runner:
    """Runs jobs on one worker, one after another; a job over several ranks runs on these, in its stead.

    Attributes:
        is_in: whether it is this runner's turn, of those of its worker. One that waits for files steps aside.
    """

    def __init__(
        self,
        worker: Supervisor,
        turn: asyncio.Lock,
        resources: Resources,
        ranks: RankProcesses,
        may_step_aside: Callable[["Runner"], bool],
    ) -> None:
        self.is_in = False
        self.worker = worker
        self._turn = turn
        self._resources = resources
        self._jobs = resources.jobs
        self._database = resources.database
        self._store = resources.store
        self._uploads = resources.uploads
        self._checkpoints = resources.checkpoints
        self._threads = resources.threads
        self._ranks = ranks
        self._may_step_aside = may_step_aside
        self._interval_seconds = resources.settings.progress_interval_seconds
        self._attempt: Attempt | None = None
        self._unwritten = Outage("the progress of a fit cannot be written", logging.WARNING)

    async def step_in(self) -> None:
        """Wait for this runner's turn. Raises Cancelled where the job is to end meanwhile."""
        while not self.is_in:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    self.is_in = await self._turn.acquire()
            if self._attempt is not None and self._attempt.stopped.is_set():
                raise Cancelled

    def step_aside(self) -> None:
        """Let another have its turn."""
        if self.is_in:
            self.is_in = False
            self._turn.release()

    @property
    def is_aside(self) -> bool:
        """Whether its job waits, for files or for its turn, while others have the worker."""
        return self._attempt is not None and not self.is_in

    @property
    def job(self) -> Job | None:
        """The job under way, as it was when it was claimed."""
        return None if self._attempt is None else self._attempt.job

    def freshened(self, job: AnyJob) -> AnyJob:
        """The record of the job under way, with what its worker has told since."""
        if self._attempt is None or job.state != "running":
            return job
        newer = self._attempt.newer_fields()
        return job.model_copy(update={name: newer[name] for name in newer.keys() & type(job).model_fields})

    def take(self, record: Record) -> None:
        """Begin with a job that was claimed for this; `run` is to follow."""
        self._attempt = Attempt.of(record)

    async def run(self) -> None:
        """Run the job that was taken. Where this is cancelled, `abandon` puts the job back."""
        assert self._attempt is not None  # noqa: S101 - it was taken
        attempt = self._attempt
        try:
            try:
                await self._prepare_and_fit(attempt)
            except JobLost:
                raise
            except Cancelled:
                await self._end(attempt, "cancelled", self._jobs.end_cancelled)
            except Exception as error:  # whatever it is, the next job is to be run
                await self._fail(attempt, error)
        except JobLost as error:
            await self._lose(attempt, error)
        finally:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self._attempt = None

    def cancel(self) -> None:
        """Have the job under way end soon, wherever it is."""
        if self._attempt is not None:
            self._stop_attempt(self._attempt)

    async def cancel_unwanted(self) -> None:
        """Cancel where the job is another's meanwhile, or is to be cancelled."""
        attempt = self._attempt
        if attempt is not None and not await self._database.read(self._jobs.is_wanted, attempt.record):
            self._stop_attempt(attempt)

    def leave(self) -> bool:
        """Have the fit under way end its iteration and write its checkpoint; whether one is."""
        if self._attempt is None or not self._attempt.on_worker:
            return False
        with contextlib.suppress(WorkerUnavailable):  # of one that is dead the last checkpoint is left
            self._place(self._attempt.job).tell(StopFit(self._attempt.job.id))
        return True

    async def abandon(self) -> None:
        """Put the job back into the queue whose run was cancelled. Raises JobsUnavailable where that cannot be."""
        if self._attempt is not None:
            attempt = self._attempt
            try:
                await self._database.write(
                    self._jobs.requeue, attempt.record, worker_died=False, newer=attempt.newer_fields()
                )
            except JobLost as error:
                logger.warning("%s: it is left alone", error)

    def _stop_attempt(self, attempt: Attempt) -> None:
        """Have an attempt come to its end before its fit does; what it then writes holds if the job is still its."""
        attempt.stopped.set()
        with contextlib.suppress(WorkerUnavailable):
            self._place(attempt.job).tell(CancelFit(attempt.job.id))

    async def _prepare_and_fit(self, attempt: Attempt) -> None:
        patience = Patience("its files", attempt.stopped)
        try:
            if not await self._prepare(attempt, patience):
                return
        except StoreAway:
            if self._store.bucket is None:
                raise
            await self._requeue(attempt, worker_died=False)  # others may reach it, and here none begins meanwhile
            return
        while (away := await self._fit(attempt, patience)) is not None:
            attempt.on_worker, attempt.seconds_before = False, attempt.progress.seconds
            await self._wait_aside(patience, away)

    async def _prepare(self, attempt: Attempt, patience: Patience) -> bool:
        """Have what the fit needs here; False where an earlier attempt has published its dictionary."""
        record, job = attempt.record, attempt.job
        store = Patience("the store", attempt.stopped, None if self._store.bucket is None else AWAY_SECONDS)
        published = await reach(self._threads, store, self._store.made_by, job.name, job.id)
        if published is not None:  # an earlier attempt came that far
            await self._end(attempt, "succeeded", self._jobs.succeed, published.version)
            return False
        if record.worker_deaths >= MAX_WORKER_DEATHS:
            raise FitAbandoned(f"the worker died {record.worker_deaths} times on this fit; it is not tried again")
        if record.service_deaths >= MAX_SERVICE_DEATHS:
            raise FitAbandoned(
                f"the service died {record.service_deaths} times on this fit, which came no further in between; "
                "it is not tried again: is there memory enough for it?"
            )
        if "sha256" not in record.data and record.data.get("epochs") is None:
            staged = await self._stage_files(NamedFiles.of_record(record.data), attempt, patience)
            attempt.record = record = replace(record, data=record.data | staged.as_record())
            # another attempt finds them staged
            await self._database.surely(self._jobs.record_data, record, record.data)
        if "sha256" in record.data:
            await reach(self._threads, store, self._uploads.fetch, record.data)
        try:
            attempt.objects_before = await reach(self._threads, store, self._checkpoints.adopt, job.id)
        except StoreAway:
            raise
        except StoreUnavailable as error:  # the fit may do without, and by its end the store may be there
            logger.warning("job %s begins without what others may have of it: %s", job.id, error)
        if job.parameters["init"] not in INIT_METHODS:  # the worker is not to wait for a network
            await reach(self._threads, store, self._store.find_and_fetch, Reference.parse(job.parameters["init"]))
        return True

    async def _fit(self, attempt: Attempt, patience: Patience) -> DataUnavailable | None:
        """Have the fit run until it has come to an end, or its files cannot be read for now: then it goes on, from
        its last checkpoint, when this is called again."""
        job = attempt.job
        await self.step_in()
        events: asyncio.Queue[Frame | None] = asyncio.Queue()
        try:
            if (ranks := _ranks_of(job)) > 1:
                self._ranks.tell_job(job.id, fit_message(self._resources, attempt), events.put_nowait, ranks)
            else:
                self.worker.tell_job(job.id, fit_message(self._resources, attempt), events.put_nowait)
            attempt.on_worker = True
        except WorkerUnavailable:
            await self._requeue(attempt, worker_died=False)
            return None
        next_writing = time.monotonic() + self._interval_seconds
        while True:
            frame = await events.get()
            if frame is None:
                await self._requeue(attempt, worker_died=True)
                return None
            match frame.message:
                case FitBegun() as begun:
                    attempt.begin(begun, frame.arrays[0])
                    if job.attempts > 1:
                        await self._write_progress(attempt)
                case FitProgress() as progress:
                    if progress.iteration > attempt.held_up_at:
                        patience.reset()
                    attempt.note(progress)
                    if time.monotonic() >= next_writing:
                        await self._write_progress(attempt)
                        # From now on: a slow database is not to be asked ever more often.
                        next_writing = time.monotonic() + self._interval_seconds
                case Fitted(_, seconds):
                    attempt.loss_history = history_of(frame.arrays[2])
                    await self._publish(attempt, frame.arrays, seconds)
                    return None
                case FitStopped():
                    await self._requeue(attempt, worker_died=False)
                    return None
                case FitCancelled():
                    await self._tell_last(attempt)
                    raise Cancelled
                case Failed() as failed:
                    if isinstance(error := error_by_name(failed.error, failed.detail), DataUnavailable):
                        attempt.held_up_at = max(attempt.held_up_at, attempt.progress.iteration)
                        return error
                    await self._fail(attempt, error)
                    return None

    async def _stage_files(self, named: NamedFiles, attempt: Attempt, patience: Patience) -> Staged:
        """The rows of files in one file of the store, as an upload would be; Cancelled where the job is to end."""
        stopped, read, furthest = attempt.stopped, 0, 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal read
            read = 0
            for block in self._resources.data_files.blocks(named):
                read += 1
                yield block

        def stage() -> Staged | None:
            return self._uploads.stage_blocks(named.file, named.rows, named.n_features, counted(), stopped.is_set)

        while not stopped.is_set():
            try:
                if (staged := await self._threads(stage)) is not None:
                    return staged
            except asyncio.CancelledError:  # the service stops, and does not wait for a thread's whole work
                stopped.set()
                raise
            except (DataUnavailable, StoreUnavailable) as error:
                if read > furthest:  # they were there in between
                    furthest = read
                    patience.reset()
                await self._wait_aside(patience, error)
        raise Cancelled

    async def _wait_aside(self, patience: Patience, error: DataUnavailable | StoreUnavailable) -> None:
        """Wait for what is away while others have the worker."""
        if self._may_step_aside(self):
            self.step_aside()
        await patience.wait(error)

    async def _publish(self, attempt: Attempt, fitted: Sequence[np.ndarray], seconds: float) -> None:
        D, metrics, _, figures = fitted
        record, job = attempt.record, attempt.job
        kept = ("rows", "n_features", "sha256")  # the last of staged activations alone
        data: dict[str, Any] = {key: record.data[key] for key in kept if key in record.data}
        if "files" in record.data:
            data["files"] = [{"name": file["name"], "rows": file["rows"]} for file in record.data["files"]]

        def require_ours() -> None:
            """Of an object store nobody has the lock: who was held up in here may have been taken for dead since."""
            if self._store.bucket is None:
                return
            with contextlib.suppress(JobsUnavailable):
                if not self._jobs.is_wanted(record):
                    raise JobLost(f"job {job.id} is not attempt {job.attempts}'s any more; nothing was published")

        def publish() -> int:
            return self._store.publish(
                job.name,
                D,
                figures.tobytes(),
                parameters=job.parameters,
                data=data,
                metrics=orjson.loads(metrics.tobytes()),
                loss_history=attempt.loss_history,
                seconds=attempt.seconds_before + seconds,
                software=self.worker.software,
                job=job.id,
                require=require_ours,
            ).version

        if not await self._database.surely(self._jobs.begin_publishing, record):
            raise Cancelled
        version = await reach(self._threads, Patience("the store"), publish)  # which no cancel ends any more
        await self._tell_last(attempt)
        await self._end(attempt, "succeeded", self._jobs.succeed, version)
        logger.info("job %s has fitted %s@%d in %.1f s", job.id, job.name, version, seconds)

    async def _tell_last(self, attempt: Attempt) -> None:
        """Write how far a fit has come that comes no further."""
        attempt.progress = attempt.progress.model_copy(update={"eta_seconds": None})
        await self._database.surely(self._jobs.record_progress, attempt.record, **attempt.newer_fields())

    async def _end(self, attempt: Attempt, state: State, write: Callable[..., object], *outcome: Any) -> None:
        """Write how a job ended; its data and its checkpoint are not needed any more."""
        await self._database.surely(write, attempt.record, *outcome)
        await self._resources.end(attempt.record, state)

    async def _fail(self, attempt: Attempt, error: Exception) -> None:
        problem = problem_of(error)
        await self._tell_last(attempt)
        await self._end(attempt, "failed", self._jobs.fail, problem)
        logger.warning("job %s of %s has failed: %s", attempt.job.id, attempt.job.name, problem.detail)

    async def _lose(self, attempt: Attempt, error: JobLost) -> None:
        """Leave a job to whoever has taken it up; what is left of one that has ended nobody else may know of."""
        logger.warning("%s: it is left alone", error)
        if attempt.job.id not in await self._database.surely(self._jobs.unended):
            await self._threads(self._resources.discard, attempt.record)

    async def _requeue(self, attempt: Attempt, *, worker_died: bool) -> None:
        record = await self._database.surely(
            self._jobs.requeue, attempt.record, worker_died=worker_died, newer=attempt.newer_fields()
        )
        if record.job.state in ENDED:
            await self._resources.end(record, record.job.state)

    async def _write_progress(self, attempt: Attempt) -> None:
        """A fit goes on though its progress cannot be written: the next time writes it all."""
        try:
            if not await self._database.write(self._jobs.record_progress, attempt.record, **attempt.newer_fields()):
                self._stop_attempt(attempt)
            self._unwritten.end()
        except JobLost:
            self._stop_attempt(attempt)
        except JobsUnavailable as error:
            self._unwritten.note(error)

    def _place(self, job: Job) -> Supervisor | RankProcesses:
        """Where the job runs."""
        return self._ranks if _ranks_of(job) > 1 else self.worker


def _ranks_of(job: Job) -> int:
    """How many processes share out its rows; jobs of earlier versions do not say."""
    ranks: int = job.parameters.get("ranks", 1)
    return ranks
