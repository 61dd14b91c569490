"""What `core.kernels` calls on the CPU.

Rows in parallel, each row and its gradient in cache, unchanged coordinates for free.

Compiled by numba; all arrays are C-contiguous and of one float dtype. `core.kernels.reference` defines what is
computed.
"""

from typing import Any

import numba
import numpy as np
import torch

from core.compiled import Array
from core.kernels.cpu import active_set, dense, dependent, iteration
from core.kernels.cpu.descent import descend_rows
from core.kernels.cpu.lanes import LANES
from core.kernels.cpu.panels import panels_of as panels_of
from core.kernels.cpu.pieces import address, solve_pieces
from core.kernels.cpu.small import PATIENCE
from core.kernels.cpu.sums import sums as of_array
from core.kernels.encode_rules import FEW_CONCEPTS
from core.kernels.grams import gram
from core.kernels.prepared import EncodeCache, Prepared, prepare_with
from core.threads import SMALL_WORK, threads_for

# Rows handed to a thread in one piece, so that one held up by another process does not hold up the rest.
ROWS_PER_PIECE = 32


def descend(
    Z: torch.Tensor, G: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor, max_sweeps: int, progress_ratio: float
) -> torch.Tensor:
    """See `core.kernels.descend`."""
    violation = Z.new_empty(len(Z))
    with threads_for(Z.numel() * B.shape[0]):
        descend_rows(Z.numpy(), G.numpy(), B.numpy(), inverse.numpy(), violation.numpy(), max_sweeps, progress_ratio)
    return violation


def sums(x: torch.Tensor) -> tuple[float, float]:
    """See `core.kernels.sums`."""
    return of_array(x.numpy().ravel())


def iterate(
    A: torch.Tensor,
    Z: torch.Tensor,
    concepts: torch.Tensor,
    energy: float,
    vanished: float,
    code_sweeps: int,
    concept_sweeps: int,
    progress_ratio: float,
) -> tuple[float, float, float, torch.Tensor]:
    """See `core.kernels.iterate`."""
    dead = Z.new_empty(Z.shape[1], dtype=torch.bool)
    (rows, d), k = A.shape, Z.shape[1]
    with threads_for(k * (2 * d + k) * (rows + d)):
        numbers = iteration.iterate(
            A.numpy(),
            Z.numpy(),
            concepts.numpy(),
            dead.numpy(),
            energy,
            vanished,
            code_sweeps,
            concept_sweeps,
            progress_ratio,
        )
    return *numbers, dead


def solve(
    A: torch.Tensor, prepared: Prepared, tol: float, max_sweeps: int, kept: EncodeCache | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `core.kernels.solve`; each row to the same last bit whatever the batch.

    Holds beside Z, for each thread, k + 2d numbers for each of 16 rows, and twice the square of the largest working
    set. (With few concepts: 16 times the square of k.) For a row that goes on in float64 its concepts, and twice the
    square of their number, in that type.
    """
    (rows, d), k = A.shape, len(prepared.D)
    few = k <= min(FEW_CONCEPTS, d)
    a, arrays = A.numpy(), _arrays(prepared, kept)
    if few and not arrays.B.size:
        arrays = arrays._replace(B=gram(prepared.D).numpy())
    Z, residual = np.zeros((rows, k), a.dtype), np.full(rows, np.nan, a.dtype)
    if few:
        _solve(dense.solve_some, a, arrays, tol, Z, residual, min(PATIENCE, max_sweeps))
    else:
        _solve(active_set.solve_some, a, arrays, tol, Z, residual, max_sweeps)
    done = residual <= tol
    if np.count_nonzero(done) < rows:
        late = np.flatnonzero(~done)
        z, left = (torch.from_numpy(x[late]) for x in (Z, residual))
        finish(A[late], prepared, tol, max_sweeps, z, left)
        Z[late], residual[late] = z, left
    return torch.from_numpy(Z), torch.from_numpy(residual)


def solve_for_others(
    A: torch.Tensor, prepared: Prepared, tol: float, max_sweeps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, of tensors on a device that has no kernels for it; the answer lies there, too.

    Torch alone, coordinate by coordinate, would launch a kernel for each of a sweep's, and take seconds for any row.
    """
    Z, residual = solve(A.cpu(), on_the_cpu(prepared), tol, max_sweeps)
    return Z.to(A.device), residual.to(A.device)


def finish(
    A: torch.Tensor, prepared: Prepared, tol: float, max_sweeps: int, Z: torch.Tensor, residual: torch.Tensor
) -> None:
    """What float32 leaves undone, in float64 and in place, with as many sweeps as dense.py leaves of `max_sweeps`."""
    if max_sweeps > PATIENCE:
        z, left = Z.numpy(), residual.numpy()
        _solve(dependent.solve_some, A.numpy(), _arrays(prepared), tol, z, left, max_sweeps - PATIENCE)


def on_the_cpu(prepared: Prepared) -> Prepared:
    """Without the gram, where that lies elsewhere: of all it is the largest."""
    if prepared.D.device.type == "cpu":
        return prepared
    D = prepared.D.cpu()
    return prepare_with(D, D.new_empty(0, 0), prepared.inverse.cpu())


def _arrays(prepared: Prepared, kept: EncodeCache | None = None) -> Prepared:
    arrays = None if kept is None else kept.arrays
    if arrays is None:
        arrays = Prepared(*(tensor.numpy() for tensor in prepared))
        if kept is not None:
            kept.arrays = arrays
    return arrays


def _solve(solve_some: Any, A: Array, prepared: Prepared, *given: Any) -> None:
    """`solve_some` for all rows, on this thread or on several."""
    rows, (k, d) = len(A), prepared.D.shape
    if (work := rows * k * (d + k)) < SMALL_WORK:  # no other thread is woken or even thought of
        solve_some(A, prepared, *given, 0, rows)
        return
    with threads_for(work):
        threads = numba.get_num_threads()
        pieces = min(rows, threads * max(1, rows // (threads * ROWS_PER_PIECE)))
        if solve_some is dense.solve_some:
            pieces = max(pieces, -(-rows // LANES))  # each the rows of one tile: lanes stand empty but once
        solve_pieces(*(address(solve_some, A.dtype), A, prepared, *given, pieces))
