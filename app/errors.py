"""What can go wrong in the service, and the one table from exception to HTTP problem.

    AppError
    ├── MalformedBody          the body cannot be parsed at all
    ├── UnsupportedMediaType   a body of a kind that is not read
    ├── NotAcceptable          an answer of a kind that is not made
    ├── BodyTooLarge           over a limit in bytes
    ├── MalformedRequest       not HTTP/1.1
    ├── RequestTimeout         sent too slowly
    ├── HeadersTooLarge        over a limit in bytes
    ├── TooManyConnections     over a limit; come back later
    ├── Unauthorized           no token, or one that is not known
    ├── Forbidden              a token, or a page of another site, that may not do this
    ├── RateLimited            a token's limit is used up for now
    ├── TokensUnreadable       the tokens file cannot be used; ends the start
    ├── InvalidFields          parsed, but fields are wrong; carries each of them
    ├── UnknownDictionary      no dictionary of that name or version
    ├── UnknownConcept         the dictionary has fewer concepts
    ├── UnknownJob             no job of that id
    ├── NameTaken              the store has something else by that name
    ├── PreconditionFailed     what is there is not what the request expects
    ├── KeyReused              an idempotency key that another request has used
    ├── DataChanged            files of a fit are not what they were when it was accepted
    ├── DictionaryDamaged      the stored version fails its checksum or cannot be read
    ├── JobDamaged             the job's record cannot be read
    ├── DataUnavailable        the data directory is away
    ├── StoreUnavailable       the store cannot be read or written
    │   ├── StoreFull          ... for want of space
    │   ├── StoreReadOnly      ... it can only be read
    │   └── StoreAway          ... now: the object store does not answer
    ├── JobsUnavailable        the jobs' database cannot be used
    │   └── JobsAway           ... now: it is away, locked or full
    ├── Overloaded             the queue is full; come back later
    ├── WorkerUnavailable      the worker is down or starting; come back later
    │   ├── WorkerStarts       ... the latter, in a few seconds
    │   └── WorkerCompiles     ... or compiles what this needs, which takes up to a minute
    ├── Stopping               the service stops, and does not wait any longer
    ├── FitAbandoned           a fit that took the worker down too often
    └── WorkerFailed           the worker met an error of its own
        └── DeviceOutOfMemory  ... for want of memory

Errors of ``core`` (``core.errors.CoreError``) are in the table too. Routes raise these and nothing of HTTP; their
answers are made in ``app.http.problems``, and the worker knows them without a web framework.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from core import errors as core_errors
from core.errors import CoreError, RankLost

if TYPE_CHECKING:
    import pydantic
    from fastapi.exceptions import RequestValidationError

MAX_ERRORS = 20  # of one problem; a body with a million bad numbers gets no megabyte of answer
MAX_MESSAGE_CHARACTERS = 300

Location = tuple[str | int, ...]


class AppError(Exception):
    """Base of the service's errors; ``str()`` is a sentence that tells the client what to do."""

    headers: Mapping[str, str] = MappingProxyType({})  # of the answer, beside those of its kind


class MalformedBody(AppError):
    pass


class UnsupportedMediaType(AppError):
    pass


class NotAcceptable(AppError):
    pass


class BodyTooLarge(AppError):
    pass


class MalformedRequest(AppError):
    pass


class RequestTimeout(AppError):
    pass


class HeadersTooLarge(AppError):
    pass


class TooManyConnections(AppError):
    pass


class Unauthorized(AppError):
    """
    Args:
        challenge: of RFC 6750, section 3: what programs are told.
    """

    def __init__(self, message: str, challenge: str = "Bearer") -> None:
        super().__init__(message)
        self.headers = {"WWW-Authenticate": challenge}


