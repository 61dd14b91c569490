"""What is known of a job and of a dictionary on this side: the service's record, with names for what is in it."""

from typing import Any

import msgspec

from app.client.calls import Record
from app.client.errors import JobCancelled, JobFailed, UnreadableAnswer

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Progress(msgspec.Struct, frozen=True):
    """How far a fit is.

    Attributes:
        loss: ½‖A − ZD‖²_F after the iteration; None before the first.
        relative_error: ‖A − ZD‖ / ‖A‖.
        kkt_residual: how far from a stationary point; 0 is one.
        seconds: that the fit has taken, all attempts together.
        eta_seconds: to ``max_iter``; a fit may well stop before it.
    """

    iteration: int = 0
    max_iter: int = 0
    loss: float | None = None
    relative_error: float | None = None
    kkt_residual: float | None = None
    seconds: float = 0.0
    eta_seconds: float | None = None


def progress_of(record: Record) -> Progress:
    """What a job's record tells of its progress.

    Raises:
        UnreadableAnswer: nothing that the service would.
    """
    try:
        return msgspec.convert(record["progress"], Progress)
    except msgspec.ValidationError as error:
        raise UnreadableAnswer(f"what is told of job {record['id']}'s progress cannot be read: {error}") from None


class JobRecord:
    """A job as it was last told of. ``record`` holds all of it, under the names of the HTTP API."""

    def __init__(self, record: Record) -> None:
        self.record = record

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def state(self) -> str:
        """ "queued", "running", "succeeded", "failed" or "cancelled"."""
        return str(self.record["state"])

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def name(self) -> str:
        """Of the dictionary that it fits."""
        return str(self.record["name"])

    @property
    def version(self) -> int | None:
        """Of the dictionary, once the job has succeeded."""
        version: int | None = self.record.get("version")
        return version

    @property
    def attempts(self) -> int:
        """How often it was started; over 1 where it was interrupted."""
        return int(self.record["attempts"])

    @property
    def resumed_from(self) -> int | None:
        """Iteration of the checkpoint from which the latest attempt went on; None where that began anew."""
        iteration: int | None = self.record.get("resumed_from")
        return iteration

    @property
    def progress(self) -> Progress:
        return progress_of(self.record)

    @property
    def loss_history(self) -> list[tuple[int, float]]:
        """(iteration, loss), thinned; empty in a list of jobs, which leaves it out."""
        return [(iteration, loss) for iteration, loss in self.record.get("loss_history", [])]

    def fitted(self) -> str:
        """The reference of the dictionary that an ended job has made.

        Raises:
            JobFailed, JobCancelled: it has made none.
        """
        if self.state == "cancelled":
            raise JobCancelled(f"job {self.id} was cancelled")
        if self.state == "failed":
            problem = self.record.get("error")
            if not isinstance(problem, dict):
                raise JobFailed(f"job {self.id} failed, and nothing is told of why")
            told = f"job {self.id} failed: {problem.get('detail')}"
            raise JobFailed(told, status=problem.get("status"), type=problem.get("type"))
        return f"{self.name}@{self.version}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}: {self.name}, {self.state}>"


class DictionaryRecord:
    """One version of a dictionary. ``record`` holds all that is told of it, under the names of the HTTP API."""

    def __init__(self, record: Record) -> None:
        self.record = record

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def version(self) -> int:
        return int(self.record["version"])

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def nb_concepts(self) -> int:
        return int(self.record["nb_concepts"])

    @property
    def n_features(self) -> int:
        return int(self.record["n_features"])

    @property
    def metrics(self) -> dict[str, Any]:
        """How good it is, as docs/http.md names it; empty for one that was imported."""
        return dict(self.record["metrics"])

    @property
    def loss_history(self) -> list[tuple[int, float]]:
        """(iteration, loss), thinned; empty in a list of dictionaries, which leaves it out."""
        return [(iteration, loss) for iteration, loss in self.record.get("loss_history", [])]

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.record["labels"])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reference}: {self.nb_concepts} concepts × {self.n_features} features>"
