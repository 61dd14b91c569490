"""The solvers by name. A solver improves Z and D in place, in bounded slices."""

from collections.abc import Iterator
from typing import Protocol

import torch

from core.chunks import Chunks
from core.errors import UnknownSolver
from core.progress import FitProgress
from core.solvers import anls, hals, mu, pgd
from core.solvers.alternating import Past


class Solver(Protocol):
    def __call__(
        self,
        chunks: Chunks,
        Z: torch.Tensor,
        D: torch.Tensor,
        *,
        tol: float,
        max_iter: int,
        past: Past | None = None,
    ) -> Iterator[FitProgress]:
        """Yields after each bounded slice of work; Z (n, k) and D (k, d) hold the result at the end."""


SOLVERS: dict[str, Solver] = {"hals": hals.solve, "mu": mu.solve, "pgd": pgd.solve, "anls": anls.solve}


def solver_named(name: str) -> Solver:
    if not isinstance(name, str) or name not in SOLVERS:
        raise UnknownSolver(f"unknown solver {name!r}; available: {', '.join(map(repr, SOLVERS))}")
    return SOLVERS[name]
