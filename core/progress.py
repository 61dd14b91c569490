"""What a running fit tells between two slices of its work."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FitProgress:
    """Where a fit stands.

    Attributes:
        iteration: completed iterations; 0 while initialising.
        max_iter: the iterations after which it stops at the latest.
        loss: ½‖A − ZD‖²_F after the last completed iteration, None before the first.
        relative_error: ‖A − ZD‖_F / ‖A‖_F, likewise (0 for all-zero A).
        kkt_residual: how far from a stationary point, scale-free, likewise; see `core.solvers.hals`.
        converged: whether the stopping rule has been met.
    """

    iteration: int
    max_iter: int
    loss: float | None = None
    relative_error: float | None = None
    kkt_residual: float | None = None
    converged: bool = False
