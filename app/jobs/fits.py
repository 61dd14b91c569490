"""Fits, from the accepted request to the published dictionary: the queue, and a loop for each worker to serve it.

A job's record is written before its request is answered, and its end after its dictionary is durable. Whatever
dies in between, the job is taken up again: from the database, by this process or another on the same store, and its
fit from the last checkpoint.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from app.errors import InvalidFields, JobsAway, JobsUnavailable, KeyReused, UnknownDictionary, UnknownJob
from app.jobs.data_files import DataFiles, NamedFiles, identity_of
from app.jobs.database_threads import RETRY_SECONDS, DatabaseThreads
from app.jobs.jobs import ENDED, Jobs, Record
from app.jobs.leases import Leases
from app.jobs.ranks import RankProcesses
from app.jobs.runner import Runner
from app.outage import Outage
from app.schemas import AnyJob, FitParameters, FitRequest, Job, ListedJob, State
from app.settings import Settings
from app.store.checkpoints import Checkpoints
from app.store.references import Reference
from app.store.shared_files import SharedFiles
from app.store.store import Store
from app.store.uploads import Staged, Uploads
from app.store.workplace import owner_of
from app.supervisor import Supervisor
from app.threads import Threads
from app.worker.messages import INIT_METHODS
from app.workers import Workers

logger = logging.getLogger("dictserve")

TAKEOVER_SECONDS = 5.0  # between two looks for what other processes have left
LOOKERS = 8  # up to so many processes look that often; of more, each looks less often
SELDOM = 6  # times less often at most: where many die together, those that are left should still notice soon
LOOK_SECONDS = 1.0  # between two looks for what other processes have done to jobs: queued them, ended them
RENEWALS = 6  # of a lease, in its time
CANCEL_SECONDS = 5.0
STOP_SECONDS = 10.0  # in which the fit under way ends its iteration and writes its checkpoint, at a stop
FOLLOW_SECONDS = 0.25
MAX_ASIDE = 3  # fits of a worker that wait for their files while others go on; each may take a thread for good


class Fits:
    """Runs jobs on the workers: on each, one after another."""

    def __init__(self, settings: Settings, jobs: Jobs, leases: Leases, store: Store, workers: Workers) -> None:
        self.uploads = Uploads(store.workplace, self._shared(settings, store, "uploads"))
        self.data_files = DataFiles(settings)
        self.threads = Threads("jobs")  # their own: others' calls may wait for a slow network
        self.checkpoints = Checkpoints(store.workplace, self._shared(settings, store, "checkpoints"))
        self._settings = settings
        # Or where nobody else could: such a fit, of a time when there was a data directory, would wait for good.
        self._reads_files = settings.data_dir is not None or settings.database_url is None
        self._jobs = jobs
        self._leases = leases
        self._store = store
        self._database = DatabaseThreads()
        self._workers = workers
        self._ranks = RankProcesses(settings, workers)
        self._loops: dict[Runner, asyncio.Task[None]] = {}
        self._turns: defaultdict[Supervisor, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ended: Counter[State] = Counter()
        self._claiming = asyncio.Lock()  # held from a claim until the job is known to run here
        self._alive: set[str] | None = None  # who was, when what the dead had staged was last swept
        self._wake = asyncio.Event()
        self._stopping = False
        self._unrenewed = Outage("the lease cannot be renewed", logging.WARNING)
        self._turn = asyncio.Event()  # set, and replaced by the next, each time a job ends
        self._leave = asyncio.Event()  # set: who waits is to go; replaced where later comers may wait
        self._keeping: set[asyncio.Task[None]] = set()
        self._doubtful: set[str] = set()  # files of requests that failed, of which there may be jobs

    @staticmethod
    def _shared(settings: Settings, store: Store, kind: str) -> SharedFiles | None:
        """Files that others can have who share the jobs: those in an SQLite file of this store nobody else has."""
        if store.bucket is None or settings.database_url is None:
            return None
        return SharedFiles(store.bucket, kind)

    async def start(self) -> None:
        await self._take_over()
        self._keeping = {
            asyncio.create_task(self._keep_lease(), name="lease"),
            asyncio.create_task(self._keep_taking_over(), name="takeover"),
        }
        if self._settings.fits:
            self._workers.each(self._begin)

    def end_waits(self) -> None:
        """Let everybody go who waits for a job or follows one: the service stops, and a job may take hours."""
        self._leave.set()
        self._end_turn()

    def let_go(self) -> None:
        """Let everybody go who waits now. Who comes later waits: whether the service stops is not known."""
        self.end_waits()
        self._leave = asyncio.Event()

    async def stop(self) -> None:
        """Leave the fits under way, with a checkpoint; their jobs go back into the queue for the next start."""
        self._stopping = True
        self.end_waits()
        leaving = {loop for runner, loop in list(self._loops.items()) if runner.leave()}
        if leaving:
            await asyncio.wait(leaving, timeout=STOP_SECONDS)
        for loop in self._loops.values():
            loop.cancel()
        await asyncio.gather(*self._loops.values(), return_exceptions=True)
        await self._ranks.stop()
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await self._put_back()
        self._database.shutdown()
        for threads in (self.threads, self.uploads.threads, self.data_files.threads):
            threads.shutdown()

    async def _put_back(self) -> None:
        """The jobs under way, and then the lease, as long as the database takes them: where it is locked, each would
        be waited for. Others see by this process's lock, or in time, that it is gone, and take up what is left."""
        try:
            for runner in list(self._loops):
                await runner.abandon()
            await self._database.write(self._leases.give_back)
        except JobsUnavailable as error:
            logger.error("jobs and the lease of this process are left as they are: %s", error)

    @property
    def can_write(self) -> bool:
        """Whether the jobs' database could be written when the lease was last renewed, which is all the time."""
        return bool(self._keeping) and not self._unrenewed.lasts

    def ended(self) -> dict[State, int]:
        """Jobs that have come to their end here, by their state then."""
        return {state: self._ended[state] for state in ENDED}

    # -- what routes ask for ------------------------------------------------------------------------------

    async def require_room(self, idempotency_key: str | None) -> None:
        """Raises Overloaded where `submit` would do so now, before anything has come of the data."""
        await self._database.read(self._jobs.require_room, self._settings.queue_jobs, idempotency_key)

    async def of_files(self, parameters: FitRequest, idempotency_key: str | None) -> Job | None:
        """The job that a request for files has made, where this is one, with its key, that comes again. Asked before
        they are looked for: they may be gone, or the data directory away.

        Raises:
            KeyReused: the key was used with other parameters or data.
        """
        if parameters.files is None or idempotency_key is None:
            return None
        identity = identity_of(parameters.files, parameters.clip)
        return await self._of_key(idempotency_key, _request_hash(parameters, identity))

    async def submit(
        self, parameters: FitRequest, data: Staged | NamedFiles, idempotency_key: str | None = None
    ) -> Job:
        """A new job for activations; durable when this returns. A key that was used gives the job it made.

        From now on the data is the job's: where there is none, whatever becomes of this, it is removed.

        Raises:
            InvalidFields: ``init`` names no dictionary, or one that does not suit ``nb_concepts`` or the data.
            NameTaken: the store has something else by the name.
            KeyReused: the key was used with other parameters or data.
            Overloaded: too many fits wait.
            JobsUnavailable: the database cannot be used; the job may be on record all the same.
        """
        try:
            return await self._submit(parameters, data, idempotency_key)
        except BaseException as error:
            self._doubtful.add(data.file)
            if isinstance(error, Exception):  # else the record may be being written still: see `_keep_taking_over`
                await self._settle_doubts()
            raise

    async def _submit(self, parameters: FitRequest, data: Staged | NamedFiles, idempotency_key: str | None) -> Job:
        request_hash = _request_hash(parameters, data.identity)
        if idempotency_key is not None and (earlier := await self._of_key(idempotency_key, request_hash)):
            await self.uploads.threads(self.uploads.discard, data.file)
            return earlier
        await self.threads(self._store.require_free, parameters.name)  # which may read many records
        pinned = _fit_parameters(parameters) | {
            "init": await self.threads(self._pinned_init, parameters, data.n_features)
        }
        pinned["clip"] = parameters.clip
        if isinstance(data, NamedFiles):
            pinned["files"] = data.patterns
            if data.epochs is not None:
                pinned |= {"online": True, "epochs": data.epochs}
        job = await self._database.write(
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
            return await self._submit(parameters, data, idempotency_key)
        self.uploads.note_on_record(data.file)
        self._wake.set()
        return job

    async def _settle_doubts(self) -> None:
        """Remove the data of requests that failed, unless a job is on record: a transaction may have ended well, and
        only the answer to its COMMIT been lost. Where the database does not say, that is tried again later.

        To be called when what was to be written of them has been, or never will."""
        doubtful = set(self._doubtful)
        if not doubtful:
            return
        try:
            needed = await self._database.read(self._jobs.surely_data_files)
        except JobsUnavailable as error:
            logger.warning("activations stay until it is known whether a job needs them: %s", error)
            return
        for file in doubtful - needed:
            await self.uploads.threads(self.uploads.discard, file)
        self._doubtful -= doubtful

    def _pinned_init(self, parameters: FitParameters, n_features: int) -> str:
        """``init``, a dictionary with the version that it means now."""
        if parameters.init in INIT_METHODS:
            return parameters.init
        try:
            record = self._store.record(Reference.parse(parameters.init))
        except UnknownDictionary as error:
            methods = ", ".join(INIT_METHODS)
            raise InvalidFields.at("init", msg=f"not a method ({methods}), and {error}") from None
        where = f"dictionary {record.reference}"
        if parameters.nb_concepts != record.nb_concepts:
            told = f"{parameters.nb_concepts} concepts, but {where}, to start from, has {record.nb_concepts}"
            raise InvalidFields.at("nb_concepts", msg=told)
        if n_features != record.n_features:
            told = f"{n_features} columns, but {where}, to start from, has {record.n_features} features"
            raise InvalidFields.at("data", msg=told)
        return str(record.reference)

    async def _of_key(self, idempotency_key: str, request_hash: str) -> Job | None:
        record = await self._database.read(self._jobs.of_key, idempotency_key)
        if record is not None and record.request_hash != request_hash:
            raise KeyReused(f"job {record.job.id} was made with this Idempotency-Key and other parameters or data")
        return None if record is None else self._freshened(record.job)

    async def get(self, id: str) -> Job:
        runner = self._runner_of(id)
        if runner is not None and runner.job is not None:  # what is known here is newer than its record
            return runner.freshened(runner.job)
        return self._freshened((await self._database.read(self._jobs.get, id)).job)

    async def follow(self, job: Job) -> AsyncIterator[Job]:
        """The job, and again each time that it has got on, at most every quarter of a second, until it has ended (or
        the service stops, or somebody removes its record)."""
        leave = self._leave
        yield job
        with contextlib.suppress(UnknownJob):
            while job.state not in ENDED and not leave.is_set():
                told = job
                try:
                    job = await self._waited(job.id, FOLLOW_SECONDS)
                except JobsAway:  # what was told stands until it is back
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(leave.wait(), RETRY_SECONDS)
                if (job.state, job.progress) != (told.state, told.progress):
                    yield job

    async def wait(self, job: Job, seconds: float) -> Job:
        """The job once it has ended, or as it is when the time is up or the service stops; as it was where somebody
        has removed its record meanwhile."""
        try:
            return await self._waited(job.id, seconds)
        except UnknownJob:
            return job

    async def _waited(self, id: str, seconds: float) -> Job:
        deadline, leave = time.monotonic() + seconds, self._leave
        while True:
            turn, remaining = self._turn, deadline - time.monotonic()
            try:
                job = await self.get(id)
            except JobsAway:  # for a moment, it may be
                if remaining <= 0 or leave.is_set():
                    raise
            else:
                if job.state in ENDED or remaining <= 0 or leave.is_set():
                    return job
            # Another process's job turns no event here: look again now and then.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(turn.wait(), min(remaining, LOOK_SECONDS))

    async def newest(
        self, limit: int, *, before: str | None = None, state: State | None = None, name: str | None = None
    ) -> list[ListedJob]:
        jobs = await self._database.read(self._jobs.newest, limit, before=before, state=state, name=name)
        return [self._freshened(job) for job in jobs]

    async def cancel_or_remove(self, id: str) -> Job | None:
        """End a job that has not ended, and tell its record; remove the record of one that has (None)."""
        if await self._database.read(self._jobs.state, id) in ENDED:
            await self._database.write(self._jobs.delete, id)
            return None
        return await self.cancel(id)

    async def cancel(self, id: str) -> Job:
        """End a job, and tell its record; one that has ended stays as it is."""
        return await self._cancelled(await self._database.read(self._jobs.get, id))

    async def _cancelled(self, record: Record) -> Job:
        deadline = time.monotonic() + CANCEL_SECONDS
        while record.job.state not in ENDED and time.monotonic() < deadline:
            await self._try_cancel(record)
            record = await self._database.read(self._jobs.get, record.job.id)
        return record.job

    async def _try_cancel(self, record: Record) -> None:
        """One try at ending a job where it is now; it may move on meanwhile (be claimed, lose its worker, end)."""
        id, turn, runner = record.job.id, self._turn, self._runner_of(record.job.id)
        if record.job.state == "queued":
            if await self._database.write(self._jobs.cancel_queued, id):
                self._end_turn()
                await self.threads(self._discard, record)
                return
        # whoever runs it sees this when it writes how far it is, renews its lease, or would publish
        elif await self._database.write(self._jobs.request_cancel, id) and runner is not None:
            runner.cancel()  # at once
        with contextlib.suppress(TimeoutError):  # a turn of another process is none here
            await asyncio.wait_for(turn.wait(), 0.1 if runner is None else RETRY_SECONDS)

    def _runner_of(self, id: str) -> Runner | None:
        return next((runner for runner in self._loops if runner.job is not None and runner.job.id == id), None)

    def _freshened(self, job: AnyJob) -> AnyJob:
        runner = self._runner_of(job.id)
        return job if runner is None else runner.freshened(job)

    # -- the loops ----------------------------------------------------------------------------------------

    def _begin(self, worker: Supervisor) -> None:
        runner = Runner(
            worker,
            self._turns[worker],
            may_step_aside=self._may_step_aside,
            ended=self._ended,
            settings=self._settings,
            jobs=self._jobs,
            database=self._database,
            store=self._store,
            uploads=self.uploads,
            data_files=self.data_files,
            checkpoints=self.checkpoints,
            discard=self._discard,
            threads=self.threads,
            ranks=self._ranks,
        )
        self._loops[runner] = asyncio.create_task(self._run(runner), name="fits")

    async def _run(self, runner: Runner) -> None:
        outage = Outage("fits are held up")
        while not self._stopping and not self._is_spare(runner):
            await runner.worker.wait_ready()
            if not self._may_claim(runner):
                await self._idle()
                continue
            with outage.noted():
                try:
                    await runner.step_in()
                    async with self._claiming:
                        record = await self._database.write(
                            self._jobs.claim, self._store.workplace.owner, reads_files=self._reads_files
                        )
                        if record is not None:
                            runner.take(record)
                    if record is not None:
                        outage.end()  # and not when the fit is
                        await runner.run()
                finally:
                    runner.step_aside()
                if record is None:
                    await self._idle()
                else:
                    self._end_turn()
                    self._wake.set()  # it may be back in the queue, and another worker idle
            if outage.lasts:
                await asyncio.sleep(RETRY_SECONDS)
        del self._loops[runner]

    def _may_claim(self, runner: Runner) -> bool:
        """Not for a worker that is not heard of, as others may begin sooner; nor without a lease, which tells others
        that this process is alive; nor where the object store does not answer, which others may reach."""
        return runner.worker.is_ready and self.can_write and self._store.is_up

    def _is_spare(self, runner: Runner) -> bool:
        """Whether another runs the jobs of this one's worker, as one does that was begun while this one waited."""
        return not all(other.is_aside for other in self._beside(runner))

    def _may_step_aside(self, runner: Runner) -> bool:
        """Whether others may go before a fit that waits; then there is a runner for them."""
        if sum(other.is_aside for other in self._beside(runner)) >= MAX_ASIDE:
            return False
        if not self._is_spare(runner):
            self._begin(runner.worker)
        return True

    def _beside(self, runner: Runner) -> list[Runner]:
        return [other for other in self._loops if other is not runner and other.worker is runner.worker]

    async def _keep_lease(self) -> None:
        """Renew the lease, and see whether the jobs under way are still ours and wanted."""
        pause = self._settings.lease_seconds / RENEWALS
        while True:
            await asyncio.sleep(min(pause, RETRY_SECONDS) if self._unrenewed.lasts else pause)
            with self._unrenewed.noted():
                if not await self._database.write(self._leases.renew):
                    await self._database.write(self._leases.take_another)
                for runner in list(self._loops):  # others may join meanwhile
                    await runner.cancel_unwanted()

    async def _idle(self) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)

    async def _keep_taking_over(self) -> None:
        """Look after what other processes have left, however busy this one is, or if it runs no fits itself."""
        outage = Outage("what dead processes have left cannot be taken up", logging.WARNING)
        beyond = 0
        while True:
            await asyncio.sleep(takeover_pause(len(self._alive or ())))
            with outage.noted():
                await self._take_over()
                await self._settle_doubts()  # after writes, thus after all that were asked for before
                was, beyond = beyond, await self._database.read(self._jobs.beyond)
                if beyond and not was:
                    logger.warning("queued fits that only a later version of dictserve can run: %d", beyond)

    async def _take_over(self) -> None:
        """Put the jobs of dead processes back into the queue, and sweep what nobody needs any more."""

        def settle(taken: list[Record]) -> None:
            for record in taken:
                if record.job.state in ENDED:
                    self._discard(record)
                else:
                    kept = "with" if self.checkpoints.exists(record.job.id) else "without"
                    told = "job %s was left by a process that is gone, %s a checkpoint; it is taken up again"
                    logger.warning(told, record.job.id, kept)
            self.uploads.sweep_shared(self._jobs.data_files)
            self.checkpoints.sweep_shared(self._jobs.unended)
            self._store.settle()

        write = self._database.write
        async with self._claiming:
            ours = {runner.job.id for runner in self._loops if runner.job is not None}
            alive = await write(self._leases.end_dead)
            taken = await write(self._jobs.take_over, self._store.workplace.owner, ours)
        if taken:
            self._wake.set()
        # One by one: all at once would take so long, on a database that is far away, that what comes meanwhile is
        # refused.
        await write(self.uploads.sweep, self._leases.alive, self._jobs.data_files)
        await write(self.checkpoints.sweep, self._jobs.unended)
        retained = timedelta(days=self._settings.job_retention_days)
        await write(self._jobs.forget_ended, datetime.now(UTC) - retained)
        await self.threads(settle, taken)  # apart: it may wait for a network, and the lease for those writes
        if self._alive is None or self._alive - alive:  # whoever ended those leases may have another disk
            await self.threads(self._store.workplace.sweep, self._leases.alive)
        self._alive = alive

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def _discard(self, record: Record) -> None:
        """Remove what a job that has ended leaves on the disk."""
        self.uploads.discard(record.data["file"])
        self.checkpoints.discard(record.job.id)


def takeover_pause(processes: int) -> float:
    """Seconds that one of so many processes waits before it looks again for what others have left.

    Together they ask no more of the database than `LOOKERS` do, until each looks as seldom as it may. A death is seen
    as soon, for they do not look all at once.
    """
    seldom = min(max(processes / LOOKERS, 1), SELDOM)
    return TAKEOVER_SECONDS * seldom * random.uniform(0.8, 1.0)  # noqa: S311 - no secret


def _fit_parameters(parameters: FitRequest) -> dict[str, Any]:
    """What a fit is told beside its name and data."""
    fields = {name: getattr(parameters, name) for name in FitParameters.model_fields if name != "name"}
    if parameters.epochs is None:  # not of a fit that is not online, nor of requests of versions before it
        del fields["epochs"]
    return fields


def _request_hash(parameters: FitRequest, identity: list[Any]) -> str:
    """Of a request for data of this identity: the same of one that is sent again."""
    request = orjson.dumps([parameters.name, _fit_parameters(parameters), *identity], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(request).hexdigest()
