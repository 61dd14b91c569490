"""HALS: hierarchical alternating least squares, each half of an iteration the row-wise kernel.

Cichocki, Zdunek & Amari 2007, with several sweeps of one factor for each matrix product with A (Gillis & Glineur
2012). What it shares with the other solvers, the reported `kkt_residual` among it, is in
`core.solvers.alternating`.

Extrapolation with restart follows Ang & Gillis 2019, but for D alone: Z's sweeps solve so nearly that where they
start from hardly matters, which saves a second n × k array, and the loss is that of Z and D themselves.

Memory in bytes beside what all solvers hold: 8·c·k for a chunk of c rows; where an iteration is one call
(`is_small`), up to 20·n·k, of a k that is the next multiple of sixteen.
"""

from collections.abc import Generator, Iterator
from functools import partial

import torch

from core import kernels
from core.chunks import Chunks
from core.progress import FitProgress
from core.solvers.alternating import Half, Iteration, Past, Step, alternate, in_turn, vanished

# D has d rows to Z's n, so that more sweeps of it cost next to nothing.
CODE_SWEEPS = 6
CONCEPT_SWEEPS = 12
PROGRESS_RATIO = 0.01  # of the first sweep's squared progress: a tenth of its step

# What `at_once` is for: so many multiply-adds of an iteration, on two cores some 10 ms (beside more of them it hardly
# matters how often threads are woken), and so many values, which stay in the last cache until they are read again.
WORK_AT_ONCE, VALUES_AT_ONCE = 300_000_000, 4_000_000
LEAST_CONCEPTS = 16  # as many as are computed with, where there are fewer
# Its products are sums in sequence, which beyond so many concepts are rougher than torch's; and sweeps, which grow
# with their square, take longer than a slice should.
MOST_CONCEPTS = 256

# The step beyond each update of D: its first weight, how the weight and its ceiling grow while the loss falls, and
# how it shrinks when the loss rises (η, γ and γ̄ of Ang & Gillis).
FIRST_WEIGHT, GROWTH, CEILING_GROWTH, SHRINKAGE = 0.5, 1.05, 1.01, 1.5


def solve(
    chunks: Chunks, Z: torch.Tensor, D: torch.Tensor, *, tol: float, max_iter: int, past: Past | None = None
) -> Iterator[FitProgress]:
    """See `core.solvers.alternating.alternate`."""
    past = past or Past()
    beyond = Extrapolation(past.extrapolation)
    iterate = at_once if is_small(chunks) else partial(in_turn, CODES, CONCEPTS)
    return alternate(chunks, Z, D, iterate, tol=tol, max_iter=max_iter, past=past, start_from=beyond.start_from)


def sweeps(B: torch.Tensor, *, max_sweeps: int) -> Step:
    """Coordinate descent over each row, up to `max_sweeps` times."""
    inverse = kernels.inverse_diagonal(B)

    def step(Z: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        G = kernels.product(Z, B, less=C)
        return kernels.descend(Z, G, B, inverse, max_sweeps=max_sweeps, progress_ratio=PROGRESS_RATIO)

    return step


# Sweeps pass over most coordinates that stay zero, so that neither half costs more than about six products.
CODES = Half(partial(sweeps, max_sweeps=CODE_SWEEPS), products=6)
CONCEPTS = Half(partial(sweeps, max_sweeps=CONCEPT_SWEEPS), products=6)


def is_small(chunks: Chunks) -> bool:
    """Whether `at_once` is for this A."""
    (rows, d), k = chunks.A.shape, max(LEAST_CONCEPTS, chunks.nb_concepts)
    if k > MOST_CONCEPTS:
        return False
    here = isinstance(chunks.A, torch.Tensor) and chunks.A.device.type == "cpu" and chunks.ranks.size == 1
    is_slice = rows <= chunks.size and rows * d <= VALUES_AT_ONCE
    return here and is_slice and k * (2 * d + k) * (rows + d) < WORK_AT_ONCE


def at_once(chunks: Chunks, Z: torch.Tensor, ahead: torch.Tensor) -> Generator[None, None, Iteration]:
    """`in_turn` of `CODES` and `CONCEPTS` for data of small or middling size, to rounding."""
    updated = ahead.clone()
    loss, of_codes, of_concepts, dead = kernels.iterate(
        chunks.read(slice(None)),
        Z,
        updated,
        energy=chunks.energy,
        vanished=vanished(chunks.energy),
        code_sweeps=CODE_SWEEPS,
        concept_sweeps=CONCEPT_SWEEPS,
        progress_ratio=PROGRESS_RATIO,
    )
    yield
    return Iteration(updated, loss, of_codes, of_concepts, dead)


class Extrapolation:
    """The weight of the step beyond each update, adapted to whether the loss falls.

    Args:
        numbers: of a fit that goes on; kept up to date.
    """

    def __init__(self, numbers: dict[str, float] | None = None) -> None:
        self._numbers = {} if numbers is None else numbers
        for name, first in (("weight", FIRST_WEIGHT), ("last_good", FIRST_WEIGHT), ("ceiling", 1.0)):
            self._numbers.setdefault(name, first)

    @property
    def weight(self) -> float:
        return self._numbers["weight"]

    def start_from(self, before: torch.Tensor, updated: torch.Tensor, fell: bool) -> torch.Tensor:
        """The point beyond `updated`, or `updated` itself where the loss rose."""
        if not fell:
            self._loss_rose()
            return updated
        ahead = torch.lerp(before, updated, 1 + self.weight).clamp_(min=0)
        self._loss_fell()
        return ahead

    def _loss_fell(self) -> None:
        ceiling = min(1.0, self._numbers["ceiling"] * CEILING_GROWTH)
        self._numbers.update(weight=min(ceiling, self.weight * GROWTH), last_good=self.weight, ceiling=ceiling)

    def _loss_rose(self) -> None:
        self._numbers.update(weight=self.weight / SHRINKAGE, ceiling=self._numbers["last_good"])
