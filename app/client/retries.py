"""When a call is sent again, how long that waits, and when it is given up. No I/O: both clients ask here."""

import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from numbers import Integral, Real
from typing import Any

import httpx

from app.client.answers import Answer
from app.client.calls import Call, T
from app.client.errors import COME_BACK_LATER, DictserveError, TimedOut, Unreachable, error_of
from app.client.patience import LONGEST_SECONDS, Left

logger = logging.getLogger("dictserve.client")

CONNECT_SECONDS = 10.0
ONCE_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.25
MAX_PAUSE_SECONDS = 8.0
LONG_SECONDS = 5.0  # a `Retry-After` of so much is of what takes its time, not of too much to do
TOLD_SECONDS = 1.0  # a pause of so much, somebody may wonder about

NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
ON_THE_WAY = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class Policy:
    """How patient calls are.

    Attributes:
        retries: how often a call is sent again, at most. Where `Retry-After` is long the service is at something
            that takes its time, as compiling does, and is asked again until it is done: that does not count, unless
            this is 0, at which nothing is sent again.
        timeout_seconds: of a whole call, with its retries and their pauses.
    """

    retries: int
    timeout_seconds: float

    def __post_init__(self) -> None:
        """Raises ValueError where either is no such number."""
        if not isinstance(self.timeout_seconds, Real) or not self.timeout_seconds > 0:
            raise ValueError(f"timeout is {self.timeout_seconds!r}; it is a number of seconds above 0 (or inf)")
        if not isinstance(self.retries, Integral) or self.retries < 0:
            raise ValueError(f"retries is {self.retries!r}; it is a whole number of at least 0")
        object.__setattr__(self, "timeout_seconds", float(self.timeout_seconds))  # numpy's would round a clock's time

    def once(self) -> "Policy":
        """Of one attempt, and not a long one: what is asked so is how it is now."""
        return Policy(0, min(self.timeout_seconds, ONCE_SECONDS))


class Attempts:
    """The attempts of one call: each is followed by `pause_after_answer` or `pause_after_error`, then by a pause."""

    def __init__(self, policy: Policy, call: Call[T], url: str) -> None:
        self._policy = policy
        self._call = call
        self._url = url
        self._retries = 0  # those that are counted
        self._doubled_seconds = FIRST_PAUSE_SECONDS
        self._deadline = time.monotonic() + min(policy.timeout_seconds, LONGEST_SECONDS)

    def request(self) -> dict[str, Any]:
        """What httpx is told of the next attempt, but for its body."""
        call, left = self._call, Left(self.left)
        return {
            "method": call.method,
            "url": call.path,
            "params": call.query,
            "headers": call.all_headers(),
            "timeout": httpx.Timeout(left, connect=min(left, CONNECT_SECONDS)),
        }

    def left(self) -> float:
        """Seconds left for the call.

        Raises:
            TimedOut: there are none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self.timed_out()
        return left

    def pause_after_answer(self, answer: Answer) -> float:
        """Seconds to wait before the next attempt, after an answer that is not good.

        Raises:
            DictserveError: what the answer tells; the call is not sent again.
        """
        error = error_of(answer.status, answer.body, answer.headers.get("location"))
        if answer.status not in COME_BACK_LATER or not self._call.is_repeatable:
            raise error
        return self._pause(error, _retry_after_seconds(answer.headers.get("retry-after", "")))

    def pause_after_error(self, error: httpx.TransportError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            TimedOut, Unreachable: the call is not sent again.
        """
        unreachable = Unreachable(f"no answer from {self._url}: {error or type(error).__name__}")
        if isinstance(error, NOTHING_SENT) or (self._call.is_repeatable and isinstance(error, ON_THE_WAY)):
            self.left()
            return self._pause(unreachable, 0.0)
        raise self.timed_out() if isinstance(error, httpx.TimeoutException) else unreachable

    def timed_out(self) -> TimedOut:
        return TimedOut(f"no whole answer from {self._url} within {self._policy.timeout_seconds:g} s")

    def _pause(self, error: DictserveError, wanted_seconds: float) -> float:
        """Doubling, with chance in it so that clients do not come back all at once; never less than asked for."""
        pause = max(wanted_seconds, self._doubled_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        self._doubled_seconds = min(2 * self._doubled_seconds, MAX_PAUSE_SECONDS)
        if wanted_seconds < LONG_SECONDS or not self._policy.retries:
            self._retries += 1
        if self._retries > self._policy.retries or time.monotonic() + pause >= self._deadline:
            raise error
        if pause >= TOLD_SECONDS:
            logger.info("%s; asked again in %.0f s", error, pause)
        return pause


def _retry_after_seconds(value: str) -> float:
    """Of the header: seconds or a date (RFC 9110); 0 where it is neither."""
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
