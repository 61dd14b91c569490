"""What a running fit tells between two slices of its work.

Work is written as generators that yield after each bounded slice and return their result.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from core.kernels.precision import own_precision

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FitProgress:
    """Where a fit stands.

    Attributes:
        iteration: completed iterations; 0 while initialising.
        max_iter: the iterations after which it stops at the latest.
        loss: ½‖A − ZD‖²_F after the last completed iteration, None before the first.
        relative_error: ‖A − ZD‖_F / ‖A‖_F, likewise (0 for all-zero A).
        kkt_residual: how far from a stationary point, scale-free, likewise; see `core.solvers.alternating.alternate`.
        converged: whether the stopping rule has been met.
    """

    iteration: int
    max_iter: int
    loss: float | None = None
    relative_error: float | None = None
    kkt_residual: float | None = None
    converged: bool = False


def tell(work: Generator[Any, None, Result], progress: FitProgress) -> Generator[FitProgress, None, Result]:
    """The same slices of work, each told as `progress`: `result = yield from tell(work, progress)`."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        yield progress


def run(work: Generator[Any, None, Result]) -> Result:
    """All slices of the work at once."""
    with own_precision():
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
