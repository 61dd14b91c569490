"""Fits, from the accepted request to the published dictionary.

A job's record is written before its request is answered, and its end after its dictionary is durable. Whatever
dies in between, the job is taken up again: from the database, by this process or another on the same store, and its
fit from the last checkpoint.
"""

import logging

from app.errors import JobsUnavailable
from app.jobs.following import Following
from app.jobs.jobs import Jobs
from app.jobs.leases import Leases
from app.jobs.loops import Loops
from app.jobs.resources import Resources
from app.jobs.submissions import Submissions
from app.jobs.upkeep import Upkeep
from app.schemas import State
from app.settings import Settings
from app.store.store import Store
from app.workers import Workers

logger = logging.getLogger("dictserve")


class Fits:
    """All parts of it, started and stopped in order.

    Attributes:
        submissions, following: what routes ask for.
        uploads, data_files: of the activations of fits.
    """

    def __init__(self, settings: Settings, jobs: Jobs, leases: Leases, store: Store, workers: Workers) -> None:
        self._resources = resources = Resources(settings, jobs, leases, store)
        self.uploads, self.data_files = resources.uploads, resources.data_files
        self._loops = Loops(resources, workers, can_write=lambda: self.can_write)
        self.submissions = Submissions(resources, self._loops)
        self.following = Following(resources, self._loops)
        self._upkeep = Upkeep(resources, self._loops, self.submissions)

    async def start(self) -> None:
        await self._upkeep.start()
        if self._resources.settings.fits:
            self._loops.start()

    async def stop(self) -> None:
        """Leave the fits under way, with a checkpoint; their jobs go back into the queue for the next start."""
        self.following.end_waits()
        await self._loops.stop()
        await self._upkeep.stop()
        await self._put_back()
        self._resources.shutdown()

    async def _put_back(self) -> None:
        """The jobs under way, and then the lease, as long as the database takes them: where it is locked, each would
        be waited for. Others see by this process's lock, or in time, that it is gone, and take up what is left."""
        try:
            await self._loops.abandon()
            await self._resources.database.write(self._resources.leases.give_back)
        except JobsUnavailable as error:
            logger.error("jobs and the lease of this process are left as they are: %s", error)

    @property
    def can_write(self) -> bool:
        """Whether the jobs' database takes what is written, as far as is known."""
        return self._upkeep.can_write

    @property
    def ended(self) -> dict[State, int]:
        """Jobs that have come to their end here, by their state then."""
        return dict(self._resources.ended)
