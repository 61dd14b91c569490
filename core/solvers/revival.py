"""Dead concepts brought back from what is not yet explained."""

from collections.abc import Generator

import torch

from core.chunks import Chunks
from core.kernels.precision import Precision, in_float32, product

MOST_AT_ONCE = 128
CANDIDATES_PER_CONCEPT = 4
# A row whose unexplained part holds less than this share of its norm is explained to float32 rounding.
EXPLAINED_SHARE = 1e-4


def revive(
    chunks: Chunks, Z: torch.Tensor, concepts: torch.Tensor, dead: torch.Tensor
) -> Generator[None, None, bool]:
    """Give dead concepts new directions: the positive parts of the worst-reconstructed rows' errors, far apart.

    Their codes start at zero, so that the loss stays as it is, and the next update of Z must use them: at such a
    row the gradient of the new concept is −‖error₊‖. One pass over A, in bounded slices; returns whether any
    concept was revived: none is where A is explained to rounding.

    Args:
        Z, concepts: (n, k) and (d, k), written to in place.
        dead: bool (k,).
    """
    ranks = chunks.ranks
    ranks.broadcast(dead)
    revived = torch.nonzero(dead).squeeze(1)[:MOST_AT_ONCE]
    keep = CANDIDATES_PER_CONCEPT * len(revived)
    errors = torch.empty(0, chunks.n_features, dtype=torch.float32, device=chunks.A.device)
    for rows, block in chunks:
        Z[rows, revived] = 0
        with in_float32(Z.device):
            error = torch.addmm(block, Z[rows], concepts.T, alpha=-1).clamp_(min=0)
        unexplained = error.norm(dim=1) > EXPLAINED_SHARE * block.norm(dim=1)
        errors = longest(torch.cat([errors, error[unexplained]]), keep)
        yield
    if ranks.size > 1:
        errors = longest(ranks.all_gather(errors), keep)
    chosen = far_apart(errors, len(revived))
    concepts[:, revived[: len(chosen)]] = (chosen / chosen.norm(dim=1, keepdim=True)).T
    ranks.broadcast(concepts)
    (count,) = ranks.broadcast_numbers(len(chosen))
    return count > 0


def longest(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` of the rows, the longest first."""
    return rows[rows.norm(dim=1).topk(min(count, len(rows))).indices]


def far_apart(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` of the rows, each the longest once the part along those chosen before is taken away."""
    left, chosen = rows.clone(), []
    for _ in range(min(count, len(rows))):
        lengths = left.norm(dim=1)
        farthest = int(lengths.argmax())
        if lengths[farthest] <= EXPLAINED_SHARE * rows[farthest].norm():
            break  # the rest lies in the span of those chosen
        chosen.append(farthest)
        direction = left[farthest] / lengths[farthest]
        left -= torch.outer(product(left, direction, Precision.FLOAT32), direction)
    return rows[chosen]
