"""A loop for each worker, which claims jobs and runs them there one after another; more of them, where fits wait."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable

from app.jobs.database_threads import RETRY_SECONDS
from app.jobs.jobs import Record
from app.jobs.ranks import RankProcesses
from app.jobs.resources import Resources
from app.jobs.runner import Runner
from app.outage import Outage
from app.schemas import AnyJob
from app.supervisor import Supervisor
from app.workers import Workers

LOOK_SECONDS = 1.0  # between two looks for what other processes have done to jobs: queued them, ended them
STOP_SECONDS = 10.0  # in which the fit under way ends its iteration and writes its checkpoint, at a stop
MAX_ASIDE = 3  # fits of a worker that wait for their files while others go on; each may take a thread for good


class Loops:
    """
    Args:
        can_write: whether the jobs' database takes what is written, as far as is known.

    Attributes:
        wake: set where there may be jobs to claim.
        claiming: held from a claim until the job is known to run here.
        next_end: set, and replaced by the next, each time that a job ends.
    """

    def __init__(self, resources: Resources, workers: Workers, can_write: Callable[[], bool]) -> None:
        settings = resources.settings
        self.wake = asyncio.Event()
        self.claiming = asyncio.Lock()
        self.next_end = asyncio.Event()
        self._resources = resources
        self._workers = workers
        self._can_write = can_write
        # Or where nobody else could: such a fit, of a time when there was a data directory, would wait for good.
        self._reads_files = settings.data_dir is not None or settings.database_url is None
        self._ranks = RankProcesses(settings, workers)
        self._tasks: dict[Runner, asyncio.Task[None]] = {}
        self._turns: defaultdict[Supervisor, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stopping = False

    def start(self) -> None:
        self._workers.each(self._begin)

    async def stop(self) -> None:
        """Leave the fits under way, with a checkpoint: `abandon` is to follow."""
        self._stopping = True
        leaving = {task for runner, task in list(self._tasks.items()) if runner.leave()}
        if leaving:
            await asyncio.wait(leaving, timeout=STOP_SECONDS)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._ranks.stop()

    async def abandon(self) -> None:
        """Put the jobs that were under way back into the queue. Raises JobsUnavailable where that cannot be."""
        for runner in self.runners:
            await runner.abandon()

    @property
    def runners(self) -> list[Runner]:
        """As they are now: others may join at any time."""
        return list(self._tasks)

    def runner_of(self, id: str) -> Runner | None:
        """Who is at a job, if somebody here is."""
        return next((runner for runner in self._tasks if runner.job is not None and runner.job.id == id), None)

    def freshened(self, job: AnyJob) -> AnyJob:
        """A job's record, with what is known here since."""
        runner = self.runner_of(job.id)
        return job if runner is None else runner.freshened(job)

    def note_end(self) -> None:
        """Tell those who wait for a job that one has ended."""
        ended, self.next_end = self.next_end, asyncio.Event()
        ended.set()

    def _begin(self, worker: Supervisor) -> None:
        runner = Runner(worker, self._turns[worker], self._resources, self._ranks, self._may_step_aside)
        self._tasks[runner] = asyncio.create_task(self._run(runner), name="fits")

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
                    async with self.claiming:
                        if (record := await self._claimed()) is not None:
                            runner.take(record)
                    if record is not None:
                        outage.end()  # and not when the fit is
                        await runner.run()
                finally:
                    runner.step_aside()
                if record is None:
                    await self._idle()
                else:
                    self.note_end()
                    self.wake.set()  # it may be back in the queue, and another worker idle
            if outage.lasts:
                await asyncio.sleep(RETRY_SECONDS)
        del self._tasks[runner]

    def _may_claim(self, runner: Runner) -> bool:
        """Not for a worker that is not heard of, as others may begin sooner; nor without a lease, which tells others
        that this process is alive; nor where the object store does not answer, which others may reach."""
        return runner.worker.is_ready and self._can_write() and self._resources.store.is_up

    async def _claimed(self) -> Record | None:
        owner, database = self._resources.store.workplace.owner, self._resources.database
        return await database.write(self._resources.jobs.claim, owner, reads_files=self._reads_files)

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
        return [other for other in self._tasks if other is not runner and other.worker is runner.worker]

    async def _idle(self) -> None:
        self.wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wake.wait(), LOOK_SECONDS)
