"""A CUDA device that the CPU stands in for: tensors on it compute on the CPU, and keep the rules of a GPU.

What a GPU refuses is refused: tensors of two devices in one operation, a host that waits where it must not, a graph
that does what cannot be repeated, a product whose precision another thread may turn. What it counts is counted: the
memory that tensors take, and its peak. Graphs are played again as they were recorded. Who reads or writes what
another stream has written must have been told to wait for it. Kernels are run by Triton's interpreter, or by what
says in torch what they do. Of time and rounding it shows nothing.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton.runtime.interpreter as interpreter
from torch.utils._python_dispatch import TorchDispatchMode

from core.kernels import precision
from core.kernels.cuda import graphs
from tests.core import interpreted  # noqa: F401

DEVICE = torch.device("cuda", 0)
TOTAL_BYTES = 80 << 30
GRANULE = 512  # bytes that torch's allocator gives out at least

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}
PRODUCTS = {  # which torch's one switch makes rougher
    aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.baddbmm_, aten.mv, aten.addmv,
    aten.linalg_solve_triangular,
}  # fmt: skip
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Refused(RuntimeError):
    """What a CUDA device would have refused, or raced over."""


# --- streams: what each has seen of the others ------------------------------------------------------------------

Clock = dict[int, int]


def _join(clock: Clock, other: Clock) -> None:
    for stream, time in other.items():
        clock[stream] = max(clock.get(stream, 0), time)


class Stream:
    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.number = next(_numbers)
        self.clock: Clock = dict(_host)

    def tick(self) -> None:
        self.clock[self.number] = self.now()

    def now(self) -> int:
        """The time of what it is at."""
        return self.clock.get(self.number, 0) + 1

    def wait_stream(self, other: "Stream") -> None:
        _join(self.clock, other.clock)

    def synchronize(self) -> None:
        _join(_host, self.clock)

    def record_event(self) -> "Event":
        return Event(dict(self.clock))


class Event:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def synchronize(self) -> None:
        _join(_host, self.clock)

    def query(self) -> bool:
        if _state.looks_until_done == 0:
            return True
        _state.looks_until_done -= 1
        return False


_numbers = count()
_host: Clock = {}  # what the host has waited for, and all that is begun from now on comes after


# --- memory -----------------------------------------------------------------------------------------------------


class Held:
    """What is allocated for some tensors, and who is at it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-nbytes // GRANULE) * GRANULE
        self.tensors = 0
        self.written: tuple[int, int] | None = None  # by which stream, when
        self.read: Clock = {}

    def reading(self, what: str) -> None:
        _in_order(self.written, what)
        self.read[_state.stream.number] = _state.stream.now()

    def writing(self, what: str) -> None:
        for done in (self.written, *self.read.items()):
            _in_order(done, what)
        self.written, self.read = (_state.stream.number, _state.stream.now()), {}

    def is_awaited(self) -> bool:
        """Whether the host knows that it has been written."""
        return self.written is not None and _host.get(self.written[0], 0) >= self.written[1]


def _in_order(done: tuple[int, int] | None, what: str) -> None:
    if done is not None and done[0] != _state.stream.number:
        stream, time = done
        if max(_state.stream.clock.get(stream, 0), _host.get(stream, 0)) < time:
            raise Refused(f"{what} does not wait for what another stream does with the same memory")


