"""What the routes work with: the service's parts, put together once and started and stopped in order."""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
from fastapi import Depends, Request

from app.batcher import Batcher
from app.comparison import Comparisons
from app.concepts import Concepts
from app.errors import (
    InvalidFields,
    JobsAway,
    JobsUnavailable,
    StoreAway,
    StoreReadOnly,
    StoreUnavailable,
    UnknownDictionary,
)
from app.jobs.database import Database
from app.jobs.fits import Fits
from app.jobs.jobs import Jobs
from app.jobs.leases import Leases
from app.jobs.store_owner import claim
from app.memory_budget import MemoryBudget, Share
from app.outage import Outage
from app.settings import Settings
from app.store.records import DictionaryRecord
from app.store.references import Reference
from app.store.store import Store
from app.threads import OneForAll, Threads
from app.worker.messages import Dtype, Key, Task
from app.workers import Workers

if TYPE_CHECKING:
    from app.tracing import Tracing


logger = logging.getLogger("dictserve")

AGAIN_SECONDS = 2.0  # between two times that what jobs need is looked for at a start


class Services:
    def __init__(self, settings: Settings, workers: Workers, tracing: "Tracing | None" = None) -> None:
        self.settings = settings
        self.workers = workers
        self.tracing = tracing
        self.store = Store(settings.store, settings.object_store)
        self.database = Database(settings.database_url or f"sqlite:///{self.store.workplace.database.absolute()}")
        self.leases = Leases(self.database, self.store.workplace, settings.lease_seconds)
        self.jobs = Jobs(self.database)
        self.fits = Fits(settings, self.jobs, self.leases, self.store, workers)
        self.concepts = Concepts(self.store)
        self.comparisons = Comparisons(settings, self.store)
        self.bodies = MemoryBudget(settings.bodies_bytes)
        self.answers = MemoryBudget(settings.bodies_bytes)
        self.batcher = Batcher(
            (), settings.batch_rows, queue_bytes=settings.queue_bytes, queue_rows=settings.queue_rows
        )
        workers.each(self.batcher.add)
        self._bringing = Threads("dictionaries")  # near: who moves anything else holds up no encode
        self.threads = Threads("changes")  # of dictionaries, which take longest where the store is slow
        self._fetches = OneForAll()  # of dictionaries
        self._looks = OneForAll()  # for what there is of a name
        self._opened = self._jobs_are_open = False
        self._starting: asyncio.Task[None] | None = None  # of fits, where that waits

    def open(self) -> None:
        """Open the store and the jobs' database, sweep the store, and declare this process alive.

        Raises:
            StoreUnavailable, JobsUnavailable: that cannot be, nor will it by itself.
        """
        if not self._opened:
            try:
                self._open_jobs()
            except StoreReadOnly as error:  # `start` tries again, of each of these: what is at hand needs no jobs
                self.database.leave_closed(f"jobs are not served: {error}")
            except (JobsAway, StoreAway):
                pass
            self._opened = True

    def _open_jobs(self) -> None:
        self.store.workplace.open()
        self.database.open()
        claim(self.store, self.database)
        self.store.sweep()
        self.leases.take()  # last: from now on it is to be renewed
        self._jobs_are_open = True

    async def start(self) -> None:
        if self.tracing is not None:
            self.tracing.start()
        await asyncio.to_thread(self.open)
        await self.workers.start()
        await self._start_fits()

    async def _start_fits(self) -> None:
        """Now, or as soon as the jobs' database and the object store are there: meanwhile what needs neither is
        served."""
        outage = Outage("jobs are not served")

        async def started() -> bool:
            try:
                if not self._jobs_are_open:
                    await asyncio.to_thread(self._open_jobs)
                await self.fits.start()
            except (JobsUnavailable, StoreUnavailable) as error:
                outage.note(error)
                return False
            outage.end()
            return True

        async def start_in_the_end() -> None:
            while True:
                await asyncio.sleep(AGAIN_SECONDS)
                if await started():
                    return

        if not await started():
            self._starting = asyncio.create_task(start_in_the_end(), name="jobs")

    @property
    def away(self) -> list[str]:
        """What did not answer when it was last asked, named as its figure is; nobody is asked now."""
        up = {"jobs": self.database.is_up, "store": self.store.is_up}
        return [name for name, is_up in up.items() if not is_up]

    def end_waits(self) -> None:
        """Let everybody go who waits for what may take longer than a stop."""
        self.fits.following.end_waits()
        self.comparisons.stop()

    async def stop(self) -> None:
        await self.comparisons.end()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await self.fits.stop()
        await self.workers.stop()
        await self.batcher.drain()
        self._bringing.shutdown()
        self.threads.shutdown()
        self.database.close()
        self.store.workplace.close()
        if self.tracing is not None:
            await self.tracing.stop()

    async def _at_hand(self, reference: Reference) -> DictionaryRecord:
        """The record of a dictionary that the worker can load without waiting for a network."""
        record = self.store.at_hand(reference)
        if record is None:
            record = await self._bringing(self.store.find, reference)
            fetch = self._fetches.begun(record.reference, partial(self._bringing, self.store.fetch, record))
            await asyncio.shield(fetch)  # one that leaves takes nothing from the others
        elif self.store.is_soon_old(name := reference.name):
            self._looks.begun(name, partial(self._bringing, self.store.look_again, name))
        return record

    async def solve(
        self,
        task: Task,
        dictionary: str,
        rows: np.ndarray,
        share: Share,
        *,
        growth: int = 1,
        reconstruct: bool = False,
        top_k: int | None = None,
    ) -> tuple[DictionaryRecord, list[np.ndarray]]:
        """Encode or decode rows (float32 or float64, in which all is then computed) on the dictionary that
        a reference means: its record, and the worker's arrays.

        Args:
            share: of the memory for answers: from before it is computed, the answer has it.
            growth: how many times as long the answer is as its numbers are.
            reconstruct: whether to tell each row's relative error, too: of the codes that are answered, which are
                its ``top_k`` largest alone where that is given.
        """
        meant = reference = Reference.parse(dictionary)
        while True:
            record = await self._at_hand(meant)
            try:
                return record, await self._solve(task, record, rows, share, growth, reconstruct, top_k)
            except UnknownDictionary:  # removed on the way: if it was the latest, there may be one before it
                if reference.version is not None:
                    raise
                meant = Reference(*await self._bringing(self.store.resolve, reference))
                if meant == record.reference:
                    raise

    async def _solve(
        self,
        task: Task,
        record: DictionaryRecord,
        rows: np.ndarray,
        share: Share,
        growth: int,
        reconstruct: bool,
        top_k: int | None,
    ) -> list[np.ndarray]:
        takes, gives = record.n_features, record.nb_concepts
        unit = "features"
        if task == "decode":
            takes, gives, unit = gives, takes, "concepts"
        if rows.shape[1] != takes:
            told = f"{rows.shape[1]} columns, but dictionary {record.reference} has {takes} {unit}"
            raise InvalidFields.at("data", msg=told)
        dtype: Dtype = "float64" if rows.dtype == np.float64 else "float32"
        share.hold(growth * len(rows) * gives * rows.itemsize, alone=True)
        # Where nobody asks what is lost with the other codes, rows with any `top_k` are solved together.
        key = Key(task, record.name, record.version, reconstruct, dtype, top_k if reconstruct else None)
        if self.tracing is None:
            return await self.batcher.solve(key, rows, gives)
        with self.tracing.solving(str(record.reference), len(rows)) as trail:
            return await self.batcher.solve(key, rows, gives, on_sent=trail.sent)


async def _of(request: Request) -> Services:  # async: FastAPI sends what is not through a thread
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_of)]