class Forbidden(AppError):
    def __init__(self, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        if challenge is not None:
            self.headers = {"WWW-Authenticate": challenge}


class RateLimited(AppError):
    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(f"{message}; try again in {seconds} s")
        self.headers = {"Retry-After": str(seconds)}


class TokensUnreadable(AppError):
    pass


@dataclass
class FieldError:
    """One wrong field: where it is (``("data", 3, 5)`` is row 3, column 5) and what would be right."""

    loc: Location
    msg: str


class InvalidFields(AppError):
    def __init__(self, errors: Sequence[FieldError], count: int | None = None) -> None:
        self.errors = list(errors[:MAX_ERRORS])
        self.count = len(errors) if count is None else count
        first = self.errors[0]
        where = ".".join(str(part) for part in first.loc)
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        super().__init__(f"{where}: {first.msg}{more}" if where else f"{first.msg}{more}")

    @classmethod
    def at(cls, *loc: str | int, msg: str) -> "InvalidFields":
        return cls([FieldError(loc, msg)])

    @classmethod
    def from_pydantic(cls, error: "pydantic.ValidationError | RequestValidationError") -> "InvalidFields":
        found = error.errors()
        return cls([_field_error(entry) for entry in found[:MAX_ERRORS]], count=len(found))


class UnknownDictionary(AppError):
    pass


class UnknownConcept(AppError):
    pass


class UnknownJob(AppError):
    pass


class NameTaken(AppError):
    pass


class PreconditionFailed(AppError):
    pass


class KeyReused(AppError):
    pass


class DataChanged(AppError):
    pass


class DictionaryDamaged(AppError):
    pass


class JobDamaged(AppError):
    pass


class DataUnavailable(AppError):
    pass


class StoreUnavailable(AppError):
    pass


class StoreFull(StoreUnavailable):
    pass


class StoreReadOnly(StoreUnavailable):
    pass


class StoreAway(StoreUnavailable):
    pass


class JobsUnavailable(AppError):
    pass


class JobsAway(JobsUnavailable):
    pass


class Overloaded(AppError):
    pass


class WorkerUnavailable(AppError):
    pass


class WorkerStarts(WorkerUnavailable):
    pass


class WorkerCompiles(WorkerUnavailable):
    pass


class Stopping(AppError):
    pass


class FitAbandoned(AppError):
    pass


class WorkerFailed(AppError):
    pass


class DeviceOutOfMemory(WorkerFailed):
    pass


@dataclass(frozen=True)
class Kind:
    """How one class of exception is told over HTTP."""

    status: int
    slug: str
    title: str
    retry_after_seconds: int | None = None


KINDS: Mapping[type[Exception], Kind] = {
    MalformedBody: Kind(400, "malformed-body", "The body cannot be parsed"),
    UnsupportedMediaType: Kind(415, "unsupported-media-type", "Bodies of this kind are not read"),
    NotAcceptable: Kind(406, "not-acceptable", "Answers of this kind are not made"),
    BodyTooLarge: Kind(413, "body-too-large", "The body is too large"),
    MalformedRequest: Kind(400, "malformed-request", "The request cannot be parsed"),
    RequestTimeout: Kind(408, "request-timeout", "The request came too slowly"),
    HeadersTooLarge: Kind(431, "headers-too-large", "The headers are too large"),
    TooManyConnections: Kind(503, "too-many-connections", "Too many connections are open", retry_after_seconds=1),
    Unauthorized: Kind(401, "unauthorized", "A token is needed"),
    Forbidden: Kind(403, "forbidden", "This is not allowed"),
    RateLimited: Kind(429, "rate-limited", "The token's limit is used up"),
    InvalidFields: Kind(422, "invalid-fields", "The request has wrong values"),
    CoreError: Kind(422, "invalid-values", "The values cannot be computed with"),
    UnknownDictionary: Kind(404, "unknown-dictionary", "No such dictionary"),
    UnknownConcept: Kind(404, "unknown-concept", "No such concept"),
    UnknownJob: Kind(404, "unknown-job", "No such job"),
    NameTaken: Kind(409, "name-taken", "The name is taken by something else"),
    PreconditionFailed: Kind(412, "precondition-failed", "It is not as the request expects"),
    KeyReused: Kind(422, "idempotency-key-reused", "The idempotency key belongs to another request"),
    DataChanged: Kind(409, "data-changed", "The files of the fit have changed"),
    DictionaryDamaged: Kind(500, "dictionary-damaged", "The stored dictionary is damaged"),
    JobDamaged: Kind(500, "job-damaged", "The job's record is damaged"),
    DataUnavailable: Kind(503, "data-unavailable", "The data directory cannot be read", retry_after_seconds=10),
    StoreUnavailable: Kind(503, "store-unavailable", "The store cannot be used", retry_after_seconds=10),
    StoreFull: Kind(507, "store-full", "The store has no space left", retry_after_seconds=60),
    JobsUnavailable: Kind(503, "jobs-unavailable", "The jobs' database cannot be used", retry_after_seconds=5),
    Overloaded: Kind(503, "overloaded", "Too much is waiting already", retry_after_seconds=1),
    WorkerUnavailable: Kind(503, "worker-unavailable", "The worker is not ready", retry_after_seconds=2),
    WorkerStarts: Kind(503, "worker-unavailable", "The worker is not ready", retry_after_seconds=5),
    WorkerCompiles: Kind(503, "worker-unavailable", "The worker is not ready", retry_after_seconds=10),
    Stopping: Kind(503, "stopping", "The service stops", retry_after_seconds=5),
    FitAbandoned: Kind(500, "fit-abandoned", "The fit took the worker down"),
    DeviceOutOfMemory: Kind(507, "device-out-of-memory", "The device has too little memory for this"),
    WorkerFailed: Kind(500, "worker-failed", "The worker failed"),
}

INTERNAL = Kind(500, "internal-error", "Something is wrong in the service")

_BY_NAME: dict[str, type[Exception]] = {
    **{
        cls.__name__: cls
        for cls in vars(core_errors).values()
        if isinstance(cls, type) and issubclass(cls, Exception) and cls is not RankLost  # it ends a rank, untold
    },
    # those that have nothing but a message to tell
    **{cls.__name__: cls for cls in KINDS if issubclass(cls, AppError) and cls.__init__ is Exception.__init__},
}


def kind_of(error: Exception) -> Kind:
    """The most specific entry of the table."""
    return next((KINDS[cls] for cls in type(error).__mro__ if cls in KINDS), INTERNAL)


def error_by_name(name: str, detail: str) -> Exception:
    """An error of a worker's process, as that tells of it, as one of the two trees."""
    cls = _BY_NAME.get(name)
    if cls is None:
        return WorkerFailed(f"{name}: {detail}")
    return cls(detail)


def _field_error(entry: Mapping[str, object]) -> FieldError:
    """A pydantic error without the input that it echoes."""
    context = entry.get("ctx")
    cause = context.get("error") if isinstance(context, Mapping) else None
    message = str(cause) if isinstance(cause, Exception) else str(entry["msg"])
    loc = entry["loc"]
    assert isinstance(loc, tuple)  # noqa: S101 - pydantic's own promise
    if entry["type"] == "extra_forbidden":
        message = "unknown field"
    return FieldError(tuple(shortened(p) if isinstance(p, str) else p for p in loc), shortened(message))


def shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
