"""The working sets of an encode, in Triton: launched by `core.kernels.cuda.encode` between the products of a round.

A row's working set is its support and the unused concepts that violate most or come nearest to it. All of it is
settled by that row alone.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def choose(
    Z,
    G,
    rows,
    norms,
    scale,
    chosen,
    g_chosen,
    relative,
    residual,
    wanted,
    k,
    room,
    added,
    usual,
    WIDTH: tl.constexpr,
    ALL: tl.constexpr,
):
    """The working set of a program's row, in the order of the concepts, and its residual on all concepts.

    Args:
        Z: (all rows, k). G: (rows, k), the gradient at the codes of `rows`. norms: (rows,), ‖a‖.
        scale: (k,), 1/‖d_j‖, or 0.
        chosen, g_chosen: (rows, room); become the concepts and their gradients, as many as there is room for.
        relative: (rows,), becomes max |v_j|/(‖d_j‖·‖a‖), and NaN where any g is; so does residual (all rows,) at
            `rows`.
        wanted: (rows,) int32, becomes the number of concepts: `added` beside the support, or as many as it holds
            where at least so many violate, unless more than `usual` would come of it. Where it is more than there
            is room for, what comes of the row is not its codes.
        ALL: all concepts are chosen.
    """
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, WIDTH)
    inside = j < k
    row = tl.load(rows + i).to(tl.int64)
    z = tl.load(Z + row * k + j, mask=inside, other=0.0)
    g = tl.load(G + i * k + j, mask=inside, other=0.0)
    s = tl.load(scale + j, mask=inside, other=0.0)
    used = z > 0
    worst = tl.max(tl.where(used, tl.abs(g), tl.maximum(-g, 0.0)) * s, axis=0)
    norm = tl.load(norms + i)
    told = worst / tl.where(norm > 0, norm, 1.0)
    told = tl.where(tl.sum((g != g).to(tl.int32), axis=0) > 0, float("nan"), told)
    tl.store(relative + i, told)
    tl.store(residual + row, told)
    if ALL:
        taken = inside
        count = k
        place = j
    else:
        others = inside & (z == 0) & (s > 0)
        support = tl.sum(used.to(tl.int32), axis=0)
        violating = tl.sum((others & (g < 0)).to(tl.int32), axis=0)
        joining = tl.where(violating < added, added, tl.maximum(tl.minimum(support, usual - support), added))
        joining = tl.minimum(joining, tl.sum(others.to(tl.int32), axis=0))
        # The score that just lets so many join, bit by bit: scores in the order of whole numbers.
        score = (-g * s).to(tl.int32, bitcast=True)
        score = tl.where(score < 0, score ^ 0x7FFFFFFF, score)
        low, high = tl.full([], -(1 << 31), tl.int64), tl.full([], 1 << 31, tl.int64)
        for _ in range(32):
            middle = (low + high) >> 1
            enough = tl.sum((others & (score >= middle.to(tl.int32))).to(tl.int32), axis=0) >= joining
            low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        least = low.to(tl.int32)
        above, level = others & (score > least), others & (score == least)
        still = joining - tl.sum(above.to(tl.int32), axis=0)
        taken = used | above | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= still))
        count = support + joining
        place = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(wanted + i, count)
    kept = taken & (place < room)
    tl.store(chosen + i * room + place, j, mask=kept)
    tl.store(g_chosen + i * room + place, g, mask=kept)


@triton.jit
def gather(B, chosen, widths, grams, k, room, size, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    """Grams (rows, size, size) of working sets, DEPTH rows of one by a program; from B (k, k). Columns are written
    four at once, of which those that follow a row's own become 0; all else is left.
    """
    i = tl.program_id(0).to(tl.int64)
    width = tl.minimum(tl.load(widths + i), size)
    j, m = tl.arange(0, SIZE), tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    column = tl.load(chosen + i * room + j, mask=j < width, other=0)
    row = tl.load(chosen + i * room + m, mask=m < width, other=0).to(tl.int64)
    both = (m < width)[:, None] & (j < width)[None, :]
    b = tl.load(B + row[:, None] * k + column[None, :], mask=both, other=0.0)
    here = (m < width)[:, None] & ((j // 4 * 4 < width) & (j < size))[None, :]
    tl.store(grams + i * size * size + m[:, None] * size + j[None, :], b, mask=here)


@triton.jit
def residuals(A, Z, D, rows, chosen, widths, R, k, d, room, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """R (rows, d) = ZD − A of some rows, BLOCK features of one by a program; only concepts in use are read."""
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i).to(tl.int64)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < d
    width = tl.minimum(tl.load(widths + i), room)
    sums = tl.zeros([DEPTH, BLOCK], tl.float32)
    for first in range(0, width, DEPTH):
        m = first + tl.arange(0, DEPTH)
        concept = tl.load(chosen + i * room + m, mask=m < width, other=0).to(tl.int64)
        z = tl.load(Z + row * k + concept, mask=m < width, other=0.0)
        read = (z != 0)[:, None] & inside[None, :]
        sums += z[:, None] * tl.load(D + concept[:, None] * d + feature[None, :], mask=read, other=0.0)
    a = tl.load(A + row * d + feature, mask=inside, other=0.0)
    tl.store(R + i * d + feature, tl.sum(sums, axis=0) - a, mask=inside)
