"""An attempt at a job, while it is under way: what its worker has told of it."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.jobs.jobs import Record
from app.schemas import Job, Progress
from app.worker.messages import FitBegun, FitProgress

MAX_HISTORY = 500


@dataclass
class Attempt:
    """A job that was claimed, and what of it is newer than its record."""

    record: Record  # as it was claimed, and what has been staged of its data since
    progress: Progress
    loss_history: list[tuple[int, float]] = field(default_factory=list)
    resumed_from: int | None = None
    seconds_before: float = 0.0  # of the attempts before this one
    seconds_kept: float = 0.0  # of those, what came into the checkpoint
    on_worker: bool = False
    objects_before: list[str] = field(default_factory=list)  # the checkpoints of the attempts before this one
    held_up_at: int = 0  # the furthest iteration after which its files could not be read
    stopped: threading.Event = field(default_factory=threading.Event)  # ends the staging of files

    @classmethod
    def of(cls, record: Record) -> "Attempt":
        """Until the worker says where it begins, it is where it was."""
        job = record.job
        progress = job.progress.model_copy(update={"eta_seconds": None})
        return cls(record, progress, job.loss_history, job.resumed_from, seconds_before=job.progress.seconds)

    @property
    def job(self) -> Job:
        return self.record.job

    def begin(self, begun: FitBegun, losses: np.ndarray) -> None:
        """Take what the worker says of where the fit begins."""
        self.resumed_from, self.seconds_kept = begun.iteration or None, begun.seconds
        self.loss_history = history_of(losses)
        self.progress = Progress(
            iteration=begun.iteration,
            max_iter=self.progress.max_iter,
            loss=self.loss_history[-1][1] if self.loss_history else None,
            seconds=self.seconds_before,
        )

    def note(self, message: FitProgress) -> None:
        """Take a progress message into what is told of the job."""
        left = message.max_iter - message.iteration
        eta = (self.seconds_kept + message.seconds) / message.iteration * left if message.iteration else None
        self.progress = Progress(
            iteration=message.iteration,
            max_iter=message.max_iter,
            loss=message.loss,
            relative_error=message.relative_error,
            kkt_residual=message.kkt_residual,
            seconds=round(self.seconds_before + message.seconds, 3),
            eta_seconds=None if eta is None else round(eta, 1),
        )
        history = self.loss_history
        if message.loss is not None and (not history or history[-1][0] < message.iteration):
            self.loss_history = thinned([*history, (message.iteration, message.loss)])

    def newer_fields(self) -> dict[str, Any]:
        """What is newer than the job's record."""
        return {name: getattr(self, name) for name in ("progress", "loss_history", "resumed_from")}


def history_of(losses: np.ndarray) -> list[tuple[int, float]]:
    """The loss after each iteration, as a job's record has it."""
    return thinned(list(enumerate(losses.tolist(), start=1)))


def thinned(history: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Every second point, once there are too many; the first and the last always stay."""
    while len(history) > MAX_HISTORY:
        history = [*history[:-1:2], history[-1]]
    return history
