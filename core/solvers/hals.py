"""HALS: hierarchical alternating least squares, each half of a step one call of the row-wise kernel.

Cichocki, Zdunek & Amari 2007, with several sweeps of one factor for each matrix product with A (Gillis & Glineur
2012). Z is updated row by row in chunks, and the statistics ZᵀZ and AᵀZ are gathered on the way; D follows from
them alone, as the same problem transposed: its rows are the features, its gram ZᵀZ. So A is read once an
iteration, and of products with n rows no more than a chunk is kept.

Extrapolation with restart follows Ang & Gillis 2019, but for D alone: Z's sweeps solve so nearly that where they
start from hardly matters, which saves a second n × k array, and the loss is that of Z and D themselves.

Memory in bytes beside A, Z and D: 24·k·(k + d) for statistics, grams and D's iterates, and 16·c·k for a chunk of c
rows.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from core import kernels
from core.chunks import Chunks, chunk_size, slices
from core.progress import FitProgress, tell
from core.solvers.revival import revive

# D has d rows to Z's n, so that more sweeps of it cost next to nothing.
CODE_SWEEPS = 4
CONCEPT_SWEEPS = 8
SWEEP_SHARE = 0.01  # of the first sweep's squared progress: a tenth of its step

# The step beyond each update of D: its first weight, how the weight and its ceiling grow while the loss falls, and
# how it shrinks when the loss rises (η, γ and γ̄ of Ang & Gillis).
FIRST_WEIGHT, GROWTH, CEILING_GROWTH, SHRINKAGE = 0.5, 1.05, 1.01, 1.5

# Iterations that the stopping rule looks back, and after which dead concepts are revived.
WINDOW = 10
REVIVE_EVERY = 5


@dataclass
class Statistics:
    """What D's half of a step needs to know of Z, summed over the chunks.

    Attributes:
        gram: ZᵀZ, float64 (k, k).
        cross: AᵀZ, float64 (d, k).
        violation: squared, of Z's optimality before its update; see `core.kernels.descend`.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    violation: float


class Extrapolation:
    """The weight of the step beyond each update, adapted to whether the loss falls."""

    def __init__(self) -> None:
        self.weight = self._last_good = FIRST_WEIGHT
        self._ceiling = 1.0

    def loss_fell(self) -> None:
        self._last_good = self.weight
        self._ceiling = min(1.0, self._ceiling * CEILING_GROWTH)
        self.weight = min(self._ceiling, self.weight * GROWTH)

    def loss_rose(self) -> None:
        self._ceiling = self._last_good
        self.weight /= SHRINKAGE


def solve(chunks: Chunks, Z: torch.Tensor, D: torch.Tensor, *, tol: float, max_iter: int) -> Iterator[FitProgress]:
    """Minimise ½‖A − ZD‖²_F over Z, D ≥ 0, in place, from the given Z and D.

    Stops once the best loss of the last ten iterations is less than `tol` (relative) below the best before them,
    or once the residual is at most `tol`/100, or after `max_iter`. The reported `kkt_residual` is ‖V‖_F/‖A‖_F for
    the projected gradients V of Z and D, each before its last update, every concept's part divided by the
    norm of its counterpart: free of scale, and zero exactly at a stationary point.

    A concept that no row uses, or that is zero, is revived from the rows that are reconstructed worst.
    """
    concepts = ahead = D.T.contiguous()  # (d, k): the layout of the kernel; and D extrapolated
    losses: list[float] = []
    extrapolation = Extrapolation()
    told = FitProgress(0, max_iter)
    converged, ending = False, max_iter == 1  # the last iteration starts from D itself
    for iteration in range(1, max_iter + 1):
        statistics = yield from tell(update_codes(chunks, Z, ahead), told)
        updated = ahead.clone()
        violation = yield from tell(update_concepts(updated, statistics), told)

        gram = updated.T @ updated
        loss = loss_from(statistics, updated, gram, chunks.energy)
        if losses and loss > losses[-1]:
            extrapolation.loss_rose()
            ahead = updated
        else:
            ahead = torch.lerp(concepts, updated, 1 + extrapolation.weight).clamp_(min=0)
            extrapolation.loss_fell()
        concepts = updated
        losses.append(loss)

        residual = ((statistics.violation + violation) / chunks.energy) ** 0.5
        converged = converged or residual <= 0.01 * tol or _has_settled(losses, tol)
        dead = (statistics.gram.diagonal() == 0) | (gram.diagonal() == 0)
        may_revive = bool(dead.any()) and not ending and (converged or iteration % REVIVE_EVERY == 0)
        if may_revive and (yield from tell(revive(chunks, Z, concepts, dead), told)):
            ahead, converged = concepts, False
        if ending:
            loss = losses[-1] = yield from tell(direct_loss(chunks, Z, concepts), told)
        told = FitProgress(iteration, max_iter, loss, (2 * loss / chunks.energy) ** 0.5, residual, converged)
        yield told
        if ending:
            break
        if converged or iteration == max_iter - 1:
            ahead, ending = concepts, True
    D.copy_(concepts.T)


