"""HTTP/1.1 by uvicorn, with what it lacks: bounds on slow clients, on headers and on connections; and answers that
leave in one write.

A connection is in one of five phases: idle, headers, body, answer, lingering. Headers have a fixed time; a body has
some seconds and then must keep up a least rate (as Apache's mod_reqtimeout), so that a large upload may take its time
and a trickle may not; an answer must be read as fast; and an idle connection is closed after some time, which is
longer than proxies and load balancers keep one: closed by them, it is never closed while they send a request. Where
too many are open, the one that has been idle for longest gives way to a new one; where none is idle, a few more are
taken on which only probes are served, for a service with much to do is not to be taken for dead. While the service
itself does not take what was sent, no time counts: neither while it asks for no more, nor while it stands still, as
where its machine is paused, nor for what has come and was not read yet. One timer looks at all connections; a request
costs a few assignments.

An answer that is given before much of its body has come is a refusal, and the last of its connection. That lingers:
it is closed once the client has seen the answer and closes its side, or after some seconds in which what still comes
is thrown away. Closed at once, it would be reset by what comes, and the client might lose the answer.
"""

import asyncio
import math
import select
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, cast
from urllib.parse import unquote

import httptools
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import AppError, HeadersTooLarge, MalformedRequest, RequestTimeout, TooManyConnections
from app.http.access import WATCHING
from app.http.cycle import Cycle
from app.http.disconnects import LEAVING, REFUSED, Leaving
from app.http.observed import ID_HEADER, INSTEAD, id_of, log_unserved
from app.http.problems import ALLOWED_METHODS, answer_to
from app.http.responses import WHOLE
from app.settings import Settings

LOOK_SECONDS = 0.5  # between two looks at all connections
SPARE_SECONDS = 1.0  # idle for so long, a connection gives way where too many are open: its client is at rest
SPARE_CONNECTIONS = 32  # past the most, for probes; and whoever else is there is refused once it has asked

Phase = Literal["idle", "headers", "body", "answer", "lingering"]
Count = Callable[[str], None]  # takes the status of an answer that the app knows nothing of

EXTENSIONS: dict[str, dict[object, object]] = {WHOLE: {}}  # of ASGI


@dataclass
class _Reading:
    """How a client reads what is written to it: since when it is behind, and what it has taken since."""

    since: float
    waiting: int
    taken: int = 0


@dataclass
class _Refusal:
    """What a request is refused with, and its scope, as far as that was known then."""

    error: AppError
    scope: Scope


