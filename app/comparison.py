"""Comparisons of dictionaries, one at a time, each in a process of its own that ends with it.

The process is started as the worker is, and killed where nobody waits for it any more, where it takes too long, and
when the service stops. Versions never change: what was found is kept for whoever asks next, and who ask for the same
at the same time wait for one process.
"""

import asyncio
import contextlib
import logging
import os
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import msgspec

from app.errors import InvalidFields, Overloaded, WorkerUnavailable, error_by_name
from app.memory_cache import KeptBytes
from app.settings import Settings
from app.store.records import DictionaryRecord
from app.store.references import Reference
from app.store.store import Store
from app.worker.messages import Compare, Compared, Failed

logger = logging.getLogger("dictserve")

MOST_CONCEPTS = 4096  # of either: the time grows with their cube
MOST_WAITING = 8
MOST_SECONDS = 120.0
KEPT_BYTES = 16 * 1024 * 1024  # of what was found: a hundred of the largest
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class _Shared:
    """A comparison under way, and how many wait for it."""

    task: asyncio.Task[bytes]
    waiting: int = 0


class Comparisons:
    """All methods belong to one event loop."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._turn = asyncio.Lock()
        self._kept: KeptBytes[bytes] = KeptBytes(KEPT_BYTES, len)  # as the processes wrote them, by hashes
        self._shared: dict[tuple[Reference, Reference], _Shared] = {}  # those that others may join
        self._tasks: set[asyncio.Task[bytes]] = set()  # all that are under way, those being cancelled too
        self._stopping = False

    async def between(self, a: DictionaryRecord, b: DictionaryRecord) -> dict[str, Any]:
        """What matches in two dictionaries of which `require_comparable` holds. Where all are cancelled who ask for
        it, so is the comparison.

        Raises:
            UnknownDictionary: one of them was removed.
            Overloaded: others wait already, or it takes too long.
            WorkerUnavailable: its process died, or the service stops.
        """
        found = self._kept.known((a.sha256, b.sha256))
        compared = msgspec.json.decode(await self._found(a, b) if found is None else found, type=Compared)
        cosines = [cosine for _, _, cosine in compared.pairs]
        return {
            "a": _of(a),
            "b": _of(b),
            "n_features": a.n_features,
            "matches": [{"a": i, "b": j, "cosine": cosine} for i, j, cosine in compared.pairs],
            "mean_cosine": statistics.fmean(cosines),
            "median_cosine": statistics.median(cosines),
            "stability": compared.stability,
        }

    def stop(self) -> None:
        """End those under way, and have no more."""
        self._stopping = True
        for task in self._tasks:
            _cancel(task)

    async def end(self) -> None:
        """Stop, and wait until no process is left."""
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _found(self, a: DictionaryRecord, b: DictionaryRecord) -> bytes:
        """What a process finds, which may be under way already for another who waits."""
        key = (a.reference, b.reference)
        shared = self._shared.get(key) or self._begun(key, a, b)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        except asyncio.CancelledError:
            if self._stopping:
                raise WorkerUnavailable("the service stops") from None
            raise
        finally:
            shared.waiting -= 1
            if shared.waiting == 0:
                _cancel(shared.task)
                self._shared.pop(key, None)  # nobody is to wait for one that ends

    def _begun(self, key: tuple[Reference, Reference], a: DictionaryRecord, b: DictionaryRecord) -> _Shared:
        if len(self._tasks) >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} comparisons wait already, and one is made at a time; come back later")
        if self._stopping:
            raise WorkerUnavailable("the service stops")
        shared = self._shared[key] = _Shared(asyncio.create_task(self._in_turn(a, b), name="comparison"))
        self._tasks.add(shared.task)
        shared.task.add_done_callback(self._tasks.discard)
        return shared

    async def _in_turn(self, a: DictionaryRecord, b: DictionaryRecord) -> bytes:
        for record in (a, b):
            await asyncio.to_thread(self._store.find_and_fetch, record.reference)
        async with self._turn:
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    found = await self._compare(a, b)
            except TimeoutError:
                told = (
                    f"the comparison was given up after {MOST_SECONDS:.0f} s; come back when there is less to do here"
                )
                raise Overloaded(told) from None
        self._kept.put((a.sha256, b.sha256), found)
        return found

    async def _compare(self, a: DictionaryRecord, b: DictionaryRecord) -> bytes:
        told = Compare(
            store=str(self._settings.store),
            objects=self._settings.object_store,
            a=str(a.reference),
            b=str(b.reference),
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.worker.matching", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | ONE_THREAD,
        )
        try:
            answer, _ = await process.communicate(msgspec.json.encode(told))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode != 0:
            logger.warning("the process of a comparison ended with exit code %s", process.returncode)
            raise WorkerUnavailable("the comparison's process died; send the request again in a moment")
        outcome: Compared | Failed = msgspec.json.decode(answer, type=Compared | Failed)
        if isinstance(outcome, Failed):
            raise error_by_name(outcome.error, outcome.detail)
        return answer


def _cancel(task: asyncio.Task[bytes]) -> None:
    if not task.cancelling():  # twice would break off what it does at its end
        task.cancel()


def require_comparable(a: DictionaryRecord, b: DictionaryRecord) -> None:
    """
    Raises:
        InvalidFields: they are not of the same features, or have too many concepts.
    """
    if a.n_features != b.n_features:
        widths = f"{b.reference} has {b.n_features} features, {a.reference} has {a.n_features}"
        raise InvalidFields.at("b", msg=f"{widths}; only dictionaries of the same features compare")
    for place, record in (("a", a), ("b", b)):
        if record.nb_concepts > MOST_CONCEPTS:
            told = f"{record.reference} has {record.nb_concepts} concepts; at most {MOST_CONCEPTS} compare"
            raise InvalidFields.at(place, msg=told)


def _of(record: DictionaryRecord) -> dict[str, Any]:
    return {"dictionary": record.name, "version": record.version, "nb_concepts": record.nb_concepts}