class State:
    """The device's own."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.held: dict[int, Held] = {}
        self.allocated = self.peak = 0
        self.left = TOTAL_BYTES  # that other processes leave, whatever is told of it
        self.looks_until_done = 0  # how often an event that is asked about is still to come
        self.graph: Graph | None = None
        self.waiting = "default"

    def of(self, x: torch.Tensor) -> Held:
        return self.held[x.untyped_storage()._cdata]

    def taken(self, x: "Shadow") -> None:
        key = x.on_cpu.untyped_storage()._cdata
        if key not in self.held:
            held = Held(x.on_cpu.untyped_storage().nbytes())
            if self.allocated + held.nbytes > self.left:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if self.graph is None:
                held.writing("what makes it")
            self.held[key] = held
            self.allocated += held.nbytes
            self.peak = max(self.peak, self.allocated)
        self.held[key].tensors += 1
        weakref.finalize(x, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.held[key].tensors -= 1
        if self.held[key].tensors == 0:
            self.allocated -= self.held.pop(key).nbytes

    def reset_peak(self, device: object = None) -> None:
        self.peak = self.allocated

    def set_waiting(self, how: str) -> None:
        self.waiting = how

    def host_waits(self, what: str) -> None:
        if self.graph is not None:
            raise Refused(f"{what} makes the host wait within a graph")
        if self.waiting == "error":
            raise Refused(f"{what} makes the host wait")
        _join(_host, self.stream.clock)


_state = State()


# --- tensors ----------------------------------------------------------------------------------------------------


class Shadow(torch.Tensor):
    """A tensor on the device; `on_cpu` has its values."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> "Shadow":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            layout=real.layout, device=DEVICE,
        )  # fmt: skip

    def __init__(self, real: torch.Tensor) -> None:
        self.on_cpu = real
        _state.taken(self)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(on_device(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(on_device(index), value)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Shadow({self.on_cpu!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


def on_device(index: Any) -> Any:
    """Lists as torch makes indices of them, where no mode sees it."""
    if isinstance(index, tuple):
        return tuple(on_device(part) for part in index)
    return torch.tensor(index, device=DEVICE) if isinstance(index, list) else index


class Mode(TorchDispatchMode):
    """Sees what makes tensors on the device out of none that are there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here: torch would load its compiler, which takes two seconds, to skip it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


# What operations are given and answer is of tuples, lists and dicts alone; torch's own walk of trees takes several
# times as long, and most of the time of an operation.
def tensors_of(tree: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _find(tree, found)
    return found


def _find(tree: object, found: list[torch.Tensor]) -> None:
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif type(tree) in (tuple, list):
        for part in tree:  # type: ignore[attr-defined]
            _find(part, found)
    elif type(tree) is dict:
        for part in tree.values():
            _find(part, found)


def changed(kind: type, change: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with what is of that kind changed."""
    if isinstance(tree, kind):
        return change(tree)
    if type(tree) in (tuple, list):
        return type(tree)([changed(kind, change, part) for part in tree])
    if type(tree) is dict:
        return {name: changed(kind, change, part) for name, part in tree.items()}
    return tree


def real_of(tree: Any) -> Any:
    return changed(Shadow, lambda x: x.on_cpu, tree)


def operate(func: Any, args: Any, kwargs: Any) -> Any:
    given = tensors_of((args, kwargs))
    shadows = [x for x in given if isinstance(x, Shadow)]
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    told = kwargs.get("device")
    # of a CUDA device without a number torch makes that of `_lent_guard`
    to_device = told is not None and torch.device(told).type in ("cuda", "meta")
    if to_device:
        kwargs["device"] = torch.device("cpu")
    if func.namespace == "c10d" and len(shadows) < len(given):
        raise Refused(f"{func}: NCCL takes no tensors of the host's")
    if not shadows and not to_device:
        return func(*args, **kwargs)
    answer_is_there = to_device or (bool(shadows) and told is None)
    _check_devices(func, args, kwargs, given, answer_is_there=answer_is_there)
    if func in WAITS:
        _state.host_waits(str(func))
    if func.overloadpacket in PRODUCTS and shadows[0].dtype == torch.float32 and not precision._turned.locked():
        raise Refused(f"{func} is as precise as another thread has it")
    written = [x for x in tensors_of(_written(func, args, kwargs)) if isinstance(x, Shadow)]
    real = real_of((args, kwargs))
    begins(str(func), [] if func.is_view else shadows, written)
    answer = func(*real[0], **real[1])
    of_real = {id(x.on_cpu): x for x in shadows}

    def wrapped(x: torch.Tensor) -> torch.Tensor:
        known = of_real.get(id(x))
        return known if known is not None else Shadow(x) if answer_is_there else x

    answer = args[0] if func is aten.copy_.default else changed(torch.Tensor, wrapped, answer)
    made = [x for x in tensors_of(answer) if isinstance(x, Shadow)]
    ends(func, *real, made)
    return answer


def begins(what: str, read: list[Any], written: list[Any]) -> None:
    """The current stream is to do this next."""
    if _state.graph is not None:
        _state.graph.keep(real_of(written))
        return
    for x in read:
        if not any(x is y for y in written):
            _state.of(x.on_cpu).reading(what)
    for x in written:
        _state.of(x.on_cpu).writing(what)


def ends(func: Any, args: Any, kwargs: Any, made: list[Any]) -> None:
    if _state.graph is not None:
        _state.graph.steps.append((func, args, kwargs, real_of(made)))
    else:
        _state.stream.tick()


def _written(func: Any, args: Any, kwargs: Any) -> list[object]:
    return [kwargs.get(name) if name is not None else args[number] for number, name in _writes(func)]


@cache
def _writes(func: Any) -> list[tuple[int, str | None]]:
    """The arguments that are written to: their number, and the name of one that is given by name alone."""
    return [
        (number, argument.name if argument.kwarg_only else None)
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _check_devices(func: Any, args: Any, kwargs: Any, given: list[torch.Tensor], *, answer_is_there: bool) -> None:
    """What may lie on two devices: copies, indices, and numbers."""
    if func in (aten.copy_.default, aten._to_copy.default):
        if func is aten.copy_.default:
            there, source, non_blocking = isinstance(args[0], Shadow), args[1], any(args[2:])
        else:
            there, source, non_blocking = answer_is_there, args[0], kwargs.get("non_blocking")
        if there != isinstance(source, Shadow) and not (non_blocking and _state.graph is None):
            _state.host_waits(f"{func} between host and device")
        return
    if func in INDEXED:
        indices = [x for x in args[1] if x is not None]
        if isinstance(args[0], Shadow):
            if any(x.dtype == torch.bool or not isinstance(x, Shadow) for x in indices):
                _state.host_waits(f"{func} by a mask, or by indices of the host")
            given = tensors_of(([args[0], *args[2:3]], kwargs))  # the rest lie where they belong
    on_host = [x for x in given if x.dim() > 0 and not isinstance(x, Shadow)]
    if on_host and any(isinstance(x, Shadow) for x in given):
        raise Refused(f"{func}: expected all tensors to be on the same device, but found {DEVICE} and cpu")


# --- graphs -----------------------------------------------------------------------------------------------------


class Graph:
    """What was recorded, to be done again in the same memory."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(self, written: list[torch.Tensor]) -> None:
        """A device does nothing of what it records: what was there before is put back at the end."""
        for x in written:
            flat = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())
            self._before.setdefault(x.untyped_storage()._cdata, (flat, flat.clone()))

    def end(self) -> None:
        for flat, before in self._before.values():
            flat.copy_(before)
        self._before.clear()

    def replay(self) -> None:
        for func, args, kwargs, made in self.steps:
            for x, again in zip(made, tensors_of(func(*args, **kwargs)), strict=True):
                if x.data_ptr() != again.data_ptr():
                    x.copy_(again)
            for x in tensors_of((args, kwargs, made)):
                if x.untyped_storage()._cdata in _state.held:
                    _state.of(x).writing("a graph")
        _state.stream.tick()


@contextmanager
def recording(graph: Graph, *, stream: Stream, **_: object) -> Iterator[None]:
    before, _state.stream, _state.graph = _state.stream, stream, graph
    try:
        yield
    finally:
        _state.stream, _state.graph = before, None
        graph.end()


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    before, _state.stream = _state.stream, stream
    try:
        yield
    finally:
        _state.stream = before


# --- kernels ----------------------------------------------------------------------------------------------------


def descend_tiles(
    Z: Any, g_start: Any, g_product: Any, steps: Any, moves: Any, B: Any, inverse: Any, going: Any, progress: Any,
    first: Any, rows: int, k: int, stride: int, block: int, sweep: int, sweeps: int, progress_ratio: float, *,
    BLOCK: int, ALONE: bool, **_: object,
) -> None:  # fmt: skip
    """What `descend` in `core.kernels.cuda.descent` says it does, of all rows at once: interpreted, a tile takes a
    second."""
    here = slice(block * BLOCK, min(k, (block + 1) * BLOCK))
    z, b, h = Z[:, here], B[here, here], inverse[here]
    active = going != 0
    for s in range(sweeps):
        g = g_start[:, here] + (moves @ B[:, here] if ALONE else g_product[:, : z.shape[1]])
        made = torch.zeros_like(z)
        for j in range(z.shape[1]):
            made[:, j] = step = torch.where(active, (z[:, j] - g[:, j] * h[j]).clamp(min=0) - z[:, j], 0)
            g += torch.outer(step, b[j])
            z[:, j] += step
        progress += (made.square() * b.diagonal()).sum(dim=1)
        moves[:, here] += made
        if not ALONE:
            steps[:, : z.shape[1]] = made
        if here.stop == k:
            if sweep + s == 0:
                first.copy_(progress)
            active = active & (progress > progress_ratio * first)
            progress.zero_()
    going.copy_(active)


STANDS_FOR = {"descend": descend_tiles}
_interpreted = interpreter.GridExecutor.__call__


def launch(self: Any, *args: Any, **kwargs: Any) -> None:
    given = tensors_of((args, kwargs))
    if not any(isinstance(x, Shadow) for x in given):
        _interpreted(self, *args, **kwargs)
        return
    if not all(isinstance(x, Shadow) for x in given):
        raise Refused(f"{self.fn.__name__} is given memory of the host's")
    real_args, real_kwargs = real_of((args, kwargs))

    def run(*args: Any, **kwargs: Any) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            STANDS_FOR.get(self.fn.__name__, lambda *a, **k: _interpreted(self, *a, **k))(*args, **kwargs)

    begins(self.fn.__name__, [], given)
    run(*real_args, **real_kwargs)
    ends(run, real_args, real_kwargs, [])


# --- torch.cuda -------------------------------------------------------------------------------------------------


@contextmanager
def _lent_guard() -> Iterator[None]:
    """Torch without CUDA has nothing that makes a CUDA device the current one. Within, the meta device's does, which
    does nothing: it is in c10's table of them, by the numbers of c10::DeviceType."""
    cuda, meta = 1, 14
    c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    table = (ctypes.c_void_p * 20).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    before, table[cuda] = table[cuda], table[meta]
    try:
        yield
    finally:
        table[cuda] = before


@contextmanager
def cuda() -> Iterator[State]:
    """While this lasts, this thread has a device `cuda:0`."""
    global _state
    _state = State()
    state, made = _state, torch.tensor

    def tensor(data: Any, *, device: Any = None, **how: Any) -> torch.Tensor:
        """`torch.tensor` copies to a device where no mode sees it."""
        return made(data, **how) if device is None else made(data, **how).to(device)

    properties = SimpleNamespace(total_memory=TOTAL_BYTES, name="a shadow of CUDA", major=9, minor=0)
    of_cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "device_of": lambda x: nullcontext(),
        "Stream": Stream,
        "stream": on_stream,
        "current_stream": lambda device=None: state.stream,
        "synchronize": lambda device=None: state.host_waits("synchronize"),
        "CUDAGraph": Graph,
        "graph": recording,
        "graph_pool_handle": object,
        "mem_get_info": lambda device=None: (TOTAL_BYTES - state.allocated, TOTAL_BYTES),
        "memory_allocated": lambda device=None: state.allocated,
        "memory_reserved": lambda device=None: state.allocated,
        "max_memory_allocated": lambda device=None: state.peak,
        "reset_peak_memory_stats": state.reset_peak,
        "set_sync_debug_mode": state.set_waiting,
        "empty_cache": lambda: None,
        "get_device_properties": lambda device=None: properties,
    }
    graphs._place.cache_clear()
    try:
        with (
            _lent_guard(),
            patch.multiple(torch.cuda, **of_cuda),
            patch.object(torch, "tensor", tensor),
            patch.object(interpreter.GridExecutor, "__call__", launch),
            Mode(),
        ):
            yield state
    finally:
        graphs._place.cache_clear()
