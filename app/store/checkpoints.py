"""The checkpoints of fits under way, as the service knows them: files of the store, each its owner's and its job's,
and objects of the same names where others may go on from them. So no attempt at a job writes over another's.

The worker writes and reads them (``app.worker.fitting``, ``checkpoint_file``). Here they are found, handed on from a
dead process to the one that takes up its job, and removed: with the end of the job, or by a sweep.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.errors import StoreUnavailable
from app.store.checkpoint_file import iteration_of
from app.store.disk import fsync_directory, store_errors
from app.store.shared_files import SharedFiles
from app.store.workplace import Workplace

logger = logging.getLogger("dictserve")

SUFFIX = ".safetensors"


class Checkpoints:
    """``<owner>.<job>.safetensors`` in a private directory of the store; one that is being written is staged."""

    def __init__(self, workplace: Workplace, shared: SharedFiles | None = None) -> None:
        self._workplace = workplace
        self._shared = shared

    def path(self, job: str) -> Path:
        """Where this process's worker puts the job's checkpoint."""
        return self._workplace.checkpoints / self._name(job)

    def staged(self, job: str) -> Path:
        """Where it is written before: the store's sweep removes it should this process die on the way."""
        return self._workplace.staging / self._name(job)

    def shared_as(self, job: str) -> str | None:
        """The object that the worker makes of each, where they are shared."""
        return None if self._shared is None else self._shared.key(self._name(job))

    def exists(self, job: str) -> bool:
        """Whether an interrupted fit would be gone on with."""
        try:
            return bool(self._of(job) or self._objects_of(job))
        except StoreUnavailable:
            return False

    def adopt(self, job: str) -> list[str]:
        """Make the checkpoint of a job that is furthest on, here or among the objects, this process's own, which runs
        the job from now on. One on this disk that cannot be had is left: the fit then starts again.

        Returns:
            The objects of earlier attempts that could be had. They stay until there is one of this attempt.

        Raises:
            StoreUnavailable: the objects cannot be asked now; the one on this disk has been adopted.
        """
        earlier = []
        try:
            for path in self._of(job):
                if path != self.path(job):
                    self._take(path, job)
            for name, key in self._objects_of(job).items():
                self._fetch(name, job)
                if name != self._name(job):
                    earlier.append(key)
        except OSError as error:
            logger.warning("the checkpoint of job %s cannot be taken over: %s", job, error)
        return earlier

    def _fetch(self, name: str, job: str) -> None:
        theirs = self.staged(job)
        if self._shared is not None and self._shared.get(name, theirs.with_suffix(".part"), theirs):
            self._take(theirs, job)

    def _take(self, theirs: Path, job: str) -> None:
        """Have another's in the place of this process's own, unless that is further on."""
        if iteration_of(theirs) >= iteration_of(self.path(job)):
            os.replace(theirs, self.path(job))
        else:
            theirs.unlink(missing_ok=True)

    def discard(self, job: str) -> None:
        """Remove what there is of a job that has ended. What cannot be removed now is left to a sweep.

        The files first: where there is none, the worker removes an object that was on its way.
        """
        try:
            for path in (*self._of(job), self.staged(job)):
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("a checkpoint stays until it can be removed: %s", error)
        if self._shared is not None:
            try:
                for name in self._objects_of(job):
                    self._shared.discard(name)
            except StoreUnavailable as error:
                logger.warning("checkpoints of job %s stay as objects until they can be removed: %s", job, error)

    def sweep(self, unended: Callable[[], set[str]]) -> None:
        """Remove what is no unended job's, whoever is alive: a job may have ended elsewhere.

        Args:
            unended: asked after what there is was listed. The jobs of all that were on record before.
        """
        with store_errors():
            files = {path.name for path in self._workplace.checkpoints.iterdir()}
        for name in _of_none(files, unended()) if files else ():
            with suppress(OSError):  # a later sweep takes it
                (self._workplace.checkpoints / name).unlink(missing_ok=True)

    def sweep_shared(self, unended: Callable[[], set[str]]) -> None:
        """The same among the objects, now and then."""
        if self._shared is not None:
            self._shared.sweep(lambda names: _of_none(names, unended()), grace_seconds=0.0)

    def set_aside(self, path: Path) -> Path:
        """Take a damaged one out of the way, but keep it: where it is from now on."""
        with store_errors():
            self._workplace.quarantine.mkdir(exist_ok=True)
            aside = self._workplace.quarantine / path.name
            path.rename(aside)
            fsync_directory(path.parent)
            fsync_directory(aside.parent)
        return aside

    def _name(self, job: str) -> str:
        return f"{self._workplace.owner}.{job}{SUFFIX}"

    def _of(self, job: str) -> list[Path]:
        return list(self._workplace.checkpoints.glob(f"*.{job}{SUFFIX}"))

    def _objects_of(self, job: str) -> dict[str, str]:
        """Their keys, by their names. Raises StoreUnavailable."""
        if self._shared is None:
            return {}
        return {name: self._shared.key(name) for name in self._shared.names() if job_of(name) == job}


def job_of(name: str) -> str:
    """Objects of earlier versions have no owner in their names."""
    return name.removesuffix(SUFFIX).rpartition(".")[2]


def _of_none(names: set[str], jobs: set[str]) -> set[str]:
    return {name for name in names if job_of(name) not in jobs}
