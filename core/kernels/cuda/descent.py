"""Coordinate descent on tiles of rows, in Triton: launched by `core.kernels.cuda.interface` for the halves of a fit.

A program is one warp that owns a tile of rows and passes over some columns of Z, a part at a time. The gradient of a
part is made when its turn comes, from the one before and the moves since: a product with rows of B, on tensor cores.
Within a part the coordinates go one by one, each a vector of its own over the rows: a thread then has the codes and
gradients of its row in registers, and no coordinate waits for what another thread holds.

Rows stop by themselves, and a tile with its last row: the host is asked for nothing.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
# ruff: noqa: RET505, RUF005, SIM108 - Triton's compiler takes less of Python than Python does

import triton
import triton.language as tl


@triton.jit
def _columns(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The columns of x (ROWS, WIDTH), a power of two of them: (ROWS,) each."""
    even, odd = tl.split(tl.reshape(x, (ROWS, WIDTH // 2, 2)))
    if WIDTH == 2:
        return tl.reshape(even, (ROWS,)), tl.reshape(odd, (ROWS,))
    else:
        evens, odds = _columns(even, ROWS, WIDTH // 2), _columns(odd, ROWS, WIDTH // 2)
        columns = ()
        for i in tl.static_range(WIDTH // 2):
            columns = columns + (evens[i], odds[i])
        return columns


@triton.jit
def _beside(columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """(ROWS, WIDTH) of such columns."""
    if WIDTH == 2:
        return tl.join(columns[0], columns[1])
    else:
        evens, odds = (), ()
        for i in tl.static_range(WIDTH // 2):
            evens, odds = evens + (columns[2 * i],), odds + (columns[2 * i + 1],)
        return tl.reshape(tl.join(_beside(evens, ROWS, WIDTH // 2), _beside(odds, ROWS, WIDTH // 2)), (ROWS, WIDTH))


@triton.jit
def _number(x, inside, EVEN: tl.constexpr):
    """What x points to, or 0 beyond the end, which is not to be looked for where parts are EVEN."""
    if EVEN:
        return tl.load(x)
    else:
        return tl.load(x, mask=inside, other=0.0)


@triton.jit
def _sweep_part(
    z, g, active, progress, B, inverse, left, k, ROWS: tl.constexpr, PART: tl.constexpr, EVEN: tl.constexpr
):
    """Each of these columns to its minimum in turn: (the steps (ROWS, PART), the progress with theirs).

    Args:
        z, g: (ROWS, PART), codes and gradient.
        B, inverse: point to what belongs to the first of these columns, of which `left` are there.
    """
    z, g = _columns(z, ROWS, PART), _columns(g, ROWS, PART)
    steps = ()
    for j in tl.static_range(PART):
        h = _number(inverse + j, j < left, EVEN)  # where it is 0, the code stays
        step = tl.where(active, tl.maximum(z[j] - g[j] * h, 0.0) - z[j], 0.0)
        progress += step * step * _number(B + j * k + j, j < left, EVEN)
        steps = steps + (step,)
        after = ()
        for i in tl.static_range(PART):
            if i > j:
                after = after + (g[i] + step * _number(B + j * k + i, i < left, EVEN),)
            else:
                after = after + (g[i],)
        g = after
    return _beside(steps, ROWS, PART), progress


@triton.jit(do_not_specialize=["rows", "block", "sweep", "sweeps"])
def descend(
    Z,
    g_start,
    g_product,
    steps,
    moves,
    B,
    inverse,
    going,
    progress,
    first,
    rows,
    k,
    stride,
    block,
    sweep,
    sweeps,
    progress_ratio,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    DEPTH: tl.constexpr,
    ALONE: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The columns of one block of Z (rows, k) in place, `sweeps` times from the `sweep`-th on.

    The gradient of a block is that at the given Z, and a product of all moves since with B, but for what the block's
    own columns have moved in this sweep. One that is ALONE needs no product: it sees to all the moves there are.

    Args:
        g_start: (rows, k), the gradient at the given Z.
        g_product: (rows, stride), moves·B of this block before this sweep; unless it is ALONE.
        steps: room for (rows, BLOCK): what the block's columns have moved in this sweep; unless it is ALONE.
        moves: (rows, k), Z less the given one; kept up to date.
        going: (rows,) int32, whether the row is swept; settled with the last block.
        progress, first: (rows,), of this sweep and of the first.
        EVEN: k is a multiple of PART.
    """
    tile = tl.program_id(0).to(tl.int64) * ROWS
    row, part, depth = tl.arange(0, ROWS), tl.arange(0, PART), tl.arange(0, DEPTH)
    present = row < rows - tile
    start = block * BLOCK
    width = tl.minimum(BLOCK, k - start)
    active = present & (tl.load(going + tile + row, mask=present, other=0) != 0)
    in_all = tl.load(progress + tile + row, mask=present, other=0.0)
    of_first = tl.load(first + tile + row, mask=present, other=0.0)
    # what differs from tile to tile, block to block and part to part is a number of 64 bits; the rest has 32
    here = row[:, None] * k + part[None, :]
    Z, moves, g_start = Z + tile * k + start, moves + tile * k + start, g_start + tile * k + start
    B, inverse = B + start.to(tl.int64) * (k + 1), inverse + start
    if ALONE:
        moved, of_moved = moves, row[:, None] * k + depth[None, :]
    else:
        moved, of_moved = steps + tile * BLOCK, row[:, None] * BLOCK + depth[None, :]
    for s in range(sweeps):
        if tl.max(active.to(tl.int32), axis=0) > 0:
            for offset in range(0, width, PART):
                inside = part < width - offset
                mask = present[:, None] & inside[None, :]
                g = tl.load(g_start + offset + here, mask=mask, other=0.0)
                # nothing to the right has moved in the first sweep
                before = tl.where(sweep + s == 0, offset, width) if ALONE else offset
                if not ALONE:
                    of_product = g_product + tile * stride + offset
                    g += tl.load(of_product + row[:, None] * stride + part[None, :], mask=mask, other=0.0)
                z = tl.load(Z + offset + here, mask=mask, other=0.0)
                total = tl.load(moves + offset + here, mask=mask, other=0.0)
                of_part = B + tl.full([], offset, tl.int64) * k
                for at in range(0, before, DEPTH):
                    m = depth < before - at
                    x = tl.load(moved + at + of_moved, mask=present[:, None] & m[None, :], other=0.0)
                    b = tl.load(
                        of_part + at + part[:, None] * k + depth[None, :],
                        mask=inside[:, None] & m[None, :],
                        other=0.0,
                    )
                    # B is symmetric, and read by its rows: both factors then lie as the tensor cores want them
                    g = tl.dot(x, tl.trans(b), g, input_precision=PRECISION)
                step, in_all = _sweep_part(
                    z, g, active, in_all, of_part + offset, inverse + offset, width - offset, k, ROWS, PART, EVEN
                )
                tl.store(Z + offset + here, z + step, mask=mask)
                tl.store(moves + offset + here, total + step, mask=mask)
                if not ALONE:
                    tl.store(steps + tile * BLOCK + offset + row[:, None] * BLOCK + part[None, :], step, mask=mask)
                tl.debug_barrier()  # the next part's product reads what other threads wrote
            if start + width >= k:
                of_first = tl.where(sweep + s == 0, in_all, of_first)
                active = active & (in_all > progress_ratio * of_first)
                in_all = tl.zeros([ROWS], dtype=tl.float32)
    tl.store(going + tile + row, active.to(tl.int32), mask=present)
    tl.store(progress + tile + row, in_all, mask=present)
    tl.store(first + tile + row, of_first, mask=present)
