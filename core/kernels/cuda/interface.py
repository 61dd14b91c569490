"""What `core.kernels` calls on CUDA devices: matrix products by cuBLAS, all else by Triton. float32 alone.

Not yet run on a GPU: what is here is held to `core.kernels.reference` by Triton's interpreter.
"""

import torch

from core.kernels.cuda import descent, encode
from core.kernels.cuda.encode import Encode, Solved, on_device, size_for
from core.kernels.cuda.graphs import FEW_ROWS, EncodeGraph, Graphs, graph_of
from core.kernels.lazy_cpu import cpu_kernels
from core.kernels.precision import Precision, product
from core.kernels.prepared import EncodeCache, Prepared, squared_violation

# --- descent
# columns swept between two products of all rows; wide enough that moves are read as fast as they are multiplied
BLOCK = 512
PART = 16  # columns of a block whose coordinates go one by one, in registers
DEPTH = 32  # depth of a tensor-core product within a block
ROWS = 32  # of a program, which is a warp: a row each thread
LOOK_AFTER = 16  # sweeps after which the host asks whether any row still goes; a fit's iterations take fewer

# Of an encode: a program of `working_sets.choose` holds a row's codes and gradients of all. It compiles for half a
# minute for so many, and three times as long for twice as many: these are for the CPU.
MOST_CONCEPTS = 32768

# Sweeps that go on to this share of the first's progress or beyond are meant to arrive, which three products allow.
ITERATING_SHARE = 1e-4


def descend(
    Z: torch.Tensor, G: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor, max_sweeps: int, progress_ratio: float
) -> torch.Tensor:
    """See `core.kernels.descend`. Holds as much as Z beside it, and 2·BLOCK numbers a row; halves of it for the while
    of a product where it is meant to arrive.

    More than BLOCK concepts go block by block: a product for all rows, then a sweep of the block by tiles of rows.
    """
    violation = squared_violation(Z, G, inverse)
    precision = Precision.TF32 if progress_ratio >= ITERATING_SHARE else Precision.SPLIT
    rows, k = Z.shape
    moves, progress, first = torch.zeros_like(Z), Z.new_zeros(rows), Z.new_zeros(rows)
    going = torch.ones(rows, dtype=torch.int32, device=Z.device)

    def launch(block: int, sweep: int, sweeps: int, product_of_moves: torch.Tensor, steps: torch.Tensor) -> None:
        descent.descend[(-(-rows // ROWS),)](
            Z, G, product_of_moves, steps, moves, B, inverse, going, progress, first,
            rows, k, product_of_moves.shape[1], block, sweep, sweeps, progress_ratio,
            ROWS=ROWS, BLOCK=BLOCK, PART=PART, DEPTH=DEPTH, ALONE=k <= BLOCK, EVEN=k % PART == 0,
            PRECISION="tf32" if precision is Precision.TF32 else "tf32x3", num_warps=1, num_stages=3,
        )  # fmt: skip

    with torch.cuda.device_of(Z):  # type: ignore[no-untyped-call]
        if k <= BLOCK:
            launch(0, 0, max_sweeps, G, moves)
            return violation
        steps = Z.new_empty(rows, BLOCK)
        for sweep in range(max_sweeps):
            if sweep and sweep % LOOK_AFTER == 0 and not bool(going.any()):
                break
            for block, start in enumerate(range(0, k, BLOCK)):
                before = start if sweep == 0 else k  # nothing to the right has moved in the first sweep
                of_block = B[start : start + BLOCK, :before]  # by rows, as B is symmetric and tensor cores want it
                launch(block, sweep, 1, product(moves[:, :before], of_block.T, precision), steps)
    return violation


def solve(
    A: torch.Tensor, prepared: Prepared, tol: float, max_sweeps: int, kept: EncodeCache | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `core.kernels.solve`; by rounds on a working set for each row, as on the CPU (see
    `core.kernels.cpu.active_set`).

    A round: the gradient of all concepts through the residual, g = (zD − a)·Dᵀ, for all rows that are left; the
    working set of each, its support and those that violate most; the minimum on it, nearly. Gradients are products in
    TF32 until that tells too little of a row; what certifies it is as precise as it takes, float32 at the most. The
    host waits once a round, to learn which rows are left, and once more for each precision beyond TF32; for few rows,
    once for all the rounds that most encodes take. Rows that have had all their products are ended by exact steps on
    the CPU: of concepts that nearly depend on each other, gradients settle little.
    """
    kept = kept or EncodeCache()
    with torch.cuda.device_of(A):  # type: ignore[no-untyped-call]
        solved = _by_graph(A, prepared, tol, max_sweeps, kept.graphs)
        solved = solved or _by_rounds(Encode(A, prepared, tol, max_sweeps))
        if solved.given_up:
            late = (~(solved.residual <= tol)).nonzero().squeeze(1)
            a, z, left = (x[late].cpu() for x in (A, solved.Z, solved.residual))
            kept.on_cpu = kept.on_cpu or cpu_kernels().on_the_cpu(prepared)
            cpu_kernels().finish(a, kept.on_cpu, tol, max_sweeps, z, left)
            solved.Z[late], solved.residual[late] = z.to(A.device), left.to(A.device)
        return solved.Z, solved.residual


def _by_graph(A: torch.Tensor, prepared: Prepared, tol: float, max_sweeps: int, graphs: Graphs) -> Solved | None:
    """None where there is none, or none that would do."""
    if not 0 < len(A) <= FEW_ROWS:
        return None
    rows = 1 << (len(A) - 1).bit_length()  # a few at most stand empty

    def record_it() -> EncodeGraph:
        return EncodeGraph(Encode(A.new_zeros(rows, A.shape[1]), prepared, tol, max_sweeps, room=encode.ROOM))

    graph = graph_of(graphs, (rows, tol, max_sweeps), record_it)
    return None if graph is None else graph.solve(A)


def _by_rounds(encode: Encode) -> Solved:
    encode.begin()
    given_up = False
    while True:
        told = encode.climb()
        if told.widest > encode.room:
            encode.make_room(told.widest)
            told = encode.climb()
        going = encode.going(told)
        given_up = given_up or bool((~going & (told.relative > encode.tol)).any())
        if not bool(going.any()):
            return Solved(encode.Z, encode.residual, given_up)
        if not bool(going.all()):
            encode.rows = encode.rows.only(on_device(going.nonzero().squeeze(1), encode.Z.device))
        encode.lower(min(encode.room, size_for(told.widest)))
