"""HALS: hierarchical alternating least squares, each half of a step one call of the row-wise kernel.

Cichocki, Zdunek & Amari 2007, with several sweeps of one factor for each matrix product with A (Gillis & Glineur
2012) and extrapolation with restart (Ang & Gillis 2019). Z is updated row by row in chunks, and the statistics
ZᵀZ and AᵀZ are gathered on the way; D follows from them alone, as the same problem transposed: its rows are the
features, its gram ZᵀZ. A is read once an iteration and no product with n rows and more than a chunk of them is
ever kept.

Memory in bytes, beside A and the result Z and D: 4·n·k for the extrapolated codes, 20·k·(k + d) for statistics and
grams, and about 8·c·k for a chunk of c rows.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from core import kernels
from core.chunks import Chunks, chunk_size, slices
from core.progress import FitProgress

INNER_SWEEPS = 4
INNER_SHARE = 0.01  # of the first sweep's squared progress: a tenth of its step


@dataclass
class Statistics:
    """What D's half of a step needs to know of Z, summed over the chunks.

    Attributes:
        gram: ZᵀZ, float64 (k, k).
        cross: AᵀZ, float64 (d, k).
        violation: ‖V‖²_F of Z's projected gradient before the update, each concept's divided by its norm.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    violation: float = 0.0


def hals(chunks: Chunks, Z: torch.Tensor, D: torch.Tensor, *, tol: float, max_iter: int) -> Iterator[FitProgress]:
    """Minimise ½‖A − ZD‖²_F over Z, D ≥ 0, in place, from the given Z and D.

    Stops once ten iterations have lowered the loss by less than `tol` of itself, or after `max_iter`.
    """
    Dt = D.T.contiguous()
    energy = sum(float(block.square().sum(dtype=torch.float64)) for _, block in chunks)
    losses: list[float] = []
    report = FitProgress(0, max_iter)
    for iteration in range(1, max_iter + 1):
        stats = Statistics(*_zeros(chunks, Z.shape[1]))
        for _ in _update_codes(chunks, Z, Dt, stats):
            yield report
        for _ in _update_concepts(Dt, stats):
            yield report
        B = Dt.T @ Dt
        loss = 0.5 * energy - float((stats.cross * Dt).sum()) + 0.5 * float((stats.gram * B).sum())
        losses.append(loss)
        converged = len(losses) > 10 and losses[-11] - loss <= tol * loss
        report = FitProgress(iteration, max_iter, loss, (2 * loss / energy) ** 0.5, None, converged)
        yield report
        if converged:
            break
    D.copy_(Dt.T)


def _zeros(chunks: Chunks, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    new = chunks.A.new_zeros
    return new(k, k, dtype=torch.float64), new(chunks.n_features, k, dtype=torch.float64)


def _update_codes(
    chunks: Chunks, Z: torch.Tensor, Dt: torch.Tensor, stats: Statistics
) -> Generator[None, None, None]:
    B = Dt.T @ Dt
    inverse = kernels.inverse_diagonal(B)
    for rows, block in chunks:
        z = Z[rows]
        G = torch.addmm(block @ Dt, z, B, beta=-1)
        kernels.descend(z, G, B, inverse, max_sweeps=INNER_SWEEPS, share=INNER_SHARE)
        stats.gram += z.T @ z
        stats.cross += block.T @ z
        yield


def _update_concepts(Dt: torch.Tensor, stats: Statistics) -> Generator[None, None, None]:
    gram = stats.gram.to(Dt.dtype)
    inverse = kernels.inverse_diagonal(gram)
    for features in slices(len(Dt), chunk_size(0, Dt.shape[1])):
        d = Dt[features]
        G = torch.addmm(stats.cross[features].to(Dt.dtype), d, gram, beta=-1)
        kernels.descend(d, G, gram, inverse, max_sweeps=INNER_SWEEPS, share=INNER_SHARE)
        yield
