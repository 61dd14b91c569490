"""What fits work with, from request to dictionary: the records of jobs, the store, and the files beside them."""

from collections import Counter

from app.jobs.data_files import DataFiles
from app.jobs.database_threads import DatabaseThreads
from app.jobs.jobs import ENDED, Jobs, Record
from app.jobs.leases import Leases
from app.schemas import State
from app.settings import Settings
from app.store.checkpoints import Checkpoints
from app.store.shared_files import SharedFiles
from app.store.store import Store
from app.store.uploads import Uploads
from app.threads import Threads


class Resources:
    """
    Attributes:
        database: the threads in which ``jobs`` and ``leases`` are asked.
        threads: for the store, and for files; the jobs' own, as others' calls may wait for a slow network.
        ended: how many jobs have come to their end here, by their state then.
    """

    def __init__(self, settings: Settings, jobs: Jobs, leases: Leases, store: Store) -> None:
        self.settings = settings
        self.jobs = jobs
        self.leases = leases
        self.database = DatabaseThreads()
        self.store = store
        self.uploads = Uploads(store.workplace, self._shared("uploads"))
        self.checkpoints = Checkpoints(store.workplace, self._shared("checkpoints"))
        self.data_files = DataFiles(settings)
        self.threads = Threads("jobs")
        self.ended = Counter[State](dict.fromkeys(ENDED, 0))

    def _shared(self, kind: str) -> SharedFiles | None:
        """Files that others can have who share the jobs: those in an SQLite file of this store nobody else has."""
        if self.store.bucket is None or self.settings.database_url is None:
            return None
        return SharedFiles(self.store.bucket, kind)

    async def end(self, record: Record, state: State) -> None:
        """Count a job that has ended, by what this process wrote, and remove what it leaves on the disk."""
        self.ended[state] += 1
        await self.threads(self.discard, record)

    def discard(self, record: Record) -> None:
        """Remove the data of a job that has ended, and its checkpoint. Blocks."""
        self.uploads.discard(record.data["file"])
        self.checkpoints.discard(record.job.id)

    def shutdown(self) -> None:
        self.database.shutdown()
        for threads in (self.threads, self.uploads.threads, self.data_files.threads):
            threads.shutdown()