class BoundedProtocol(HttpToolsProtocol):
    """A connection; `bounded` makes the class that uvicorn is given."""

    settings: Settings
    watch: "_Watch"
    count: Count

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase: Phase = "headers"
        self._since = self.loop.time()
        self._looked = self._since
        self._received = 0  # bytes, in this phase
        self._header_bytes = 0  # of the line and headers that are being parsed
        self._untold = 0  # bytes since the parser was last at an end, or at a part of a body: of headers, or trailers
        self._reading: _Reading | None = None
        self.is_spare = False
        self._leaving = Leaving()
        self._served: RequestResponseCycle | None = (
            None  # `cycle` is the last that came, and may wait in the pipeline
        )
        self._is_within = False  # a request, of which the first bytes have come
        self._refused = False
        self._refusal: _Refusal | None = None  # of what follows a request that is still being answered

    # -- what happens on the connection -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._are_too_many() and not self.watch.make_room(self):
            self.is_spare = True
            if self._are_too_many() and not self.watch.make_room(self):
                self._refuse(_Refusal(self._too_many(), self._coming()))
        self.watch.begin(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._served is not None:
            self._tell_gone(self._served)
        self._leaving.leave()

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self._phase == "lingering":
            return
        if self._phase == "idle":
            self._enter("headers")
        if self._phase == "headers":
            self._received += len(data)
        self._untold += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserInvalidMethodError:
            told = f"a request of HTTP/1.1 begins with its method; there are {', '.join(ALLOWED_METHODS)}"
            self._refuse_next(MalformedRequest(told))
        except httptools.HttpParserError:
            self._refuse_next(MalformedRequest("this is not a request of HTTP/1.1"))
        if self._untold > self.settings.max_header_bytes and not self._is_refused:
            self._refuse_headers()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            # Who asks for another protocol (HTTP/2, as Java's client does by itself) is served in this one. The
            # parser takes a body for the other's, and is at its end: a new one reads the request without that.
            if self._is_refused:
                return
            (end,) = error.args
            version = self.parser.get_http_version().encode()
            request = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
            for name, value in self.headers:
                request += () if name == b"upgrade" else (name, b": ", value, b"\r\n")
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            self._parse(b"".join((*request, b"\r\n", data[end:])))

    @property
    def _is_read_again(self) -> bool:
        """Whether this is a request that asks for another protocol, read for the first time."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_within = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._header_bytes = len(self.url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase == "body":  # a trailer, after a body in chunks: nobody asks for any
            return
        super().on_header(name, value.rstrip(b" \t"))  # which is none of its value (RFC 9110, 5.5)
        self._header_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        if self._header_bytes > self.settings.max_header_bytes and not self._is_refused:
            self._refuse_headers()
        if self._is_refused or self._is_read_again:
            return
        is_old = self.parser.get_http_version() == "1.0"
        if (told := self._why_unread(is_old)) is not None:
            self._refuse_next(MalformedRequest(told))
            return
        if is_old:
            self.expect_100_continue = False  # it knows of none (RFC 9110, 10.1.1)
        self._enter("body")
        self.scope["extensions"] = EXTENSIONS
        self.scope[LEAVING] = self._leaving  # type: ignore[literal-required]  # scopes may have keys of one's own
        super().on_headers_complete()

    def _why_unread(self, is_old: bool) -> str | None:
        """What RFC 9112 has refused that the parser lets pass, and what is no server's; None where nothing is."""
        if self.parser.get_method() == b"CONNECT":  # of a place, where others have a path
            return "CONNECT asks a proxy for a tunnel, and this is none"
        if not self.url.startswith(b"/") and not _has_path(self.url):
            return "its target is no path, such as /readyz, nor a URL with one"
        if not is_old and [name for name, _ in self.headers].count(b"host") != 1:  # 3.2
            return "a request of HTTP/1.1 has one header Host"
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (is_old or codings != [b"chunked"]):  # 6.1; all that the parser undoes are chunks
            return (
                "Transfer-Encoding is chunked, of HTTP/1.1, or none; Content-Encoding says how a body is compressed"
            )
        return None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.__class__ = Cycle  # uvicorn makes it, and has no setting for another
        self._served = cycle
        if self.is_spare and cycle.scope["path"] not in WATCHING:
            self.is_spare = False
            if self._are_too_many():
                self.is_spare, cycle.keep_alive = True, False
                cycle.scope[INSTEAD] = self._answer_too_many  # type: ignore[literal-required]
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        if self._is_refused:
            return
        self._received += len(body)
        self._untold = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused or self._is_read_again:
            return
        self._is_within = False
        self._enter("idle" if self.cycle.response_complete else "answer")
        super().on_message_complete()
        if not self.pipeline:  # uvicorn waits until more of the body is asked for, and would not see who leaves
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """As uvicorn's, but for its timer: setting and ending one for each answer costs more than `look` does."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if isinstance(self.cycle, Cycle) and self.cycle.is_refusal:  # one that waits in the pipeline is none yet
            self._linger()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._phase == "answer":
            self._enter("headers" if self._is_within else "idle")
            self._received = int(self._is_within)  # of the next request

    # -- what is looked at now and then -------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Close the connection if its client is too slow."""
        elapsed, self._looked = now - self._looked, now
        stood_still = max(0.0, elapsed - LOOK_SECONDS)
        if self._reading is not None:
            self._reading.since += stood_still
        if self._is_read_too_slowly(now):
            self.transport.abort()
        if self.transport.is_closing() or self._refused:
            return
        self._since += elapsed if self.flow.read_paused else stood_still
        taken = now - self._since
        if taken > self._allowed_seconds() and (self._phase == "lingering" or not self.has_unread()):
            self._give_up()

    def _give_up(self) -> None:
        """Close the connection, and say why where a request has begun."""
        if self._phase == "headers" and self._received:
            told = f"the headers took longer than {self.settings.header_seconds:g} s"
            self._refuse(_Refusal(RequestTimeout(told), self._coming()))
        elif self._phase == "body":
            told = f"the body came too slowly, with less than {self.settings.min_bytes_per_second} bytes a second"
            self._refuse(_Refusal(RequestTimeout(told), self._coming()))
        else:
            self.transport.close()

    def has_unread(self) -> bool:
        """Whether anything has come that the loop has not read yet: closed now, the client would lose its request."""
        looked_at = select.poll()
        looked_at.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(looked_at.poll(0))

    def rested(self, now: float) -> float:
        """Seconds since which nothing is asked or answered; 0 where something is, or where it is being closed."""
        return 0.0 if self._phase != "idle" or self.transport.is_closing() else now - self._since

    def _allowed_seconds(self) -> float:
        """That the client may take for this phase; while it waits for its answer, it takes none."""
        if self._phase == "body":
            return self._allowed(self._received)
        told = self.settings
        fixed = {
            "headers": told.header_seconds, "idle": told.keep_alive_seconds, "lingering": told.transfer_seconds
        }  # fmt: skip
        return fixed.get(self._phase, math.inf)

    def _allowed(self, transferred: int) -> float:
        return self.settings.transfer_seconds + transferred / self.settings.min_bytes_per_second

    def _is_read_too_slowly(self, now: float) -> bool:
        waiting = self.transport.get_write_buffer_size()
        if waiting == 0:
            self._reading = None
            return False
        if self._reading is None:
            self._reading = _Reading(now, waiting)
        self._reading.taken += max(0, self._reading.waiting - waiting)
        self._reading.waiting = waiting
        return now - self._reading.since > self._allowed(self._reading.taken)

    # -- where too many are open --------------------------------------------------------------------------

    def _are_too_many(self) -> bool:
        """Of this one's kind: those that anything is answered on, or those of probes alone."""
        most = SPARE_CONNECTIONS if self.is_spare else self.settings.max_connections
        if len(self.connections) <= most:  # of both kinds together
            return False
        others = cast(set[BoundedProtocol], self.connections)
        return sum(other.is_spare == self.is_spare for other in others) > most

    def _too_many(self) -> TooManyConnections:
        return TooManyConnections(f"{self.settings.max_connections} connections are open already")

    async def _answer_too_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An app, in the place of the service's."""
        await answer_to(self._too_many()).response_to(Request(scope))(scope, receive, send)

    # -- ending it ----------------------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since, self._received, self._untold = phase, self.loop.time(), 0, 0

    def _linger(self) -> None:
        """Have the client know that nothing follows, and close when it does."""
        self._enter("lingering")
        self.transport.write_eof()

    def _refuse_headers(self) -> None:
        limit = self.settings.max_header_bytes
        self._refuse_next(HeadersTooLarge(f"the request's line and headers are more than {limit} bytes"))

    @property
    def _is_refused(self) -> bool:
        """Whether what comes is a request that is refused, or follows one."""
        return self._refused or self._refusal is not None

    def _coming(self) -> Scope:
        """The scope of the request that comes. Before its headers are there, it has what is known of it; to be told
        and logged, not to be served."""
        if self._phase == "body":
            return cast(Scope, self.cycle.scope)
        if not self._is_within or not self.url:
            return {"type": "http", "method": "", "path": "", "headers": []}
        method, path = self.parser.get_method().decode(), unquote(self.url.partition(b"?")[0].decode("latin-1"))
        return {"type": "http", "method": method, "path": path, "headers": self.headers}

    def _refuse_next(self, error: AppError) -> None:
        """Refuse the request that comes, after the answers that those before it are due."""
        refusal = _Refusal(error, self._coming())
        if self._phase != "answer" and not (self.pipeline and self.pipeline[0][0] is self.cycle):
            self._refuse(refusal)
            return
        if self.cycle.more_body:  # what came of it is not to be served
            self.pipeline.popleft()
        self._refusal = refusal
        self.flow.pause_reading()

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer with the error's problem, unless the request has its answer or the beginning of one, and close."""
        self._refused = True
        scope, served = refusal.scope, self._served
        is_served = served is not None and served.scope is scope
        is_answered = served is not None and is_served and served.response_started
        if not is_answered and not self.transport.is_closing():
            answer = answer_to(refusal.error).response_to(Request(scope))
            status, seconds = str(answer.status_code), self.loop.time() - self._since
            if is_served:
                scope[REFUSED] = status
            else:  # nobody else knows of it
                self.count(status)
                if self.settings.access_log:
                    log_unserved(scope, status, seconds)
            self.transport.write(self._raw(answer, scope))
        if served is not None:
            self._tell_gone(served)
        self.transport.close()

    def _raw(self, answer: Response, scope: Scope) -> bytes:
        """A whole answer, the connection's last."""
        own = (ID_HEADER, id_of(scope)), (b"connection", b"close")
        headers = *self.server_state.default_headers, *answer.raw_headers, *own
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        body = b"" if scope["method"] == "HEAD" else answer.body
        return b"".join((STATUS_LINE[answer.status_code], *lines, b"\r\n", body))

    @staticmethod
    def _tell_gone(cycle: RequestResponseCycle) -> None:
        """Have what serves a request know that nobody is there any more to be answered."""
        if not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()


def _has_path(url: bytes) -> bool:
    try:
        return bool(httptools.parse_url(url).path)
    except httptools.HttpParserError:
        return False


class _Watch:
    """Looks at every connection while there are any."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: BoundedProtocol) -> None:
        if self._timer is None:
            self._timer = connection.loop.call_later(
                LOOK_SECONDS, self._look, connection.loop, connection.connections
            )

    def make_room(self, connection: BoundedProtocol) -> bool:
        """Close, for a new connection, the one of its kind that has rested for longest; False where none has for
        long."""
        now, every = connection.loop.time(), cast(set[BoundedProtocol], connection.connections)
        rested = [(other.rested(now), other) for other in every if other.is_spare == connection.is_spare]
        for seconds, other in sorted(rested, key=itemgetter(0), reverse=True):
            if seconds < SPARE_SECONDS:
                break
            if not other.has_unread():
                other.transport.close()
                return True
        return False

    def _look(self, loop: asyncio.AbstractEventLoop, connections: "set[Any]") -> None:
        now = loop.time()
        for connection in list(connections):
            connection.look(now)
        self._timer = loop.call_later(LOOK_SECONDS, self._look, loop, connections) if connections else None


def bounded(settings: Settings, count: Count) -> type[BoundedProtocol]:
    """The protocol with these settings' bounds, which has answers counted that are its own."""
    told = {"settings": settings, "watch": _Watch(), "count": staticmethod(count)}
    return type("Bounded", (BoundedProtocol,), told)
