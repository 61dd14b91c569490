"""From a request for a fit to a job on record: what is written before the request is answered."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import orjson

from app.errors import InvalidFields, JobsUnavailable, KeyReused, UnknownDictionary
from app.jobs.data_files import NamedFiles, identity_of
from app.jobs.loops import Loops
from app.jobs.resources import Resources
from app.schemas import FitParameters, FitRequest, Job
from app.store.references import Reference
from app.store.uploads import Staged
from app.store.workplace import owner_of
from app.worker.messages import INIT_METHODS

logger = logging.getLogger("dictserve")


class Submissions:
    def __init__(self, resources: Resources, loops: Loops) -> None:
        self._queue_jobs = resources.settings.queue_jobs
        self._jobs = resources.jobs
        self._database = resources.database
        self._store = resources.store
        self._uploads = resources.uploads
        self._threads = resources.threads
        self._loops = loops
        self._doubtful: set[str] = set()  # files of requests that failed, of which there may be jobs

    async def require_room(self, idempotency_key: str | None) -> None:
        """Raises Overloaded where `submit` would do so now, before anything has come of the data."""
        await self._database.read(self._jobs.require_room, self._queue_jobs, idempotency_key)

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
            if isinstance(error, Exception):  # else the record may be being written still: see `app.jobs.upkeep`
                await self.settle_doubts()
            raise

    async def _submit(self, parameters: FitRequest, data: Staged | NamedFiles, idempotency_key: str | None) -> Job:
        request_hash = _request_hash(parameters, data.identity)
        if idempotency_key is not None and (earlier := await self._of_key(idempotency_key, request_hash)):
            await self._uploads.threads(self._uploads.discard, data.file)
            return earlier
        await self._threads(self._store.require_free, parameters.name)  # which may read many records
        pinned = _fit_parameters(parameters) | {
            "init": await self._threads(self._pinned_init, parameters, data.n_features)
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
            queue_jobs=self._queue_jobs,
            idempotency_key=idempotency_key,
            request_hash=request_hash,
        )
        if job is None:  # another request with this key was a moment earlier
            return await self._submit(parameters, data, idempotency_key)
        self._uploads.note_on_record(data.file)
        self._loops.wake.set()
        return job

    async def settle_doubts(self) -> None:
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
            await self._uploads.threads(self._uploads.discard, file)
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
        return None if record is None else self._loops.freshened(record.job)


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
