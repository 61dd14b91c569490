"""MU: multiplicative updates, z ← z·c/(zB) (Lee & Seung 2001).

Each update minimises, coordinate by coordinate, a convex bound on the loss that touches it at z, so that the loss
never rises. Several updates of one factor are made for each matrix product with A (Gillis & Glineur 2012, who
count them as done here); each of them is still Lee & Seung's.

One deviation: an update never goes below 1e-10 of c_j/B_jj, the code that the concept would have alone. Zero is a
fixed point of the update wherever it comes from; above zero nothing is lost for ever, and a start with zeros
becomes positive. The bound's minimum over codes no smaller than that is still reached, so that the loss never
rises. Where c_j is zero (A's row or column is zero) the code is exactly zero.

It is slow to settle: at k = 64 on digits activations after some 1000 iterations, 1.5 % above the loss of hals, with
3 % left after 500.

Memory in bytes beside what all solvers hold: 12·c·k for a chunk of c rows.
"""

from collections.abc import Iterator
from functools import partial

import torch

from core import kernels
from core.chunks import Chunks
from core.kernels.precision import Precision, in_float32, product
from core.progress import FitProgress
from core.solvers.alternating import Half, Past, Step, alternate, in_turn, threads_for_many

# What the updates of one factor may cost, as a multiple of the products with A before them (α of Gillis & Glineur),
# and their number at most: those of D are cheap where n is large, but soon bring nothing.
COST_SHARE = 2
MOST_UPDATES = 40

LEAST_SHARE = 1e-10  # of the code that a concept would have alone
MOST_GROWTH = 1e6  # of a code in one update; a shorter step lowers the loss too
SMALLEST = torch.finfo(torch.float32).tiny


def solve(
    chunks: Chunks, Z: torch.Tensor, D: torch.Tensor, *, tol: float, max_iter: int, past: Past | None = None
) -> Iterator[FitProgress]:
    """See `core.solvers.alternating.alternate`."""
    codes, concepts = (multiplicative(m, chunks.nb_concepts) for m in (chunks.n_features, chunks.all_rows))
    return alternate(chunks, Z, D, partial(in_turn, codes, concepts), tol=tol, max_iter=max_iter, past=past)


def multiplicative(width: int, nb_concepts: int) -> Half:
    """A half whose cross products are sums over `width` values."""
    count = min(MOST_UPDATES, 1 + COST_SHARE * (1 + width // nb_concepts))
    return Half(partial(updates, count=count), products=2 * count)


def updates(B: torch.Tensor, *, count: int) -> Step:
    """`count` multiplicative updates of each row."""
    inverse = kernels.inverse_diagonal(B)

    def step(Z: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        with threads_for_many(Z, B):
            least = C * (LEAST_SHARE * inverse)
            ZB = product(Z, B, Precision.FLOAT32)
            before = kernels.squared_violation(Z, ZB - C, inverse, bound=least)
            for update in range(count):
                growth = torch.div(C, ZB.clamp_(min=SMALLEST), out=ZB).clamp_(max=MOST_GROWTH)
                torch.maximum(Z.mul_(growth), least, out=Z)
                if update < count - 1:
                    with in_float32(Z.device):
                        torch.mm(Z, B, out=ZB)
        return before

    return step
