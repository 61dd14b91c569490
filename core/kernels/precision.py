"""Matrix products, each with the precision that it is asked for, whatever the process has told torch of its own.

Torch has one switch for all float32 products of a process; on CUDA it is here turned for one product at a time and
turned back, under a lock. No other product of ours meets it, as all that run there are made by `product`, or within
`in_float32`. Elsewhere all products are float32's own.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from enum import Enum
from threading import Lock
from typing import Any, cast

import torch

_turned = Lock()

# TF32 keeps ten bits of float32's twenty-three after the point; the rest of a number, rounded likewise, keeps nearly
# all that is left.
_KEPT_BITS, _HALF = -(1 << 13), 1 << 12
# Tensor cores cut off what a sum grows past (Fasi, Higham, Mikaitis & Pranesh 2021): of non-negative terms each step
# of eight loses up to half a rounding, always to the same side, about 2.6e-9 of the sum for each term; and where each
# term is cut off, too, as models of Hopper's have it, 6e-9. So longer sums are taken in pieces, which are added up by
# other units, rounded to nearest. Not yet run on a GPU.
LONGEST_SUM = 1024


CASTING = ("cpu", "cuda")  # devices that have `autocast`
_AS_IT_IS = nullcontext()


def own_precision() -> AbstractContextManager[object]:
    """Within: float32 is float32, though the process lets torch lower it (`torch.set_float32_matmul_precision`, which
    on CPUs means bfloat16), and though this is in an `autocast` block. All that computes is to be within."""
    if _is_highest() and not any(map(torch.is_autocast_enabled, CASTING)):
        return _AS_IT_IS  # nearly always: a row's encode is not to wait for this
    stack = ExitStack()
    stack.enter_context(_lowered.undone())
    for kind in filter(torch.is_autocast_enabled, CASTING):
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def _is_highest() -> bool:
    """Whether nobody has asked for less, or for anything: it costs a tenth of a microsecond to ask."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # so torch says that it was told by backend
        return False


class _Lowered:
    """The process's own switches, turned back for as long as any thread of it is within `own_precision`."""

    def __init__(self) -> None:
        self._within = 0
        self._before: list[tuple[Any, str]] = []

    @contextmanager
    def undone(self) -> Iterator[None]:
        with _turned:
            self._within += 1
            if self._within == 1:
                backends = cast(Any, torch.backends.mkldnn).matmul, torch.backends.cuda.matmul
                told = [(backend, backend.fp32_precision) for backend in backends]
                self._before = [(backend, value) for backend, value in told if value not in ("none", "ieee")]
                for backend, _ in self._before:
                    backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            with _turned:
                self._within -= 1
                if self._within == 0:
                    for backend, value in self._before:
                        backend.fp32_precision = value


_lowered = _Lowered()


class Precision(Enum):
    """How float32 factors are multiplied; sums are float32 in all.

    Values:
        TF32: factors rounded to eleven bits, at the tensor cores' rate; relative error about 5e-4 a term.
        SPLIT: each factor as the sum of two of TF32, three products in all; about 5e-7 a term, and sums in pieces. Of
            non-negative terms, by that model, a sum is up to 6e-6 too small.
        FLOAT32: as they are, without tensor cores.
    """

    TF32 = "tf32"
    SPLIT = "split"
    FLOAT32 = "float32"


def product(
    X: torch.Tensor, Y: torch.Tensor, precision: Precision, *, less: torch.Tensor | None = None
) -> torch.Tensor:
    """X·Y, or X·Y − less, of two matrices, or of two stacks of them and nothing less. Other dtypes than float32 are
    multiplied as they are, and so are sparse rows, which see to it themselves."""
    if X.device.type != "cuda" or X.dtype != torch.float32 or not isinstance(X, torch.Tensor):
        return X @ Y if less is None else torch.addmm(less, X, Y, beta=-1)
    if precision is not Precision.SPLIT or X.shape[-1] == 0:
        with _tensor_cores(precision is Precision.TF32):
            return X @ Y if less is None else torch.addmm(less, X, Y, beta=-1)
    sums: torch.Tensor | None = None
    for start in range(0, X.shape[-1], LONGEST_SUM):
        part = slice(start, start + LONGEST_SUM)
        sums = _add_split(sums, X[..., part], Y[..., part, :])
    assert sums is not None  # noqa: S101 - there are columns
    return sums if less is None else sums.sub_(less)


def _add_split(sums: torch.Tensor | None, X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """sums + X·Y, in place."""
    x, y = nearest_tf32(X), nearest_tf32(Y)
    add = torch.Tensor.addmm_ if X.dim() == 2 else torch.Tensor.baddbmm_
    with _tensor_cores(True):
        # the small terms first, and what may cancel last
        small = (X - x) @ y if sums is None else add(sums, X - x, y)
        return add(add(small, x, Y - y), x, y)


def nearest_tf32(x: torch.Tensor) -> torch.Tensor:
    """x to the nearest of TF32: cut off, what is left would be twice as large, and so would be what is lost of it."""
    return x.contiguous().view(torch.int32).add(_HALF).bitwise_and_(_KEPT_BITS).view(torch.float32)


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """Within: what is multiplied on this device, by other than `product`, is so with `Precision.FLOAT32`. For one
    operation, as other threads' products wait."""
    return _tensor_cores(False) if device.type == "cuda" else _AS_IT_IS


@contextmanager
def _tensor_cores(used: bool) -> Iterator[None]:
    with _turned:
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32" if used else "ieee"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