def update_codes(chunks: Chunks, Z: torch.Tensor, concepts: torch.Tensor) -> Generator[None, None, Statistics]:
    """Z's half of a step, in place, for concepts (d, k)."""
    d, k = concepts.shape
    new_gram, cross = chunks.A.new_zeros(k, k, dtype=torch.float64), chunks.A.new_zeros(d, k, dtype=torch.float64)
    total_violation = 0.0
    gram = concepts.T @ concepts
    inverse = kernels.inverse_diagonal(gram)
    for rows, block in chunks:
        z = Z[rows]
        G = torch.addmm(block @ concepts, z, gram, beta=-1)
        violation = kernels.descend(z, G, gram, inverse, max_sweeps=CODE_SWEEPS, share=SWEEP_SHARE)
        new_gram += z.T @ z
        cross += block.T @ z
        total_violation += float(violation.sum(dtype=torch.float64))
        yield
    return Statistics(new_gram, cross, total_violation)


def update_concepts(concepts: torch.Tensor, statistics: Statistics) -> Generator[None, None, float]:
    """D's half of a step on concepts (d, k), in place; returns its squared violation before it."""
    total_violation = 0.0
    gram = statistics.gram.to(concepts.dtype)
    inverse = kernels.inverse_diagonal(gram)
    for features in slices(len(concepts), chunk_size(0, concepts.shape[1])):
        part = concepts[features]
        G = torch.addmm(statistics.cross[features].to(concepts.dtype), part, gram, beta=-1)
        violation = kernels.descend(part, G, gram, inverse, max_sweeps=CONCEPT_SWEEPS, share=SWEEP_SHARE)
        total_violation += float(violation.sum(dtype=torch.float64))
        yield
    return total_violation


def loss_from(statistics: Statistics, concepts: torch.Tensor, gram: torch.Tensor, energy: float) -> float:
    """½‖A − ZD‖²_F = ½‖A‖² − ⟨AᵀZ, Dᵀ⟩ + ½⟨ZᵀZ, DDᵀ⟩, summed in float64; never below 0.

    The products were rounded to float32 before, which leaves up to about 1e-7·‖A‖²: of no account for the next
    step, but the loss that is told in the end is taken directly.
    """
    inner = float((statistics.cross * concepts).sum())
    return max(0.0, 0.5 * energy - inner + 0.5 * float((statistics.gram * gram).sum()))


def _has_settled(losses: list[float], tol: float) -> bool:
    if len(losses) <= WINDOW:
        return False
    best = min(losses[-WINDOW:])
    return min(losses[:-WINDOW]) - best <= tol * best


def direct_loss(chunks: Chunks, Z: torch.Tensor, concepts: torch.Tensor) -> Generator[None, None, float]:
    """½‖A − ZD‖²_F from the errors themselves."""
    loss = 0.0
    for rows, block in chunks:
        error = torch.addmm(block, Z[rows], concepts.T, alpha=-1)
        loss += 0.5 * float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
        yield
    return loss
