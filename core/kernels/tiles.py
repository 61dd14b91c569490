"""Coordinate descent on tiles of rows, in Triton: what `core.kernels.cuda` launches for the halves of a fit.

A program owns a tile of rows and passes over the columns of B in blocks. The gradient of a block is made when its
turn comes, from the gradient before the first sweep and all moves since, G + (Z − Z₀)·B: a product of the tile's
moves with a block of B, on tensor cores, as a block of any matrix product. Moves get smaller as a fit goes on, and
with them what TF32 rounds away. Within a block the coordinates go one by one, in registers, a part at a time; what a
part moved is carried to the parts after it by a product again.

Rows stop by themselves, and a tile with its last row: the host waits for nothing and is asked for nothing.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def _gradient_of_block(
    g_start,
    moves,
    B,
    row,
    present,
    start,
    before,
    k,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(ROWS, BLOCK): the gradient of the columns from `start`, after the moves of the columns below `before`.

    B is symmetric, and read by its rows: both factors then lie as the tensor cores want them.
    """
    columns, depth = start + tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    inside = columns < k
    g = tl.load(g_start + row[:, None] + columns[None, :], mask=present[:, None] & inside[None, :], other=0.0)
    b_of = B + columns.to(tl.int64)[:, None] * k
    for first in range(0, before, DEPTH):
        m = first + depth
        x = tl.load(moves + row[:, None] + m[None, :], mask=present[:, None] & (m < before)[None, :], other=0.0)
        b = tl.load(b_of + m[None, :], mask=inside[:, None] & (m < before)[None, :], other=0.0)
        g = tl.dot(x, tl.trans(b), g, input_precision=PRECISION)
    return g


@triton.jit
def _column(x, here):
    """The column of x that is `here`, by its bits: of whole numbers' sums with zeros nothing is left to compute."""
    return tl.sum(tl.where(here, x.to(tl.int32, bitcast=True), 0), axis=1).to(tl.float32, bitcast=True)


@triton.jit
def _sweep_part(z, g, active, B, inverse, start, k, PART: tl.constexpr):
    """z (ROWS, PART), after each of these columns went to its minimum in turn, for their gradient g."""
    column = tl.arange(0, PART)
    inside = start + column < k
    of_columns = B + tl.full([], start, tl.int64) * k + start + column
    for j in tl.static_range(PART):  # unrolled, so that registers are named rather than searched
        here = (column == j)[None, :]
        old, slope = _column(z, here), _column(g, here)
        h = tl.load(inverse + start + j, mask=start + j < k, other=0.0)  # where it is 0, the code stays
        new = tl.where(active, tl.maximum(old - slope * h, 0.0), old)
        b = tl.load(of_columns + j * k, mask=inside & (start + j < k), other=0.0)
        z = tl.where(here, new[:, None], z)
        g += (new - old)[:, None] * b[None, :]
    return z


@triton.jit
def descend(
    Z,
    g_start,
    moves,
    g_block,
    B,
    inverse,
    rows,
    k,
    max_sweeps,
    share,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Z (rows, k) in place; see `core.kernels.descend`.

    Args:
        g_start: (rows, k), the gradient at the given Z.
        moves: (rows, k), zeros; becomes Z less the given one.
        g_block: room for ROWS × BLOCK numbers a program.
    """
    tile = tl.program_id(0)
    in_tile = tl.arange(0, ROWS)
    present = tile * ROWS + in_tile < rows
    row = (tile * ROWS + in_tile).to(tl.int64) * k
    g_row = g_block + (tile * ROWS + in_tile).to(tl.int64) * BLOCK
    part = tl.arange(0, PART)
    active, first = present, tl.zeros([ROWS], dtype=tl.float32)
    for sweep in range(max_sweeps):
        if tl.max(active.to(tl.int32), axis=0) > 0:
            progress = tl.zeros([ROWS], dtype=tl.float32)
            for start in range(0, k, BLOCK):
                # nothing to the right has moved in the first sweep
                before = tl.where(sweep == 0, start, k)
                g = _gradient_of_block(
                    g_start, moves, B, row, present, start, before, k, ROWS, BLOCK, DEPTH, PRECISION
                )
                tl.store(g_row[:, None] + tl.arange(0, BLOCK)[None, :], g)
                tl.debug_barrier()
                width = tl.minimum(BLOCK, k - start)
                for offset in range(0, width, PART):
                    columns = start + offset + part
                    inside = columns < k
                    here = row[:, None] + columns[None, :]
                    mask = present[:, None] & inside[None, :]
                    old = tl.load(Z + here, mask=mask, other=0.0)
                    g_part = tl.load(g_row[:, None] + offset + part[None, :])
                    new = _sweep_part(old, g_part, active, B, inverse, start + offset, k, PART)
                    step = new - old
                    tl.store(Z + here, new, mask=mask)
                    tl.store(moves + here, tl.load(moves + here, mask=mask, other=0.0) + step, mask=mask)
                    diagonal = tl.load(B + columns.to(tl.int64) * (k + 1), mask=inside, other=0.0)
                    progress += tl.sum(step * step * diagonal[None, :], axis=1)
                    for after in range(offset + PART, width, PART):
                        others = start + after + part
                        b = tl.load(
                            B + others.to(tl.int64)[:, None] * k + columns[None, :],
                            mask=(others < k)[:, None] & inside[None, :],
                            other=0.0,
                        )
                        g_of = g_row[:, None] + after + part[None, :]
                        tl.store(g_of, tl.dot(step, tl.trans(b), tl.load(g_of), input_precision=PRECISION))
                    tl.debug_barrier()  # the next part, and the next block's product, read what others wrote
            first = tl.where(sweep == 0, progress, first)
            active = active & (progress > share * first)
