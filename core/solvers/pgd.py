"""PGD: projected gradient descent with Nesterov's acceleration and restart (NeNMF; Guan, Tao, Luo & Yuan 2012).

Each half is solved to some accuracy: several steps of length 1/L, L the largest eigenvalue of the gram, each from a
point beyond the last by Nesterov's momentum. They cost products with B alone, none with A.

Deviations: rows being independent, each has a momentum of its own, and where a step would raise its objective the
row stays where it is and its momentum starts anew (O'Donoghue & Candès 2015). So the loss never rises. The number
of steps is fixed by what they cost, not by a tolerance.

Memory in bytes beside what all solvers hold: 36·c·k for a chunk of c rows.
"""

from collections.abc import Iterator
from functools import partial

import torch

from core import kernels
from core.chunks import Chunks
from core.kernels.precision import Precision, product
from core.progress import FitProgress
from core.solvers.alternating import Half, Past, Step, alternate, in_turn, threads_for_many

CODE_STEPS = 10
CONCEPT_STEPS = 20
BOUND_PASSES = 20
LEAST_ENTRY = 1e-30  # so that no x becomes zero


def solve(
    chunks: Chunks, Z: torch.Tensor, D: torch.Tensor, *, tol: float, max_iter: int, past: Past | None = None
) -> Iterator[FitProgress]:
    """See `core.solvers.alternating.alternate`."""
    return alternate(chunks, Z, D, partial(in_turn, CODES, CONCEPTS), tol=tol, max_iter=max_iter, past=past)


def accelerated(B: torch.Tensor, *, count: int) -> Step:
    """`count` accelerated steps of each row."""
    inverse = kernels.inverse_diagonal(B)
    length = 1 / largest_eigenvalue(B)

    def step(Z: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        with threads_for_many(Z, B):
            z, G = Z, product(Z, B, Precision.FLOAT32, less=C)
            before = kernels.squared_violation(z, G, inverse)
            last_z, last_G = z, G
            t = Z.new_ones(len(Z), 1)
            for _ in range(count):
                next_t = (1 + (1 + 4 * t.square()).sqrt()) / 2
                momentum = 1 + (t - 1) / next_t
                # the gradient is affine, so that it is carried along to the point beyond, without another product
                trial = (
                    torch.lerp(last_z, z, momentum).sub_(torch.lerp(last_G, G, momentum), alpha=length).clamp_(min=0)
                )
                trial_G = product(trial, B, Precision.FLOAT32, less=C)
                # of a quadratic the difference is ½⟨z' − z, g' + g⟩, without the rounding of its two values
                rose = torch.linalg.vecdot(trial - z, trial_G + G)[:, None] > 0
                last_z, last_G = z, G
                z, G = torch.where(rose, z, trial), torch.where(rose, G, trial_G)
                t = torch.where(rose, 1, next_t)
            Z.copy_(z)
        return before

    return step


CODES = Half(partial(accelerated, count=CODE_STEPS), products=3 * CODE_STEPS)
CONCEPTS = Half(partial(accelerated, count=CONCEPT_STEPS), products=3 * CONCEPT_STEPS)


def largest_eigenvalue(B: torch.Tensor) -> float:
    """Of a non-negative gram, from above: max_i (Bx)_i/x_i bounds it for any x > 0 (Collatz 1942), closely after
    some passes of the power method. Zero rows are left out; infinite for B = 0, where no step is needed.
    """
    used = B.diagonal() > 0
    if not bool(used.any()):
        return float("inf")
    x = used.double()
    B = B.double()
    for _ in range(BOUND_PASSES):
        moved = B @ x
        ratios = moved[used] / x[used]
        x = (moved / moved.amax()).clamp_(min=LEAST_ENTRY)
    return float(ratios.amax())
