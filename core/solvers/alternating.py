"""What the solvers share: Z and D improved in turn, from statistics, until the loss has settled.

Both halves of an iteration are one problem: rows of a factor that are non-negative and independent of each other,
given the gram B (k, k) of the other factor and the rows' cross products C with it. Z is improved in chunks of A's
rows, and the statistics ZᵀZ and AᵀZ are gathered on the way; D follows from them alone, as the same problem
transposed: its rows are the features, B = ZᵀZ and C = AᵀZ. So A is read once an iteration, and of products with n
rows no more than a chunk is kept. What a solver does with such rows is its `Half`.

Over several ranks each has some of the rows, and all of them compute D. An iteration exchanges the statistics,
k·(k + d) + 1 numbers in one sum; then all take rank 0's D, k·d numbers, and the few by which it is decided how to go
on, since another processor may have rounded differently.

Memory in bytes beside A, Z and D: 24·k·(k + d) for statistics, grams and D's iterates, and 8·c·k for a chunk of c
rows; and what a solver says that it needs.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from core import kernels
from core.chunks import Chunks, even, rows_of_slice, slices
from core.kernels.precision import in_float32
from core.progress import FitProgress, tell
from core.solvers.revival import revive
from core.sparse import SparseRows
from core.statistics import Statistics, add_cross_product, loss_from
from core.threads import threads_for_elements, threads_for_product, threads_of_torch_for

REVIVE_EVERY = 5  # iterations after which dead concepts are revived
WINDOW = 10  # iterations that the stopping rule looks back
# Steps of single coordinates would lower the loss by half the squared violation in all. Where that is this share of
# the fall that ends a fit, ten iterations will not come to it.
STATIONARY_SHARE = 0.01
# Beside ‖A‖² a loss of this share, a relative error of 1e-6, is the rounding of Z·D in float32.
ROUNDING_SHARE = 5e-13
# A loss from statistics may be off by 5e-7·‖A‖²: next to nothing of one, or of a fall, that is this share of ‖A‖² or
# more; and of no account where the loss is so large that less than that would end the fit.
ROUGH_SHARE, LARGE_SHARE = 1e-5, 2e-3

# Values of A − ZD that are held at once on the CPU.
ERRORS_AT_ONCE = 1 << 21

# Where a concept is unused, its half-vanished codes would call for entries of D beyond float32 (or the other way
# round). One whose squared norm is below this share of ‖A‖² or below the least that has a reciprocal is taken as 0.
VANISHED_SHARE, VANISHED = 1e-34, 1e-36

# Rows Z (rows, k) improved in place, given C (rows, k); returns each row's `squared_violation` before that.
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Half:
    """How a solver improves the rows of one factor.

    Attributes:
        prepare: from the gram B (k, k) of the other factor, float32, the step that any rows can take.
        products: what the step costs a row, in products with B; it sets how many rows are one slice of work.
    """

    prepare: Callable[[torch.Tensor], Step]
    products: int


@dataclass(frozen=True, slots=True)
class Iteration:
    """What an iteration has come to, beside Z.

    Attributes:
        concepts: (d, k), after it.
        loss: ½‖A − ZD‖²_F of them, which may be off by 5e-7·‖A‖².
        of_codes, of_concepts: squared violations before the updates.
        dead: bool (k,), the concepts that are zero, or that no row uses.
    """

    concepts: torch.Tensor
    loss: float
    of_codes: torch.Tensor | float
    of_concepts: torch.Tensor | float
    dead: torch.Tensor


# From codes Z (n, k), in place, and concepts (d, k), of which those that have vanished are set to zero.
Iterate = Callable[[Chunks, torch.Tensor, torch.Tensor], Generator[None, None, Iteration]]


@dataclass(slots=True)
class Past:
    """What the next iteration needs to know of those before it, beside Z.

    Attributes:
        reached: the concepts (d, k) after the last iteration; None before the first, and in the midst of one, while
            Z is neither here nor there.
        ahead: the concepts (d, k) that the next iteration starts from; `reached` itself where nothing lies beyond.
        losses: after each iteration, of A as its chunks are read.
        kkt_residual: of the last iteration.
        converged: whether the stopping rule has been met.
        extrapolation: numbers by which `start_from` goes, its own.
    """

    reached: torch.Tensor | None = None
    ahead: torch.Tensor | None = None
    losses: list[float] = field(default_factory=list)
    kkt_residual: float | None = None
    converged: bool = False
    extrapolation: dict[str, float] = field(default_factory=dict)

    def progress(self, max_iter: int, energy: float) -> FitProgress:
        if not self.losses:
            return FitProgress(0, max_iter)
        loss = self.losses[-1]
        relative_error = (2 * loss / energy) ** 0.5
        return FitProgress(len(self.losses), max_iter, loss, relative_error, self.kkt_residual, self.converged)


def where_updated(before: torch.Tensor, updated: torch.Tensor, fell: bool) -> torch.Tensor:
    """The next iteration starts where the last one ended: no extrapolation."""
    return updated


def alternate(
    chunks: Chunks,
    Z: torch.Tensor,
    D: torch.Tensor,
    iterate: Iterate,
    *,
    tol: float,
    max_iter: int,
    past: Past | None = None,
    start_from: Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor] = where_updated,
) -> Iterator[FitProgress]:
    """Minimise ½‖A − ZD‖²_F over Z, D ≥ 0, in place, from the given Z and D.

    Stops once the best loss of the last ten iterations is less than `tol` (relative) below the best before them, or
    after `max_iter`; and at once where that is foreseen: A is met to rounding, or ½‖V‖² is at most `tol`/100 of the
    loss, where V are the projected gradients of Z and D, each before its last update, every concept's part divided by
    the norm of its counterpart. With `tol` 0 neither ends a fit that may still gain. The reported `kkt_residual` is
    ‖V‖_F/‖A‖_F: free of scale, and zero exactly at a stationary point.

    A concept that no row uses, or that is zero, is revived from the rows that are reconstructed worst.

    Args:
        iterate: one iteration; `in_turn` of two halves, or what comes to the same.
        past: of a fit that goes on: Z and D are then as they were after its last iteration. Kept up to date from
            then on; with Z, what is in it after an iteration is all that the next ones depend on.
        start_from: the concepts (d, k) that the next iteration starts from, given those before this one and after
            it, and whether the loss fell.
    """
    past = past or Past()
    reached = D.T.contiguous()  # (d, k), rows contiguous as a step wants them
    ahead = reached if past.ahead is None else past.ahead  # and where the iteration starts from
    losses, converged, ranks = past.losses, past.converged, chunks.ranks
    told = past.progress(max_iter, chunks.energy)
    for iteration in range(len(losses) + 1, max_iter + 1):
        past.reached = None
        ending = converged or iteration == max_iter
        if ending:  # the last iteration starts from D itself
            ahead = reached
        done = yield from tell(iterate(chunks, Z, ahead), told)
        updated, dead = done.concepts, done.dead
        loss, of_concepts, any_dead = ranks.broadcast_numbers(done.loss, float(done.of_concepts), bool(dead.any()))
        if ending or _is_too_rough(loss, losses, chunks.energy):
            (loss,) = ranks.broadcast_numbers((yield from tell(direct_loss(chunks, Z, updated), told)))
        with threads_for_elements(updated):
            ahead = start_from(reached, updated, not losses or loss <= losses[-1])
        reached = updated
        losses.append(loss)

        squared_violation = float(done.of_codes) + of_concepts
        residual = (squared_violation / chunks.energy) ** 0.5
        converged = (
            converged
            or 0.5 * squared_violation <= STATIONARY_SHARE * tol * loss
            or (tol > 0 and loss <= ROUNDING_SHARE * chunks.energy)
            or _has_settled(losses, tol)
        )
        may_revive = bool(any_dead) and not ending and (converged or iteration % REVIVE_EVERY == 0)
        if may_revive and (yield from tell(revive(chunks, Z, reached, dead), told)):
            ahead, converged = reached, False
        past.kkt_residual, past.converged = residual, converged
        told = past.progress(max_iter, chunks.energy)
        if not ending:
            past.reached, past.ahead = reached, ahead
        yield told
        if ending:
            break
    D.copy_(reached.T)


def in_turn(
    codes: Half, concepts: Half, chunks: Chunks, Z: torch.Tensor, ahead: torch.Tensor
) -> Generator[None, None, Iteration]:
    """An iteration of two halves: how the rows of Z, and then the columns of D, are improved."""
    statistics = yield from update_codes(codes, chunks, Z, ahead)
    updated = ahead.clone()
    of_concepts = yield from update_concepts(concepts, updated, statistics)
    chunks.ranks.broadcast(updated)
    gram = torch.zeros_like(statistics.gram)
    add_cross_product(updated, updated, gram)
    dead = (statistics.gram.diagonal() == 0) | (gram.diagonal() == 0)
    with threads_for_elements(updated):
        loss = loss_from(statistics, updated, gram, chunks.energy)
    return Iteration(updated, loss, statistics.violation, of_concepts, dead)


def update_codes(
    half: Half, chunks: Chunks, Z: torch.Tensor, concepts: torch.Tensor
) -> Generator[None, None, Statistics]:
    """Z's half of an iteration, in place, for concepts (d, k); those that have vanished are set to zero."""
    statistics = Statistics.zeros(len(concepts), concepts.shape[1], concepts.device)
    with threads_for_elements(concepts):
        concepts.masked_fill_(concepts.square().sum(dim=0) < vanished(chunks.energy), 0)
    step = half.prepare(kernels.product(concepts.T, concepts))
    for rows, block in chunks:
        z = Z[rows]
        statistics.violation += yield from _improve(step, z, kernels.product(block, concepts), half.products)
        statistics.add(block, z)
    chunks.ranks.all_sum(0, statistics.violation, statistics.gram, statistics.cross)
    unused = statistics.gram.diagonal() < vanished(chunks.energy)
    statistics.gram.masked_fill_(unused | unused[:, None], 0)
    statistics.cross.masked_fill_(unused, 0)
    return statistics


