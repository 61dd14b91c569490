"""The kernels for CUDA devices: matrix products by cuBLAS, coordinate descent by Triton. float32 alone.

Not yet run on a GPU: what is here is held to `core.kernels.reference` by Triton's interpreter.
"""

from collections.abc import Iterator

import torch

from core.kernels import small, tiles
from core.kernels.grams import gram
from core.kernels.precision import Precision, product

# --- descent: columns of a block, those among them that go one by one in registers, and the depth of a product's step
BLOCK, PART, DEPTH = 128, 32, 32
# Rows of a program: as many as still leave one for each multiprocessor, since a block of B is read once for all.
MOST_ROWS, LEAST_ROWS = 128, 16

# Sweeps that go on to this share of the first's progress or beyond are meant to arrive, which three products allow.
ITERATING_SHARE = 1e-4

# --- encode: no more concepts than this are one small problem for every row, and share its gram
FEW_CONCEPTS = 256
# Concepts that join a working set in a round; where more violate and the support is larger, as many as it holds.
ADDED = 64
# A round ends once its small problem is this share of the whole problem's residual from its minimum,
ROUND_SHARE = 0.03
# and the last one aims below what is asked for, since the gradient of all concepts is checked after it.
LAST_SHARE = 0.5
# Sweeps before the first exact step of a round, then between them, and how often they alternate in a round.
SWEEPS_AT_FIRST, SWEEPS_BETWEEN, TURNS = 8, 2, 6
# Rows that are not done after so many sweeps (dependent concepts, as a rule) take up to so many exact steps in a row.
PATIENCE, EXACT_STEPS = 40, 16
LARGEST_EXACT = 256  # concepts of a small problem whose gram a program's registers hold; larger ones are swept alone
SIZES = 64  # working sets are a multiple of this: few kernels to compile, and rows of grams that are aligned
WARPS = {128: 8, 256: 32}  # for a gram in registers; 4 for smaller ones
ROWS_SWEPT = 8  # by one program, a warp each
GRAM_BYTES = 1 << 30  # of working sets gathered at once


