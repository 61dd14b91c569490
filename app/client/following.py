"""A job followed to its end: server-sent events where they come through, else a look now and then. No I/O here.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from app.client.answers import OF_JOBS, known
from app.client.calls import Record, job_path
from app.client.errors import DictserveError, StillRunning, UnreadableAnswer
from app.client.patience import Left
from app.client.records import ENDED, Progress, progress_of
from app.client.retries import CONNECT_SECONDS, Policy

LOOK_SECONDS = 1.0  # between two looks at a job whose events do not come through
QUIET_SECONDS = 40.0  # without so much as a keep-alive: the stream is taken for broken
MOMENT_SECONDS = 0.001
MANY = 1_000_000  # times that a service that does not answer is asked: it is time that ends this
EVENT_STREAM = "text/event-stream"
QUIET = "the stream has gone quiet"


class Following:
    """What is known of a job while it is followed.

    Attributes:
        record: the job's record, kept up with what has been told.
        has_stream: whether its events may come through, as the service sends them.
    """

    def __init__(self, record: Record, timeout_seconds: float | None) -> None:
        self.record = record
        self.has_stream = True
        self._deadline = None if timeout_seconds is None else time.monotonic() + float(timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._is_last_look = False  # for want of time
        self._quiet_until = 0.0
        self._last_event_id = ""
        self._text = bytearray()

    @property
    def ended(self) -> bool:
        return self.record["state"] in ENDED

    @property
    def listens(self) -> bool:
        """Whether more of the stream is of use."""
        return self.has_stream and not self.ended

    def request(self) -> dict[str, Any]:
        """What httpx is told, to ask for the events. Those that have been told are not told again."""
        self._restart_quiet()
        quiet = Left(self._refuse_quiet)
        return {
            "method": "GET",
            "url": f"{job_path(self.record['id'])}/events",
            "headers": {"Accept": EVENT_STREAM}
            | ({"Last-Event-ID": self._last_event_id} if self._last_event_id else {}),
            "timeout": httpx.Timeout(quiet, connect=min(quiet, CONNECT_SECONDS)),
        }

    def quiet(self) -> float:
        """Seconds for which the stream may still tell nothing."""
        return max(self._quiet_until - time.monotonic(), 0.0)

    def pause(self) -> float:
        """Seconds until the next look.

        Raises:
            StillRunning: the time is up.
        """
        self._refuse_late()
        return min(self._left(), LOOK_SECONDS)

    def patience(self, policy: Policy) -> Policy:
        """Of a look at the job, for as long as there is time, and a moment at least."""
        left = max(self._left(), LOOK_SECONDS)
        self._is_last_look = left < policy.timeout_seconds
        return Policy(retries=MANY, timeout_seconds=min(policy.timeout_seconds, left))

    def unanswered(self, error: DictserveError) -> DictserveError:
        """What to raise where the service was not there to be asked.

        Raises:
            StillRunning: the time is up.
        """
        if self._is_last_look:
            raise self._still_running()
        told = f"{error.detail}; job {self.record['id']} goes on once the service is back"
        return type(error)(told, status=error.status, type=error.type)

    def opened(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the answer is the events. A proxy may not let them through; then they are not asked for again."""
        self._text.clear()
        self.has_stream = status != 200 or headers.get("content-type", "").startswith(EVENT_STREAM)
        return status == 200 and self.has_stream

    def feed(self, chunk: bytes) -> Iterator[Progress]:
        """What a piece of the stream tells.

        Raises:
            StillRunning: the time is up.
        """
        self._text = (self._text + chunk).replace(b"\r\n", b"\n")  # a CR at the end waits for its LF
        while (end := self._text.find(b"\n\n")) >= 0:
            event = bytes(self._text[:end])
            del self._text[: end + 2]
            yield from self._take_event(event)
        self._refuse_late()
        self._restart_quiet()

    def broke_off(self, error: httpx.RequestError) -> None:
        """The stream did. It is asked for again, unless something in between has garbled it."""
        if isinstance(error, httpx.DecodingError):
            self.has_stream = False

    def take_record(self, record: Record) -> Iterator[Progress]:
        """What the job's record tells, if that is anything new."""
        before, self.record = self.record["progress"], record
        if record["progress"] != before:
            yield progress_of(record)

    def _take_event(self, event: bytes) -> Iterator[Progress]:
        before = self.record
        try:
            news = list(self._read_event(event))
        except (ValueError, LookupError, RecursionError, UnreadableAnswer):  # something in between has changed it
            self.record, self.has_stream = before, False
            return
        yield from news

    def _read_event(self, event: bytes) -> Iterator[Progress]:
        fields = dict(line.partition(": ")[::2] for line in event.decode().split("\n"))
        self._last_event_id = fields.get("id", self._last_event_id)
        if fields.get("event") == "end":
            yield from self.take_record(known(self.record | _object(fields["data"]), OF_JOBS))
        elif fields.get("event") == "progress":
            progress = _object(fields["data"])
            state = progress.pop("state", "running")  # where an earlier service does not say
            yield from self.take_record(known(self.record | {"state": state, "progress": progress}, OF_JOBS))

    def _left(self) -> float:
        return math.inf if self._deadline is None else self._deadline - time.monotonic()

    def _restart_quiet(self) -> None:
        """From now on the stream may be quiet for so long: a moment at least, for a job is looked at once, however
        short the time."""
        self._quiet_until = time.monotonic() + min(max(self._left(), MOMENT_SECONDS), QUIET_SECONDS)

    def _refuse_quiet(self) -> float:
        left = self.quiet()
        if left <= 0:
            raise httpx.ReadTimeout(QUIET)
        return left

    def _refuse_late(self) -> None:
        if self._left() <= 0 and not self.ended:
            raise self._still_running()

    def _still_running(self) -> StillRunning:
        told = f"has not ended within {self._timeout_seconds:g} s; it is {self.record['state']}"
        return StillRunning(f"job {self.record['id']} {told}")


def _object(text: str) -> dict[str, Any]:
    return known(json.loads(text), {})
