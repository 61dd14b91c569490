"""The solvers by name. A solver improves Z and D in place, in bounded slices."""

from collections.abc import Iterator
from typing import Protocol

import torch

from core.chunks import Chunks
from core.errors import UnknownSolver
from core.progress import FitProgress
from core.solvers import hals


class Solver(Protocol):
    def __call__(
        self, chunks: Chunks, Z: torch.Tensor, D: torch.Tensor, *, tol: float, max_iter: int
    ) -> Iterator[FitProgress]:
        """Yields after each bounded slice of work; Z (n, k) and D (k, d) hold the result at the end."""


SOLVERS: dict[str, Solver] = {"hals": hals.solve}

_PLANNED = ("mu", "pgd", "anls")


def solver_named(name: str) -> Solver:
    if name in SOLVERS:
        return SOLVERS[name]
    available = ", ".join(repr(known) for known in SOLVERS)
    if name in _PLANNED:
        raise UnknownSolver(f"solver {name!r} is not available yet; available: {available}")
    raise UnknownSolver(f"unknown solver {name!r}; available: {available}")
