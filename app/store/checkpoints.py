"""The checkpoints of fits under way, as the service knows them: files of the store, each its owner's and its job's.

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
from app.store.workplace import Workplace, owner_of

logger = logging.getLogger("dictserve")

SUFFIX = ".safetensors"


class Checkpoints:
    """``<owner>.<job>.safetensors`` in a private directory of the store; one that is being written is staged."""

    def __init__(self, workplace: Workplace, shared: SharedFiles | None = None) -> None:
        self._workplace = workplace
        self._shared = shared

    def path(self, job: str) -> Path:
        """Where this process's worker puts the job's checkpoint."""
        return self._workplace.checkpoints / f"{self._workplace.owner}.{job}{SUFFIX}"

    def staged(self, job: str) -> Path:
        """Where it is written before: the store's sweep removes it should this process die on the way."""
        return self._workplace.staging / f"{self._workplace.owner}.{job}{SUFFIX}"

    def shared_as(self, job: str) -> str | None:
        """The object that the worker makes of each, where they are shared."""
        return None if self._shared is None else self._shared.key(f"{job}{SUFFIX}")

    def exists(self, job: str) -> bool:
        """Whether an interrupted fit would be gone on with."""
        if self._of(job):
            return True
        try:
            return self._shared is not None and self._shared.has(f"{job}{SUFFIX}")
        except StoreUnavailable:
            return False

    def adopt(self, job: str) -> None:
        """Make the checkpoint of a job that is furthest on, here or among the objects, this process's own, which runs
        the job from now on. One on this disk that cannot be had is left: the fit then starts again.

        Raises:
            StoreUnavailable: the objects cannot be asked now; the one on this disk has been adopted.
        """
        try:
            for path in sorted(self._of(job), key=lambda path: path.stat().st_mtime_ns):  # the newest comes last
                os.replace(path, self.path(job))
            if self._shared is None:
                return
            theirs = self.staged(job)
            if self._shared.get(f"{job}{SUFFIX}", theirs.with_suffix(".part"), theirs):
                if iteration_of(theirs) >= iteration_of(self.path(job)):
                    os.replace(theirs, self.path(job))
                theirs.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the checkpoint of job %s cannot be taken over: %s", job, error)

    def discard(self, job: str) -> None:
        """Remove what there is of a job that has ended. What cannot be removed now is left to a sweep."""
        if self._shared is not None:
            self._shared.discard(f"{job}{SUFFIX}")
        try:
            for path in (*self._of(job), self.staged(job)):
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("a checkpoint stays until it can be removed: %s", error)

    def sweep(self, alive: Callable[[], set[str]], unended: Callable[[], set[str]]) -> None:
        """Remove what is no living process's and, asked after that, no unended job's."""
        with store_errors():
            files = list(self._workplace.checkpoints.iterdir())
        owners = alive()
        left = [path for path in files if owner_of(path) not in owners]
        if left:
            needed = unended()
            for path in left:
                if job_of(path) not in needed:
                    with suppress(OSError):  # a later sweep takes it
                        path.unlink(missing_ok=True)

    def sweep_shared(self, unended: Callable[[], set[str]]) -> None:
        """The same among the objects, now and then."""
        if self._shared is not None:
            self._shared.sweep(lambda: {f"{job}{SUFFIX}" for job in unended()})

    def set_aside(self, path: Path) -> Path:
        """Take a damaged one out of the way, but keep it: where it is from now on."""
        with store_errors():
            self._workplace.quarantine.mkdir(exist_ok=True)
            aside = self._workplace.quarantine / path.name
            path.rename(aside)
            fsync_directory(path.parent)
            fsync_directory(aside.parent)
        return aside

    def _of(self, job: str) -> list[Path]:
        return list(self._workplace.checkpoints.glob(f"*.{job}{SUFFIX}"))


def job_of(path: Path) -> str:
    return path.name.removesuffix(SUFFIX).rpartition(".")[2]
