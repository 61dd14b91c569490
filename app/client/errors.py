"""What a call of the client can raise. The class is named as the problem's type: `unknown-dictionary`.

    DictserveError
    ├── NotFound                 404
    │   ├── UnknownDictionary
    │   ├── UnknownConcept
    │   └── UnknownJob
    ├── InvalidRequest           422 (also a ValueError)
    │   ├── InvalidFields        a field, or a value of the array, is wrong: see `errors`
    │   ├── InvalidValues        the array does not fit the dictionary
    │   └── IdempotencyKeyReused
    ├── Unauthorized             no token, or one that is not known: DICTSERVE_TOKEN
    ├── Forbidden                the token does not allow this
    ├── MalformedBody            the file or array cannot be read
    ├── BodyTooLarge             send fewer rows at a time
    ├── UnsupportedMediaType
    ├── NotAcceptable
    ├── MethodNotAllowed
    ├── MalformedRequest         not HTTP/1.1, or something in between has damaged it
    ├── RequestTimeout           the request went out too slowly
    ├── HeadersTooLarge
    ├── Unavailable              503, 429, a proxy's 502 and 504, and all below: the same call may work later
    │   ├── Unreachable          no answer (also a ConnectionError)
    │   ├── TimedOut             no whole answer in time (also a TimeoutError)
    │   ├── TooManyConnections
    │   ├── RateLimited
    │   ├── Overloaded
    │   ├── WorkerUnavailable
    │   ├── Stopping
    │   ├── DataUnavailable
    │   ├── StoreUnavailable
    │   └── JobsUnavailable
    ├── NameTaken                the store has something else by that name
    ├── PreconditionFailed       it is not as the request expected
    ├── DataChanged              files of a fit are not what they were
    ├── StoreFull
    ├── DeviceOutOfMemory
    ├── DictionaryDamaged
    ├── JobDamaged
    ├── WorkerFailed
    ├── FitAbandoned
    ├── InternalError
    ├── UnreadableAnswer         the answer is not what the service sends: see the URL
    ├── ClientClosed             a call of a client after its `close()` (also a RuntimeError)
    ├── JobFailed                a fit that was waited for failed; `type` tells its problem
    ├── JobCancelled             ... or was cancelled
    └── StillRunning             ... or has not ended in time (also a TimeoutError)

A problem whose type is not known here is raised by its status: as NotFound, Unavailable or DictserveError.
Nothing is imported here that a program which only catches these would not want.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.client.text import printable

MAX_TOLD_CHARACTERS = 200  # of an answer that is no problem document


class DictserveError(Exception):
    """Base of the client's errors; ``str()`` is the service's sentence on what is wrong and what to do, without
    characters that a terminal would take for orders.

    Attributes:
        status: of the answer; None where there was none.
        type: the problem's type, a slug that stays the same from version to version.
        detail: that sentence, as it came.
        errors: of wrong fields, each ``{"loc": ["data", 3, 5], "msg": "…"}``; at most 20.
    """

    slug: str

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        type: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(printable(detail))
        self.detail = detail
        self.status = status
        self.type = type or self.slug
        self.errors = list(errors)

    def __init_subclass__(cls) -> None:
        cls.slug = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
        _BY_SLUG[cls.slug] = cls


DictserveError.slug = "dictserve-error"
_BY_SLUG: dict[str, type[DictserveError]] = {}


class NotFound(DictserveError):
    pass


class UnknownDictionary(NotFound):
    pass


class UnknownConcept(NotFound):
    pass


class UnknownJob(NotFound):
    pass


class InvalidRequest(DictserveError, ValueError):
    pass


class InvalidFields(InvalidRequest):
    pass


class InvalidValues(InvalidRequest):
    pass


class IdempotencyKeyReused(InvalidRequest):
    pass


class MalformedBody(DictserveError):
    pass


class BodyTooLarge(DictserveError):
    pass


class UnsupportedMediaType(DictserveError):
    pass


class NotAcceptable(DictserveError):
    pass


class Unauthorized(DictserveError):
    pass


class Forbidden(DictserveError):
    pass


class MalformedRequest(DictserveError):
    pass


class RequestTimeout(DictserveError):
    pass


class HeadersTooLarge(DictserveError):
    pass


class MethodNotAllowed(DictserveError):
    pass


class Unavailable(DictserveError):
    pass


class Unreachable(Unavailable, ConnectionError):
    pass


class TimedOut(Unavailable, TimeoutError):
    pass


class RateLimited(Unavailable):
    pass


class TooManyConnections(Unavailable):
    pass


class Overloaded(Unavailable):
    pass


class Stopping(Unavailable):
    pass


class WorkerUnavailable(Unavailable):
    pass


class DataUnavailable(Unavailable):
    pass


class StoreUnavailable(Unavailable):
    pass


class JobsUnavailable(Unavailable):
    pass


class NameTaken(DictserveError):
    pass


class DataChanged(DictserveError):
    pass


class PreconditionFailed(DictserveError):
    pass


class StoreFull(DictserveError):
    pass


class DeviceOutOfMemory(DictserveError):
    pass


class DictionaryDamaged(DictserveError):
    pass


class JobDamaged(DictserveError):
    pass


class WorkerFailed(DictserveError):
    pass


class FitAbandoned(DictserveError):
    pass


class InternalError(DictserveError):
    pass


class UnreadableAnswer(DictserveError):
    pass


class ClientClosed(DictserveError, RuntimeError):
    pass


class JobFailed(DictserveError):
    pass


class JobCancelled(DictserveError):
    pass


class StillRunning(DictserveError, TimeoutError):
    pass


COME_BACK_LATER = frozenset({429, 502, 503, 504})  # 502 and 504 are a proxy's, while the service starts again
_BY_STATUS: dict[int, type[DictserveError]] = {
    404: NotFound,
    422: InvalidRequest,
    **dict.fromkeys(COME_BACK_LATER, Unavailable),
}
_OF_NO_PROBLEM = _BY_STATUS | {404: UnreadableAnswer}  # of another server, or below another path than the service's


def error_of(status: int, body: bytes | bytearray, location: str | None = None) -> DictserveError:
    """The error that an answer tells of: a problem of RFC 9457, or whatever a proxy in between has to say.

    Args:
        location: where another answer is to be had, as it says.
    """
    try:
        problem = json.loads(body)
        slug, detail = str(problem["type"]), str(problem["detail"])
        errors = list(problem.get("errors") or ())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = " ".join(body[:MAX_TOLD_CHARACTERS].decode(errors="replace").split())
        if location is not None and 300 <= status < 400:
            text = f"it points to {location[:MAX_TOLD_CHARACTERS]}, and the client goes nowhere but to its own URL"
        return _OF_NO_PROBLEM.get(status, DictserveError)(
            f"the answer was {status}: {text or 'an empty body'}", status=status
        )
    cls = _BY_SLUG.get(slug) or _BY_STATUS.get(status, DictserveError)
    return cls(detail, status=status, type=slug, errors=errors)
