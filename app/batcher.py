"""Requests of one dictionary are solved together: as many rows as wait, up to a budget, and no waiting for more.

What comes in one turn of the loop goes together. While all workers are busy requests gather, and when one frees up,
the dictionary that has waited longest is served: dictionaries take turns, so that none waits for more than one batch
of each other. A request larger than the budget is sent in pieces, between which others get their turn; those of one
request may be solved by several workers at once. A worker answers as many of a batch's rows as it comes to in a
second or so: the rest waits for its dictionary's next turn, and the request that it had begun with goes to the end of
that dictionary's line.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from app.balance import Load, RowSolver, least_loaded
from app.errors import Overloaded, WorkerUnavailable
from app.worker.messages import Key


@dataclass(eq=False)
class _Request:
    key: Key
    rows: np.ndarray
    done: "asyncio.Future[list[np.ndarray]]"
    nbytes: int
    on_sent: Callable[[], None] | None = None
    solved: int = 0
    answer: list[np.ndarray] = field(default_factory=list)
    waiting: "deque[_Piece]" = field(default_factory=deque)  # of its rows those neither solved nor with a worker

    def __post_init__(self) -> None:
        self.waiting.append(_Piece(self, 0, len(self.rows)))

    def take(self, budget: int) -> "_Piece":
        """Of the first piece that waits as many rows as that."""
        first = self.waiting.popleft()
        if len(first) <= budget:
            return first
        piece, rest = first.split(budget)
        self.waiting.appendleft(rest)
        return piece

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def deliver(self, start: int, part: list[np.ndarray]) -> None:
        """Take the answer to the rows from ``start`` on; the last part settles the request."""
        if self.done.done():
            return
        count = len(part[0])
        if count == len(self.rows):
            self.answer = part
        else:
            if not self.answer:
                self.answer = [np.empty((len(self.rows), *array.shape[1:]), array.dtype) for array in part]
            for whole, array in zip(self.answer, part, strict=True):
                whole[start : start + count] = array
        self.solved += count
        if self.solved == len(self.rows):
            self.done.set_result(self.answer)


@dataclass(eq=False, slots=True)
class _Piece:
    request: _Request
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def split(self, count: int) -> "tuple[_Piece, _Piece]":
        """The first so many rows, and those behind them."""
        between = min(self.start + count, self.stop)
        return _Piece(self.request, self.start, between), _Piece(self.request, between, self.stop)


class Batcher:
    """Groups requests by dictionary and keeps the workers fed.

    Attributes:
        loads: what is under way with each worker.
        waiting_bytes, waiting_rows: of all requests that have no answer yet.
    """

    def __init__(self, solvers: Iterable[RowSolver], batch_rows: int, *, queue_bytes: int, queue_rows: int) -> None:
        self.loads = [Load(solver) for solver in solvers]
        self._batch_rows = batch_rows
        self._queue_bytes = queue_bytes
        self._queue_rows = queue_rows
        self._queues: OrderedDict[Key, deque[_Request]] = OrderedDict()  # the next to be served comes first
        self._alone: deque[_Piece] = deque()  # of a batch that failed: each is sent again, by itself
        self._in_flight: set[asyncio.Future[list[np.ndarray]]] = set()
        self._feeding = False  # before long: once all that has come is in the queue
        self.waiting_bytes = 0
        self.waiting_rows = 0

    def add(self, solver: RowSolver) -> None:
        """Feed this worker, too."""
        self.loads.append(Load(solver))

    async def solve(
        self, key: Key, rows: np.ndarray, answer_columns: int, *, on_sent: Callable[[], None] | None = None
    ) -> list[np.ndarray]:
        """Encode or decode rows: the worker's arrays for exactly these rows, in their order.

        Args:
            on_sent: called when rows of these go to the worker; more than once where they go in pieces.

        Raises:
            Overloaded: too many bytes or rows wait already. What exceeds the queue by itself is taken when nothing
                waits.
            WorkerUnavailable: all workers are stuck, and have rows already, maybe of clients that have left.
            Whatever the solver raises for a batch that these rows were in.
        """
        nbytes = rows.nbytes + len(rows) * answer_columns * rows.itemsize
        if self.waiting_rows and self.waiting_bytes + nbytes > self._queue_bytes:
            raise Overloaded(f"{self.waiting_bytes} bytes of requests wait already; send this one again in a moment")
        if self.waiting_rows and self.waiting_rows + len(rows) > self._queue_rows:
            raise Overloaded(f"{self.waiting_rows} rows wait already; send this request again in a moment")
        if (self._queues or self._in_flight) and all(load.solver.is_stuck for load in self.loads):
            raise WorkerUnavailable("no worker has been heard of lately, and others wait; send the request again")
        loop = asyncio.get_running_loop()
        request = _Request(key, rows, loop.create_future(), nbytes, on_sent)
        self._queue_of(key).append(request)
        self.waiting_bytes += nbytes
        self.waiting_rows += len(rows)
        if not self._feeding:
            self._feeding = True
            loop.call_soon(self._feed)
        try:
            return await request.done
        finally:
            self.waiting_bytes -= nbytes
            self.waiting_rows -= len(rows)
            if request.waiting:  # it failed or its client left: nothing more of it is to be solved
                request.waiting.clear()  # pieces hold on to it
                self._leave(request)

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def _feed(self) -> None:
        self._feeding = False
        while self._alone and self._alone[0].request.done.done():  # its client has left
            self._alone.popleft()
        while self._alone or self._queues:
            key = self._alone[0].request.key if self._alone else next(iter(self._queues))
            load = least_loaded(self.loads, key)
            if load is None:
                return
            self._send(load, [self._alone.popleft()] if self._alone else self._take(key))

    def _take(self, key: Key) -> list[_Piece]:
        """Pieces of waiting requests for this key, up to the row budget; an unfinished request goes to the back of
        its queue, and this to the back of all."""
        budget, pieces, unfinished = self._batch_rows, [], []
        queue = self._queues.pop(key)
        while queue and budget > 0:
            request = queue.popleft()
            if request.on_sent is not None:
                request.on_sent()
            pieces.append(request.take(budget))
            budget -= len(pieces[-1])
            if request.waiting:
                unfinished.append(request)
        queue.extend(unfinished)
        if queue:
            self._queues[key] = queue
        return pieces

    def _queue_of(self, key: Key) -> deque[_Request]:
        """That of a key, which is the last to be served where there was none."""
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        return queue

    def _leave(self, request: _Request) -> None:
        """Take a request out of its queue, if it is there."""
        queue = self._queue_of(request.key)
        with contextlib.suppress(ValueError):
            queue.remove(request)
        if not queue:
            del self._queues[request.key]

    def _send(self, load: Load, pieces: list[_Piece]) -> None:
        rows = [piece.request.rows[piece.start : piece.stop] for piece in pieces]
        try:
            sent = asyncio.ensure_future(load.solver.solve(pieces[0].request.key, rows))
        except Exception as error:  # whoever waits is told of it, since nobody called this
            for piece in pieces:
                piece.request.fail(error)
            return
        count = sum(map(len, rows))
        load.batches += 1
        load.rows += count
        self._in_flight.add(sent)
        sent.add_done_callback(partial(self._landed, load, count, pieces))

    def _put_back(self, rests: Sequence[tuple[_Piece, bool]]) -> None:
        """Have rows wait again that the worker has not come to: first of their dictionary's, or last where it had
        begun with a request."""
        for rest, is_begun in reversed(rests):
            request = rest.request
            if request.done.done():  # its client has left, or another piece of it has failed
                continue
            if request.waiting:
                self._leave(request)
            request.waiting.appendleft(rest)
            queue = self._queue_of(request.key)
            (queue.append if is_begun else queue.appendleft)(request)

    def _landed(self, load: Load, rows: int, pieces: list[_Piece], sent: "asyncio.Future[list[np.ndarray]]") -> None:
        self._in_flight.discard(sent)
        load.batches -= 1
        load.rows -= rows
        error = sent.exception()
        if error is None:
            solved, offset = len(sent.result()[0]), 0
            load.solved_batches += 1
            load.solved_rows += solved
            rests: list[tuple[_Piece, bool]] = []
            for piece in pieces:
                count = min(len(piece), solved - offset)
                if count:
                    part = [array[offset : offset + count] for array in sent.result()]
                    piece.request.deliver(piece.start, part)
                    offset += count
                if count < len(piece):
                    rests.append((piece.split(count)[1], count > 0))
            self._put_back(rests)
        elif len(pieces) == 1 or isinstance(error, WorkerUnavailable):
            for piece in pieces:
                piece.request.fail(error)
        else:  # one request's fault is not to be its neighbours'
            self._alone.extend(pieces)
        self._feed()
