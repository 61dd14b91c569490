"""ANLS: alternating non-negative least squares, each half solved exactly (Kim & Park 2011).

What the name promises is the exactness of each half, and `core.kernels.solve`, which encodes use, keeps it: Kim &
Park's block pivoting exchanges a row's support in blocks and solves on it by Cholesky; the kernel finds most of
the support by sweeps of coordinate descent, then solves on it by Cholesky too, passes over concepts that others
span (so that singular grams are no danger), and certifies each row by its KKT residual. It is simpler than a second
exact solver here, and needs one or two factorisations a row where pivoting from zero takes more.

The kernel wants rows and a dictionary, and D's half has only their products. Those of A' = C·L⁻ᵀ and L are the same
for any L·Lᵀ = B, so that A' and L, k columns each, stand for them in both halves.

Memory in bytes beside what all solvers hold: 20·c·k for a chunk of c rows and 24·k².
"""

from collections.abc import Iterator
from functools import partial

import torch

from core import kernels
from core.chunks import Chunks
from core.errors import OutOfRange
from core.kernels.precision import Precision, in_float32, product
from core.progress import FitProgress
from core.solvers.alternating import Half, Past, Step, alternate, in_turn

# The relative KKT residual of each row, close above what float32 gradients can tell from zero.
ROW_TOL = 1e-6
MAX_SWEEPS = 300
ROUNDING = 1e-7  # of a gram in float32, as a share of its diagonal


def solve(
    chunks: Chunks, Z: torch.Tensor, D: torch.Tensor, *, tol: float, max_iter: int, past: Past | None = None
) -> Iterator[FitProgress]:
    """See `core.solvers.alternating.alternate`."""
    return alternate(chunks, Z, D, partial(in_turn, EXACT, EXACT), tol=tol, max_iter=max_iter, past=past)


def exact(B: torch.Tensor) -> Step:
    """The minimum over each row."""
    inverse = kernels.inverse_diagonal(B)
    L = factor(B)
    prepared = kernels.prepare_with(L, B, inverse)

    def step(Z: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        G = product(Z, B, Precision.FLOAT32, less=C)
        with in_float32(C.device):
            A = torch.linalg.solve_triangular(L.T, C, upper=True, left=False).contiguous()
        codes, _ = kernels.solve(A, prepared, tol=ROW_TOL, max_sweeps=MAX_SWEEPS)
        before = kernels.squared_violation(Z, G, inverse)
        # near the minimum of an ill-conditioned row rounding may end a little higher than where the row was
        G += product(codes, B, Precision.FLOAT32, less=C)
        rose = torch.linalg.vecdot(codes - Z, G)[:, None] > 0
        Z.copy_(torch.where(rose, Z, codes))
        return before

    return step


EXACT = Half(exact, products=128)


def factor(B: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor of B to rounding: its diagonal is raised by the least that makes it definite.

    Raises:
        OutOfRange: B is not finite.
    """
    diagonal, share = B.diagonal().double(), ROUNDING
    while True:
        raised = B.double() + torch.diag(torch.where(diagonal > 0, share * diagonal, 1))
        L: torch.Tensor
        L, failed = torch.linalg.cholesky_ex(raised)
        if not failed:
            return L.to(B.dtype).contiguous()
        if not bool(torch.isfinite(B).all()):  # which no share would make definite
            raise OutOfRange("the products of this fit exceed float32; divide the activations by 1000 or more")
        share *= 10
