"""What is done for the jobs all the time: the lease is renewed, and what dead processes have left is taken up."""

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta

from app.jobs.database_threads import RETRY_SECONDS
from app.jobs.jobs import ENDED, Record
from app.jobs.loops import Loops
from app.jobs.resources import Resources
from app.jobs.submissions import Submissions
from app.outage import Outage

logger = logging.getLogger("dictserve")

RENEWALS = 6  # of a lease, in its time
TAKEOVER_SECONDS = 5.0  # between two looks for what other processes have left
LOOKERS = 8  # up to so many processes look that often; of more, each looks less often
SELDOM = 6  # times less often at most: where many die together, those that are left should still notice soon


class Upkeep:
    def __init__(self, resources: Resources, loops: Loops, submissions: Submissions) -> None:
        self._resources = resources
        self._jobs = resources.jobs
        self._leases = resources.leases
        self._database = resources.database
        self._workplace = resources.store.workplace
        self._loops = loops
        self._submissions = submissions
        self._tasks: set[asyncio.Task[None]] = set()
        self._unrenewed = Outage("the lease cannot be renewed", logging.WARNING)
        self._alive: set[str] | None = None  # who was, when what the dead had staged was last swept

    async def start(self) -> None:
        await self._take_over()
        self._tasks = {
            asyncio.create_task(self._keep_lease(), name="lease"),
            asyncio.create_task(self._keep_taking_over(), name="takeover"),
        }

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def can_write(self) -> bool:
        """Whether the jobs' database could be written when the lease was last renewed, which is all the time."""
        return bool(self._tasks) and not self._unrenewed.lasts

    async def _keep_lease(self) -> None:
        """Renew the lease, and see whether the jobs under way are still ours and wanted."""
        pause = self._resources.settings.lease_seconds / RENEWALS
        while True:
            await asyncio.sleep(min(pause, RETRY_SECONDS) if self._unrenewed.lasts else pause)
            with self._unrenewed.noted():
                if not await self._database.write(self._leases.renew):
                    await self._database.write(self._leases.take_another)
                for runner in self._loops.runners:  # others may join meanwhile
                    await runner.cancel_unwanted()

    async def _keep_taking_over(self) -> None:
        """Look after what other processes have left, however busy this one is, or if it runs no fits itself."""
        outage = Outage("what dead processes have left cannot be taken up", logging.WARNING)
        beyond = 0
        while True:
            await asyncio.sleep(takeover_pause(len(self._alive or ())))
            with outage.noted():
                await self._take_over()
                await self._submissions.settle_doubts()  # after writes, thus after all that were asked for before
                was, beyond = beyond, await self._database.read(self._jobs.beyond)
                if beyond and not was:
                    logger.warning("queued fits that only a later version of dictserve can run: %d", beyond)

    async def _take_over(self) -> None:
        """Put the jobs of dead processes back into the queue, and sweep what nobody needs any more."""
        resources, write = self._resources, self._database.write
        async with self._loops.claiming:
            ours = {runner.job.id for runner in self._loops.runners if runner.job is not None}
            alive = await write(self._leases.end_dead)
            taken = await write(self._jobs.take_over, self._workplace.owner, ours)
        if taken:
            self._loops.wake.set()
        # One by one: all at once would take so long, on a database that is far away, that what comes meanwhile is
        # refused.
        await write(resources.uploads.sweep, self._leases.alive, self._jobs.data_files)
        await write(resources.checkpoints.sweep, self._jobs.unended)
        retained = timedelta(days=resources.settings.job_retention_days)
        await write(self._jobs.forget_ended, datetime.now(UTC) - retained)
        for record in taken:
            await self._settle(record)
        await resources.threads(self._sweep_shared)  # may wait for a network, as no write does: the lease is one
        if self._alive is None or self._alive - alive:  # whoever ended those leases may have another disk
            await resources.threads(self._workplace.sweep, self._leases.alive)
        self._alive = alive

    async def _settle(self, taken: Record) -> None:
        if taken.job.state in ENDED:
            await self._resources.end(taken, taken.job.state)
            return
        kept = await self._resources.threads(self._resources.checkpoints.exists, taken.job.id)
        told = "job %s was left by a process that is gone, %s a checkpoint; it is taken up again"
        logger.warning(told, taken.job.id, "with" if kept else "without")

    def _sweep_shared(self) -> None:
        self._resources.uploads.sweep_shared(self._jobs.data_files)
        self._resources.checkpoints.sweep_shared(self._jobs.unended)
        self._resources.store.settle()


def takeover_pause(processes: int) -> float:
    """Seconds that one of so many processes waits before it looks again for what others have left.

    Together they ask no more of the database than `LOOKERS` do, until each looks as seldom as it may. A death is seen
    as soon, for they do not look all at once.
    """
    seldom = min(max(processes / LOOKERS, 1), SELDOM)
    return TAKEOVER_SECONDS * seldom * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
