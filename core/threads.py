"""Who owns the cores: the only place that sets thread counts, the threading layer, and where compiled code lives.

Three pools could each claim every core: numpy's BLAS, torch's OpenMP and numba's. A pool's workers spin for a
while after their work, so pools that take turns slow each other down by whole scheduler ticks (milliseconds).
Hence one rule: matrix products go through torch, loops through numba's OpenMP layer, numpy multiplies nothing on
a hot path, and work too small to be worth waking a second thread runs on the caller's alone.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

# Multiply-adds, about a tenth of a millisecond on one core: for less, waking a second costs more than it brings.
SMALL_WORK = 2_000_000

# nnan and ninf are left out of numba's fastmath, so that NaN still compares as NaN; what remains lets sums be
# vectorised and fused.
FASTMATH = {"contract", "reassoc", "nsz"}

try:
    import numba.np.ufunc.omppool
except ImportError:  # no OpenMP library on this machine
    numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]
else:
    numba.config.THREADING_LAYER = "omp"  # type: ignore[attr-defined]


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """Decorator: the function compiled by numba, its machine code cached on disk.

    The cache lies in NUMBA_CACHE_DIR where that is set, else beside the source or in the user's cache directory.
    Where none of these can be written (a read-only container) the code is compiled anew in each process.
    """

    def decorate(function: Function) -> Function:
        options: dict[str, Any] = {"fastmath": FASTMATH, "nogil": True, "parallel": parallel}
        try:
            return numba.njit(function, cache=True, **options)  # type: ignore[no-any-return]
        except RuntimeError:  # numba finds no cache directory that it can write
            warnings.warn(
                "no cache directory for compiled kernels is writable, so each process compiles them again; "
                "set NUMBA_CACHE_DIR to one that is",
                stacklevel=2,
            )
            return numba.njit(function, **options)  # type: ignore[no-any-return]

    return decorate


@contextmanager
def threads_for(multiply_adds: float) -> Iterator[bool]:
    """Within: torch uses one thread for small work and all of its threads otherwise; yields whether all."""
    count = torch.get_num_threads()
    if count == 1 or multiply_adds >= SMALL_WORK:
        yield count > 1
        return
    torch.set_num_threads(1)
    try:
        yield False
    finally:
        torch.set_num_threads(count)