def update_concepts(
    half: Half, concepts: torch.Tensor, statistics: Statistics
) -> Generator[None, None, torch.Tensor]:
    """D's half of an iteration on concepts (d, k), in place; returns its squared violation before it."""
    step = half.prepare(statistics.gram.to(concepts.dtype))
    return (yield from _improve(step, concepts, statistics.cross, half.products))


def vanished(energy: float) -> float:
    """The squared norm below which a concept, or a concept's codes, of an A with ‖A‖² = `energy` are zero."""
    return max(VANISHED, VANISHED_SHARE * energy)


def _improve(step: Step, Z: torch.Tensor, C: torch.Tensor, products: int) -> Generator[None, None, torch.Tensor]:
    total, k = torch.zeros((), dtype=torch.float64, device=Z.device), Z.shape[1]
    for rows in slices(len(Z), rows_of_slice(products * k * k, Z.device)):
        with threads_for_elements(C):
            c = C[rows].to(Z.dtype)
        violation = step(Z[rows], c)
        total += violation.sum(dtype=torch.float64)  # a device is asked for it at the end of the iteration
        yield
    return total


def threads_for_many(Z: torch.Tensor, B: torch.Tensor) -> AbstractContextManager[None]:
    """Threads for a step of many operations on Z (rows, k), the largest of them Z·B, most of them far smaller."""
    return threads_of_torch_for(Z.numel() * len(B) / 16)


