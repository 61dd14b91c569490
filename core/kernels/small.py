"""Small problems, each with a gram of its own, in Triton: launched by `core.kernels.cuda` for encodes.

A row's problem is that of its working set: codes z, their gradient g, the inverse diagonal h of their gram, and the
residual max |v_j|·√h_j at which it is done, of `aims`. Sweeps find the support, exact steps on it do the rest. A row
that has arrived is left alone, so what is launched for all rows costs only those that need it. `stride` is what lies
between the grams of two rows: 0 where all share one.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl

# A pivot below this share of its diagonal (a hundred roundings) is nothing: others of the support span that concept.
DEPENDENT = tl.constexpr(1.2e-5)


@triton.jit
def _residual(z, g, h, axis: tl.constexpr):
    """max |v_j|·√h_j."""
    v = tl.where(z > 0, g, tl.minimum(g, 0.0))
    return tl.sqrt(tl.max(v * v * h, axis=axis))


@triton.jit
def sweep(Z, G, grams, H, aims, stride, rows, size, sweeps, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Coordinate descent in place on Z and G (rows, size); a warp for each row of a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < rows
    column = tl.arange(0, SIZE)
    mask = present[:, None] & (column < size)[None, :]
    here = row.to(tl.int64)[:, None] * size + column[None, :]
    of_gram = grams + row.to(tl.int64)[:, None] * stride + column[None, :]
    z, g = tl.load(Z + here, mask=mask, other=0.0), tl.load(G + here, mask=mask, other=0.0)
    h = tl.load(H + here, mask=mask, other=0.0)
    aim = tl.load(aims + row, mask=present, other=0.0)
    for _ in range(sweeps):
        active = _residual(z, g, h, 1) > aim
        if tl.max(active.to(tl.int32), axis=0) > 0:
            for j in range(size):
                chosen = (column == j)[None, :]
                old = tl.sum(tl.where(chosen, z, 0.0), axis=1)
                slope = tl.sum(tl.where(chosen, g, 0.0), axis=1)
                inverse = tl.load(H + row.to(tl.int64) * size + j, mask=present, other=0.0)
                new = tl.where(active, tl.maximum(old - slope * inverse, 0.0), old)
                step = new - old
                # rows that stay read nothing
                b = tl.load(of_gram + j * size, mask=mask & (step != 0)[:, None], other=0.0)
                z = tl.where(chosen, new[:, None], z)
                g += step[:, None] * b
    tl.store(Z + here, z, mask=mask)
    tl.store(G + here, g, mask=mask)


@triton.jit
def exact_step(Z, G, grams, H, aims, stride, size, SIZE: tl.constexpr):
    """Towards the minimiser on the support of a program's row, in place, never uphill.

    The gram of the support is swept (Beaton 1964: Gauss-Jordan elimination that stays symmetric) in registers, and
    −g with it. A concept that others of the support span goes to zero. The step is taken whole, negative codes set
    to zero, where that lowers the objective; else it is cut short where the first code reaches zero.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    inside = i < size
    z = tl.load(Z + row * size + i, mask=inside, other=0.0)
    g = tl.load(G + row * size + i, mask=inside, other=0.0)
    h = tl.load(H + row * size + i, mask=inside, other=0.0)
    if _residual(z, g, h, 0) > tl.load(aims + row):
        used = z > 0
        diagonal = tl.where(h > 0, 1 / tl.where(h > 0, h, 1.0), 0.0)
        of_gram = grams + row * stride + i[:, None] * size + i[None, :]
        both = inside[:, None] & inside[None, :]
        gram = tl.load(of_gram, mask=both, other=0.0)
        left = tl.where(used[:, None] & used[None, :], gram, 0.0)
        step = tl.where(used, -g, 0.0)
        for j in range(size):
            chosen = i == j
            v = tl.sum(tl.where(chosen[None, :], left, 0.0), axis=1)
            pivot = tl.sum(tl.where(chosen, v, 0.0), axis=0)
            least = DEPENDENT * tl.sum(tl.where(chosen, diagonal, 0.0), axis=0)
            value = tl.sum(tl.where(chosen, step, 0.0), axis=0)
            old = tl.sum(tl.where(chosen, z, 0.0), axis=0)
            spans = (pivot > least).to(tl.float32)  # 0 for a concept that is unused or spanned: v is 0 or dropped
            inverse = spans / tl.where(pivot > least, pivot, 1.0)
            # how far this code goes, the unused ones nowhere; those not yet swept make up for one that is dropped
            goes = tl.where(spans > 0, value * inverse, -old)
            step = tl.where(chosen, goes, step - v * goes)
            w = v * inverse
            cross = chosen[:, None] | chosen[None, :]
            left = tl.where(cross, tl.where(chosen[:, None], w[None, :], w[:, None]), left - w[:, None] * v[None, :])

        target = z + step
        falls = used & (target < 0)
        reach = tl.min(tl.where(falls, -z / tl.where(falls, step, -1.0), 1.0), axis=0)
        delta = tl.where(used, tl.maximum(target, 0.0), 0.0) - z
        change = tl.sum(tl.load(of_gram, mask=both, other=0.0) * delta[None, :], axis=1)
        uphill = tl.sum(delta * (2 * g + change), axis=0) > 0
        new = tl.where(uphill, tl.maximum(z + reach * step, 0.0), tl.maximum(target, 0.0))
        new = tl.where(used, new, 0.0)
        change = tl.sum(tl.load(of_gram, mask=both, other=0.0) * (new - z)[None, :], axis=1)
        tl.store(Z + row * size + i, new, mask=inside)
        tl.store(G + row * size + i, g + change, mask=inside)