def descend(
    Z: torch.Tensor, G: torch.Tensor, B: torch.Tensor, inverse: torch.Tensor, max_sweeps: int, share: float
) -> torch.Tensor:
    """See `core.kernels.descend`. Holds as much as Z beside it, and BLOCK numbers a row."""
    violation = (_projected(Z, G).square_() * inverse).sum(dim=1)
    rows, k = Z.shape
    of_program = rows_of_program(rows, Z.device)
    programs = -(-rows // of_program)
    precision = "tf32" if share >= ITERATING_SHARE else "tf32x3"
    moves, g_block = torch.zeros_like(Z), Z.new_empty(programs * of_program, BLOCK)
    tiles.descend[(programs,)](
        Z, G, moves, g_block, B, inverse, rows, k, max_sweeps, share,
        ROWS=of_program, BLOCK=BLOCK, PART=PART, DEPTH=DEPTH, PRECISION=precision,
        num_warps=8 if of_program == MOST_ROWS else 4, num_stages=3,
    )  # fmt: skip
    return violation


def solve(
    A: torch.Tensor,
    D: torch.Tensor,
    B: torch.Tensor | None,
    inverse: torch.Tensor,
    tol: float,
    max_sweeps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `core.kernels.solve`; by rounds on a working set for each row, as on the CPU (`core.kernels.active_set`).

    A round: the gradient of all concepts through the residual, g = (zD − a)·Dᵀ, for all rows that are left; the
    working set of each, its support and those that violate most; a few sweeps and exact steps on it. The first
    gradient is a product in TF32, those that certify a row are float32 throughout. The host waits once a round, to
    learn how many rows are left.
    """
    if len(D) <= FEW_CONCEPTS and B is None:
        B = gram(D)
    norms = torch.linalg.vector_norm(A, dim=1)
    Z, residual = A.new_zeros(len(A), len(D)), torch.zeros_like(norms)
    rows, left, swept = torch.arange(len(A), device=A.device), A, 0
    z, g = Z, -product(A, D.T, Precision.TF32)
    while True:
        reached = _residual(z, g, inverse)
        share = (
            ROUND_SHARE if len(D) > FEW_CONCEPTS else 0
        )  # which hold all concepts, so that more rounds add nothing
        aims = (share * reached).clamp(min=LAST_SHARE * tol * norms[rows])
        swept = _round(z, g, D, B, inverse, aims, swept, max_sweeps)
        if z is not Z:
            Z[rows] = z
        g = product(product(z, D, Precision.FLOAT32, less=left), D.T, Precision.FLOAT32)
        relative = _residual(z, g, inverse) / norms[rows].clamp(min=torch.finfo(norms.dtype).tiny)
        residual[rows] = relative
        if swept >= max_sweeps:
            break
        going = torch.nonzero(relative > tol).squeeze(1)
        if not len(going):
            break
        rows, left, z, g = rows[going], left[going], z[going], g[going]
    return Z, residual


# --- a round of an encode -------------------------------------------------------------------------------------------


def _round(
    z: torch.Tensor,
    g: torch.Tensor,
    D: torch.Tensor,
    B: torch.Tensor | None,
    inverse: torch.Tensor,
    aims: torch.Tensor,
    swept: int,
    max_sweeps: int,
) -> int:
    """Lower each row's residual to its aim, or nearer to it, on its working set; z in place. See `solve_small`."""
    k = len(D)
    if k <= FEW_CONCEPTS and B is not None:
        return solve_small(z, g, B, inverse.expand_as(z).contiguous(), aims, swept, max_sweeps)
    wanted = _wanted(z, g, inverse)
    size = min(k, -(-int(wanted.max()) // SIZES) * SIZES)
    made = swept
    for some in _pieces(len(z), 4 * size * (size if B is not None else size + D.shape[1])):
        chosen, h = _working_set(z[some], g[some], inverse, wanted[some], size)
        grams = B[chosen[:, :, None], chosen[:, None, :]] if B is not None else _grams_of(D[chosen])
        z_small, g_small = z[some].gather(1, chosen), g[some].gather(1, chosen)
        made = solve_small(z_small, g_small, grams, h, aims[some], swept, max_sweeps)
        z[some] = z[some].scatter(1, chosen, z_small)
    return made


def _wanted(z: torch.Tensor, g: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Concepts in each row's working set: a matter of that row alone."""
    used = (z > 0).sum(dim=1)
    violating = ((z == 0) & (g < 0) & (inverse > 0)).sum(dim=1)
    return (used + torch.where(violating < ADDED, ADDED, used.clamp(min=ADDED))).clamp(max=z.shape[1])


def _working_set(
    z: torch.Tensor, g: torch.Tensor, inverse: torch.Tensor, wanted: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The concepts (rows, size), the support first, then those of least g_j/‖d_j‖; and their inverse diagonal.

    That of the places beyond what a row wants is 0, so that they stay as they are: how wide the widest row of the
    batch is makes no difference to the others.
    """
    scores = torch.where(z > 0, torch.inf, -g * inverse.sqrt())
    chosen = scores.topk(size, dim=1).indices
    asked_for = torch.arange(size, device=z.device) < wanted[:, None]
    return chosen, torch.where(asked_for, inverse[chosen], 0)


def _grams_of(rows: torch.Tensor) -> torch.Tensor:
    """Gram (n, size, size) of each set of concepts (n, size, d)."""
    return product(rows, rows.mT, Precision.SPLIT)


def solve_small(
    z: torch.Tensor,
    g: torch.Tensor,
    grams: torch.Tensor,
    h: torch.Tensor,
    aims: torch.Tensor,
    swept: int,
    max_sweeps: int,
) -> int:
    """Codes z and gradient g (rows, size), in place, towards residuals of `aims` (rows,).

    Args:
        grams: (rows, size, size), or (size, size) for all.
        h: (rows, size), the inverse diagonals; 0 where a concept is to stay as it is.
        swept: sweeps made before; those made then are returned.
    """
    rows, size = z.shape
    stride = size * size if grams.dim() == 3 else 0
    width = max(16, 1 << (size - 1).bit_length())
    for turn in range(TURNS):
        sweeps = min(SWEEPS_BETWEEN if turn else SWEEPS_AT_FIRST, max_sweeps - swept)
        if sweeps == 0:
            break
        small.sweep[(-(-rows // ROWS_SWEPT),)](
            z, g, grams, h, aims, stride, rows, size, sweeps, ROWS=ROWS_SWEPT, SIZE=width, num_warps=ROWS_SWEPT
        )
        swept += sweeps
        if size <= LARGEST_EXACT:
            small.exact_steps[(rows,)](
                z, g, grams, h, aims, stride, size, 1 if swept < PATIENCE else EXACT_STEPS,
                SIZE=width, num_warps=WARPS.get(width, 4),
            )  # fmt: skip
    return swept


def _pieces(rows: int, bytes_of_row: int) -> Iterator[slice]:
    step = max(1, GRAM_BYTES // bytes_of_row)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


# --- both -----------------------------------------------------------------------------------------------------------


def _projected(Z: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    return torch.where(Z > 0, G, G.clamp(max=0))


def _residual(Z: torch.Tensor, G: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """max_j |v_j| / ‖d_j‖ of each row."""
    return (_projected(Z, G).abs_() * inverse.sqrt()).amax(dim=1)


def rows_of_program(rows: int, device: torch.device) -> int:
    """A power of two."""
    most = MOST_ROWS
    while most > LEAST_ROWS and rows <= most * (multiprocessors(device) - 1):
        most //= 2
    return most


def multiprocessors(device: torch.device) -> int:
    """1 on the CPU, for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
