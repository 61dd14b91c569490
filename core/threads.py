"""Who owns the cores: the only place that sets thread counts and the threading layer.

Three pools could each claim every core: numpy's BLAS, torch's OpenMP and numba's. Hence one rule: matrix products
go through torch, loops through numba's OpenMP layer, numpy multiplies nothing on a hot path, and work too small to
be worth waking a second thread runs on the caller's alone.

Torch and numba are imported only where they are needed: this module is loaded with the package, before either.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Threads that wait by spinning take the cores that other pools and processes need. On two cores with one busy
# neighbour a fit took 8 s spinning and 1.5 s sleeping; with none, 0.8 and 1.0 s. OpenMP reads this once, when it
# is first loaded, so it has no effect on a process that has imported torch before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def quota(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Whole cores that this process's control group and those above it may use, None where none is limited.

    A container sees its own group as the root of all; a service of systemd's lies below it.
    """
    try:
        (path,) = (line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
    except (OSError, ValueError):  # no control groups of version 2
        return None
    limits = []
    for group in (inner := root / path.strip("/"), *inner.parents):
        if group.is_relative_to(root):
            with suppress(OSError, ValueError):  # none of its own, or "max"
                allowed, period = (group / "cpu.max").read_text().split()
                limits.append(max(1, int(allowed) // int(period)))
    return min(limits, default=None)


# More threads than the container may run at once are all put to sleep together when its share is used up.
if (cores := quota()) is not None and cores < len(os.sched_getaffinity(0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))

# Multiply-adds, about a tenth of a millisecond on one core: for less, waking a second costs more than it brings.
SMALL_WORK = 2_000_000
# Those of a matrix product, which does them several times as fast. On two cores that share one's units 8 million took
# 0.29 ms on one thread and 0.49 on two, 25 million 0.89 and 0.68; those between as long on either.
SMALL_PRODUCT = 10_000_000
# Entered around numba's parallel work: a lock where its threads serve one caller at a time (see `settle_layer`).
_turn: AbstractContextManager[Any] = nullcontext()
# Numbers, on fewer of which torch lets no second thread do what is done to each.
LEAST_SHARED = 32_768


def limit_to_share_of_cores(processes: int) -> None:
    """Compute on this process's part of them, where so many processes on this machine compute at once."""
    import torch

    count = len(os.sched_getaffinity(0)) if cores is None else min(cores, len(os.sched_getaffinity(0)))
    part = max(1, count // processes)
    if (numba := _numba()) is not None:  # first: when it starts its threads it sets OpenMP's count, torch's too
        numba.set_num_threads(min(part, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(part)


@contextmanager
def threads_for(multiply_adds: float) -> Iterator[None]:
    """Within: torch and numba use one thread for small work, and all that torch was given otherwise."""
    count, is_small = _count_of_this_thread(), multiply_adds < SMALL_WORK
    with _turn, _threads_of_numba(1 if is_small else count), _threads_of_torch(count, is_small):
        yield


def threads_of_torch_for(multiply_adds: float) -> AbstractContextManager[None]:
    """As `threads_for`, where numba has nothing to do: in half of the time."""
    return _threads_of_torch(_count_of_this_thread(), multiply_adds < SMALL_WORK)


def threads_for_product(multiply_adds: float) -> AbstractContextManager[None]:
    """As `threads_of_torch_for`, for one matrix product or a stack of them."""
    return _threads_of_torch(_count_of_this_thread(), multiply_adds < SMALL_PRODUCT)


def threads_for_elements(x: "torch.Tensor") -> AbstractContextManager[None]:
    """Threads for operations of torch on each number of x.

    A second thread that sleeps is at work after some 25 µs, and on a busy machine after milliseconds.
    """
    return nullcontext() if x.numel() < LEAST_SHARED else threads_of_torch_for(8.0 * x.numel())


@contextmanager
def _threads_of_torch(count: int, is_small: bool) -> Iterator[None]:
    """Within: one thread for small work, in a thread whose count this is."""
    if not is_small or count == 1:
        yield
        return
    work = object()
    try:
        _small.begin(work, count)  # within: Ctrl-C may come as soon as it has begun
        yield
    finally:
        _small.end(work, count)


class _Small:
    """The small work under way on all threads of the process.

    A thread's count is its own, but torch gives the one that was set last, in any, to every thread that it meets for
    the first time: one that is met while another does small work would have one thread for good.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way: set[object] = set()
        self.count = 1  # torch's, before the first of it began

    def begin(self, work: object, count: int) -> None:
        import torch

        with self.lock:
            if not self.under_way:
                self.count = count
            self.under_way.add(work)
            torch.set_num_threads(1)

    def end(self, work: object, count: int) -> None:
        import torch

        with self.lock:
            self.under_way.discard(work)
            torch.set_num_threads(count)


_small, _met = _Small(), threading.local()


def _count_of_this_thread() -> int:
    import torch

    if not hasattr(_met, "torch"):
        with _small.lock:
            if _small.under_way:
                torch.set_num_threads(_small.count)
            elif torch.get_num_threads() < _small.count:  # as it was told to, or torch met it at such a time
                torch.set_num_threads(max(torch.get_num_threads(), _count_of_a_new_thread()))
        _met.torch = True
    return torch.get_num_threads()


def _count_of_a_new_thread() -> int:
    import torch

    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return counts[0]


@contextmanager
def _threads_of_numba(count: int) -> Iterator[None]:
    if (numba := _numba()) is None:
        yield
        return
    before, wanted = numba.get_num_threads(), min(count, numba.config.NUMBA_NUM_THREADS)
    if wanted == before:
        yield
        return
    numba.set_num_threads(wanted)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@cache
def _numba() -> Any:
    """None where it is absent or refuses the numpy that is there: then nothing of ours is compiled by it."""
    try:
        import numba
    except ImportError:
        return None
    return numba


def settle_layer(config: Any) -> None:
    """Have numba, before it compiles anything that runs in parallel, share torch's OpenMP where that is there."""
    global _turn
    try:
        import numba.np.ufunc.omppool  # noqa: F401
    except ImportError:  # no OpenMP library on this machine
        config.THREADING_LAYER = "workqueue"
        _turn = threading.RLock()  # numba ends a process of which two threads use these at once
    else:
        config.THREADING_LAYER = "omp"
