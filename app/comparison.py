"""Comparisons of dictionaries, one at a time, each in a process of its own that ends with it.

The process is started as the worker is, and killed where nobody waits for it any more, where it takes too long, and
when the service stops.
"""

import asyncio
import contextlib
import logging
import os
import statistics
import sys
from typing import Any

import msgspec

from app.errors import InvalidFields, Overloaded, WorkerUnavailable
from app.settings import Settings
from app.store import DictionaryRecord
from app.supervisor import error_of
from app.worker.messages import Compare, Compared, Failed

logger = logging.getLogger("dictserve")

MOST_CONCEPTS = 4096  # of either: the time grows with their cube
MOST_WAITING = 8
MOST_SECONDS = 120.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Comparisons:
    """All methods belong to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Compared]] = set()
        self._stopping = False

    async def between(self, a: DictionaryRecord, b: DictionaryRecord) -> dict[str, Any]:
        """What matches in two dictionaries that are at hand. Where this is cancelled, so is the comparison.

        Raises:
            InvalidFields: they are not of the same features, or have too many concepts.
            Overloaded: others wait already, or it takes too long.
            WorkerUnavailable: its process died, or the service stops.
        """
        _require_comparable(a, b)
        if len(self._tasks) >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} comparisons wait already, and one is made at a time; come back later")
        if self._stopping:
            raise WorkerUnavailable("the service stops")
        task = asyncio.create_task(self._in_turn(a, b), name="comparison")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            compared = await task
        except asyncio.CancelledError:
            if self._stopping:
                raise WorkerUnavailable("the service stops") from None
            raise
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
            task.cancel()

    async def end(self) -> None:
        """Stop, and wait until no process is left."""
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _in_turn(self, a: DictionaryRecord, b: DictionaryRecord) -> Compared:
        async with self._turn:
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    return await self._compare(a, b)
            except TimeoutError:
                told = (
                    f"the comparison was given up after {MOST_SECONDS:.0f} s; come back when there is less to do here"
                )
                raise Overloaded(told) from None

    async def _compare(self, a: DictionaryRecord, b: DictionaryRecord) -> Compared:
        told = Compare(
            store=str(self._settings.store),
            objects=self._settings.object_store,
            a=f"{a.name}@{a.version}",
            b=f"{b.name}@{b.version}",
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
            raise error_of(outcome)
        return outcome


def _require_comparable(a: DictionaryRecord, b: DictionaryRecord) -> None:
    if a.n_features != b.n_features:
        widths = f"{b.name}@{b.version} has {b.n_features} features, {a.name}@{a.version} has {a.n_features}"
        raise InvalidFields.at("b", msg=f"{widths}; only dictionaries of the same features compare")
    for place, record in (("a", a), ("b", b)):
        if record.nb_concepts > MOST_CONCEPTS:
            told = (
                f"{record.name}@{record.version} has {record.nb_concepts} concepts; at most {MOST_CONCEPTS} compare"
            )
            raise InvalidFields.at(place, msg=told)


def _of(record: DictionaryRecord) -> dict[str, Any]:
    return {"dictionary": record.name, "version": record.version, "nb_concepts": record.nb_concepts}