def direct_loss(chunks: Chunks, Z: torch.Tensor, concepts: torch.Tensor) -> Generator[None, None, float]:
    """½‖A − ZD‖²_F from the errors themselves."""
    loss, gram = 0.0, None
    for rows, block in chunks:
        if isinstance(block, SparseRows) and block.is_mostly_zero_columns:
            gram = concepts.double().T @ concepts.double() if gram is None else gram
            loss += 0.5 * block.squared_error(Z[rows], concepts, gram)
        else:
            loss += 0.5 * _squared_error(block, Z[rows], concepts)
        yield
    return chunks.ranks.all_sum(loss)


def _squared_error(A: torch.Tensor, Z: torch.Tensor, concepts: torch.Tensor) -> float:
    """‖A − ZD‖²_F of a chunk. On the CPU errors of some rows replace those of others: they stay in cache, where those
    of 20 000 rows of 512 features would take longer to be given memory than all else."""
    at_once = max(1, ERRORS_AT_ONCE // A.shape[1]) if A.device.type == "cpu" else len(A)
    size, total = even(len(A), at_once), 0.0
    errors = A.new_empty(size, A.shape[1])
    for rows in slices(len(A), size):
        a = A[rows]
        with threads_for_product(Z[rows].numel() * A.shape[1]), in_float32(A.device):
            torch.addmm(a, Z[rows], concepts.T, alpha=-1, out=errors[: len(a)])
        total += kernels.sums(errors[: len(a)])[1]
    return total


def _is_too_rough(loss: float, losses: list[float], energy: float) -> bool:
    """Whether a loss from statistics is too small, or too near the last one, to tell how the fit goes on."""
    fall = losses[-1] - loss if losses else loss
    return loss < LARGE_SHARE * energy and min(loss, fall) < ROUGH_SHARE * energy


def _has_settled(losses: list[float], tol: float) -> bool:
    if len(losses) <= WINDOW:
        return False
    best = min(losses[-WINDOW:])
    return min(losses[:-WINDOW]) - best <= tol * best
