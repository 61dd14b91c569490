"""Descent in plain torch, for any device: the same iterates as row by row, to rounding.

A sweep visits the coordinates in the same order, but for all rows at once: one by one within a block of columns,
where only the block's part of the gradient is kept up to date, then one matrix product carries the block's steps
to the gradient of all columns. `core.kernels.reference` defines what is computed.
"""

import torch

from core.kernels.precision import Precision, product
from core.kernels.prepared import squared_violation

BLOCK_COLUMNS = 64


def descend(
    Z: torch.Tensor, G: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor, max_sweeps: int, progress_ratio: float
) -> torch.Tensor:
    """See `core.kernels.descend`."""
    violation = squared_violation(Z, G, inverse)
    rows = torch.arange(len(Z), device=Z.device)
    first = _sweep(Z, G, B, inverse)
    for _ in range(max_sweeps - 1):
        z, g = Z[rows], G[rows]
        progress = _sweep(z, g, B, inverse)
        Z[rows], G[rows] = z, g
        going = progress > progress_ratio * first[rows]
        if not going.any():
            break
        rows = rows[going]
    return violation


def _sweep(Z: torch.Tensor, G: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """One pass over the columns, in place; the progress of each row."""
    progress = torch.zeros(len(Z), dtype=Z.dtype, device=Z.device)
    for start in range(0, Z.shape[1], BLOCK_COLUMNS):
        block = slice(start, start + BLOCK_COLUMNS)
        steps = _sweep_block(Z[:, block], G[:, block].clone(), B[block, block], inverse[block])
        G += product(steps, B[block], Precision.FLOAT32)
        progress += (steps.square() * B[block, block].diagonal()).sum(dim=1)
    return progress


def _sweep_block(z: torch.Tensor, g: torch.Tensor, b: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """One pass over a block's columns of z and of its gradient g, in place; the step of each code."""
    before = z.clone()
    for j in range(z.shape[1]):
        moved = (z[:, j] - g[:, j] * h[j]).clamp(min=0) if h[j] > 0 else z[:, j]
        g += torch.outer(moved - z[:, j], b[j])
        z[:, j] = moved
    return z - before
