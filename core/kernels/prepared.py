"""A dictionary, ready to solve on: what all of `core.kernels.solve` computes once and not for each call."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from core.kernels.grams import gram
from core.kernels.lazy_cpu import cpu_kernels


class Prepared(NamedTuple):
    """Tensors of one device and dtype; within compiled code, and for it, the arrays of them.

    Attributes:
        D: (k, d).
        B: (k, k), its gram; empty where it is not held: what is needed of it is computed from D.
        inverse: (k,), 1/‖d_j‖², and 0 for a concept of norm zero, which is never used.
        panels: D once more, as `core.kernels.cpu.panels` wants it; empty on other devices than the CPU.
    """

    D: Any
    B: Any
    inverse: Any
    panels: Any


@dataclass
class EncodeCache:
    """What is kept beside a prepared D for later calls. Any thread may use it.

    Attributes:
        graphs: see `core.kernels.cuda.graphs`.
        on_cpu: the same on the CPU, once it was wanted there; of threads that made it at once, the last one's.
        arrays: of a D on the CPU, as compiled code takes it: to make them takes as long as to encode some features.
    """

    graphs: dict[Any, Any] = field(default_factory=dict)
    on_cpu: Prepared | None = None
    arrays: Prepared | None = None


def prepare(D: torch.Tensor, *, hold_gram: bool) -> Prepared:
    """D (k, d), contiguous."""
    B = gram(D) if hold_gram else D.new_empty(0, 0)
    return prepare_with(D, B, inverse_of(torch.linalg.vector_norm(D, dim=1).square()))


def prepare_with(D: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor) -> Prepared:
    """Of a D whose gram and inverse are there."""
    return Prepared(D, B, inverse, cpu_kernels().panels_of(D) if D.device.type == "cpu" else D.new_empty(0, 0, 0))


def inverse_of(diagonal: torch.Tensor) -> torch.Tensor:
    """1/B_jj, and 0 where B_jj is 0."""
    return torch.where(diagonal > 0, 1 / diagonal, 0)


def squared_violation(
    Z: torch.Tensor, G: torch.Tensor, inverse: torch.Tensor, bound: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Σ_j v_j²/B_jj of each row, with gradient g: v_j = g_j where z_j is above its lower bound, else min(g_j, 0)."""
    return (torch.where(bound < Z, G, G.clamp(max=0)).square_() * inverse).sum(dim=1)
