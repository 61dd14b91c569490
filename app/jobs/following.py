"""What is asked of jobs on record: how they are, to be told of it as they get on, and to end them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from app.errors import JobsAway, UnknownJob
from app.jobs.database_threads import RETRY_SECONDS
from app.jobs.jobs import ENDED, Record
from app.jobs.loops import LOOK_SECONDS, Loops
from app.jobs.resources import Resources
from app.schemas import Job, ListedJob, State

CANCEL_SECONDS = 5.0
FOLLOW_SECONDS = 0.25


class Following:
    """Of a job that runs here more is known than is on record: its loop is asked, too."""

    def __init__(self, resources: Resources, loops: Loops) -> None:
        self._resources = resources
        self._jobs = resources.jobs
        self._database = resources.database
        self._loops = loops
        self._leave = asyncio.Event()  # set: who waits is to go; replaced where later comers may wait

    async def get(self, id: str) -> Job:
        if (job := self._under_way(id)) is not None:  # what is known here is newer than its record
            return job
        record = await self._database.read(self._jobs.get, id)
        return self._under_way(id) or record.job  # meanwhile it may have been taken up here, and even have ended

    def _under_way(self, id: str) -> Job | None:
        """A job that runs here: until nothing is left of it on the disk, though its end is on record before."""
        runner = self._loops.runner_of(id)
        return None if runner is None or runner.job is None else runner.freshened(runner.job)

    async def newest(
        self, limit: int, *, before: str | None = None, state: State | None = None, name: str | None = None
    ) -> list[ListedJob]:
        jobs = await self._database.read(self._jobs.newest, limit, before=before, state=state, name=name)
        return [self._loops.freshened(job) for job in jobs]

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
            next_end, remaining = self._loops.next_end, deadline - time.monotonic()
            is_over = remaining <= 0 or leave.is_set()
            try:
                job = await self.get(id)
            except JobsAway:  # for a moment, it may be
                if is_over:
                    raise
            else:
                if job.state in ENDED or is_over:
                    return job
            # Of another process's job no end is told here: look again now and then.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(next_end.wait(), min(remaining, LOOK_SECONDS))

    def end_waits(self) -> None:
        """Let everybody go who waits for a job or follows one: the service stops, and a job may take hours."""
        self._leave.set()
        self._loops.note_end()

    def let_go(self) -> None:
        """Let everybody go who waits now. Who comes later waits: whether the service stops is not known."""
        self.end_waits()
        self._leave = asyncio.Event()

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
        id = record.job.id
        runner, next_end = self._loops.runner_of(id), self._loops.next_end
        if record.job.state == "queued":
            if await self._database.write(self._jobs.cancel_queued, id):
                self._loops.note_end()
                await self._resources.end(record, "cancelled")
                return
        # whoever runs it sees this when it writes how far it is, renews its lease, or would publish
        elif await self._database.write(self._jobs.request_cancel, id) and runner is not None:
            runner.cancel()  # at once
        with contextlib.suppress(TimeoutError):  # an end in another process is not told here
            await asyncio.wait_for(next_end.wait(), 0.1 if runner is None else RETRY_SECONDS)
