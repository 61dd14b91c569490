"""The gram of a dictionary, as every kernel wants it."""

import torch

from core.kernels.precision import Precision, product

ROWS_MIRRORED = 256  # at once, so that no second matrix of the gram's size is needed


def gram(D: torch.Tensor) -> torch.Tensor:
    """D·Dᵀ, symmetric to the last bit (which a product need not be): what reads either triangle reads the same."""
    B = product(D, D.T, Precision.FLOAT32)
    for start in range(0, len(B), ROWS_MIRRORED):
        rows = slice(start, start + ROWS_MIRRORED)
        below = B[rows, :start]
        B[:start, rows] = below.T
        square = B[rows, rows].tril()
        B[rows, rows] = square + square.tril(-1).T
    return B
