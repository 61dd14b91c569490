"""Products of `core.kernels.precision` as a GPU makes them, on the CPU: factors are rounded as tensor cores round."""

import torch

from core.kernels.precision import Precision, nearest_tf32


def product(X: torch.Tensor, Y: torch.Tensor, kind: Precision, *, less: torch.Tensor | None = None) -> torch.Tensor:
    """X·Y, or X·Y − less."""
    if kind is Precision.FLOAT32:
        made = X @ Y
    else:
        x, y = nearest_tf32(X), nearest_tf32(Y)
        made = x @ y
        if kind is Precision.SPLIT:
            made = (_cut_off(X - x) @ y + x @ _cut_off(Y - y)) + made
    return made if less is None else made - less


def _cut_off(x: torch.Tensor) -> torch.Tensor:
    return (x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)
