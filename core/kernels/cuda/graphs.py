"""Encodes of few rows on a CUDA device, as CUDA graphs: see `core.kernels.cuda.interface.solve`."""

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import torch

from core.kernels import URGENT
from core.kernels.cuda.encode import Encode, Solved
from core.kernels.precision import Precision

# Up to so many rows, the host takes longer to launch the kernels of a round than the device to run them.
FEW_ROWS = 16

# So many rounds begin with a gradient in TF32: on planted data and on activations of digits residuals are then about
# as small as TF32 can tell, and no round is lost. All are bound by reading D, which takes as long in float32.
ROUGH_ROUNDS = 4

MOST_GRAPHS = 16  # for one D; who asks for a new tolerance each time has none recorded

# Rows that want more than there is room for are played in vain. After one that was, as many are passed by as were in
# vain before it, up to so many: a row that is unlike the others costs nothing, and of such alone few are played.
MOST_PASSED_BY = 100

Graphs = dict[Any, "EncodeGraph | None"]

# One at a time is made or played: torch records one graph at a time, and they share cuBLAS's workspace.
_in_use = Lock()


def graph_of(graphs: Graphs, key: Any, make: Callable[[], "EncodeGraph"]) -> "EncodeGraph | None":
    """That of this key, made when it is asked for the second time."""
    if key not in graphs:
        graphs[key] = None
        for oldest in list(graphs)[:-MOST_GRAPHS]:
            graphs.pop(oldest, None)
        return None
    graph = graphs.get(key)
    if graph is None:
        graph = graphs[key] = make()
    return graph


def as_graph(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """A call that does the work again, on the tensors that it has made: on CUDA devices as one graph.

    The work, done once before on tensors that mean something, must not make the host wait.
    """
    if device.type != "cuda":
        return work
    place = _place(device)
    place.stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(place.stream):
        work()  # compiles, and gives cuBLAS its workspace, neither of which must happen within a graph
    torch.cuda.current_stream(device).wait_stream(place.stream)
    return place.record(work).replay


class _Place:
    """Where all is recorded on a device: one stream, as cuBLAS keeps a workspace of 32 MiB for each that it has seen,
    and one pool of memory, in which each graph does its passing work where the others do theirs.

    Torch allows that of graphs that are never played at once (`_in_use`) and leave nothing that another would miss:
    what they leave in the pool is theirs for as long as it is referred to, and each solve begins anew.
    """

    def __init__(self, device: torch.device) -> None:
        # A graph's work is as urgent as the stream was on which it was recorded.
        self.stream = torch.cuda.Stream(device, priority=URGENT)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()
        # for good, as a pool without a graph cannot be used again
        self._first = self.record(lambda: torch.zeros(1, device=device))

    def record(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # on that stream, since torch's own for graphs is one for all devices; what other threads ask of it is theirs
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph


_place = cache(_Place)


class EncodeGraph:
    """The rounds of an encode, recorded for other rows in the place of its own: the host starts most in one call.

    All is as in `core.kernels.cuda.interface.solve`, but for the sizes of working sets, which are what they can be
    by then, and for rows that are done, which wait for the others. Any thread may use it.
    """

    def __init__(self, encode: Encode) -> None:
        rows, device = len(encode.A), encode.A.device
        self._encode = encode
        self._widest = torch.zeros(rows, dtype=torch.int32, device=device)
        self._in_vain = self._to_pass_by = 0  # since one was not; of those that come next
        with _in_use:
            self._begin = as_graph(self._first_rounds, device)
            self._begin()
            self._go_on = as_graph(self._round, device)

    def solve(self, A: torch.Tensor) -> Solved | None:
        """None where a row wants a larger working set than there is room for, or is likely to."""
        n, encode = len(A), self._encode
        with _in_use:
            if self._to_pass_by > 0:
                self._to_pass_by -= 1
                return None
            encode.A[:n] = A
            encode.A[n:] = 0
            self._begin()
            while True:
                # copied before the host waits: who comes next, by whatever stream, finds all done
                Z, residual = encode.Z[:n].clone(), encode.residual[:n].clone()
                told = encode.told(self._widest)
                if told.widest > encode.room:
                    self._to_pass_by = min(self._in_vain, MOST_PASSED_BY)
                    self._in_vain += 1
                    return None
                if not bool(encode.going(told).any()):
                    self._in_vain = 0
                    return Solved(Z, residual, bool((told.relative > encode.tol).any()))
                self._go_on()

    def _first_rounds(self) -> None:
        """As many as begin with a gradient in TF32, and one."""
        encode = self._encode
        encode.begin()
        self._widest.zero_()
        for i in range(0 if encode.all_chosen else ROUGH_ROUNDS):
            self._look(Precision.TF32)
            encode.lower(encode.most_chosen(i))
        self._look(Precision.FLOAT32)
        self._round()

    def _round(self) -> None:
        self._encode.lower(self._encode.room)
        self._look(Precision.FLOAT32)

    def _look(self, precision: Precision) -> None:
        self._encode.look(precision)
        torch.maximum(self._widest, self._encode.rows.wanted, out=self._widest)
