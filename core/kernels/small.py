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
def _step(z, g, gram, diagonal, size, SIZE: tl.constexpr):
    """What leads from z to the minimiser on its support, on which the gradient is g.

    The gram of the support is swept (Beaton 1964: Gauss-Jordan elimination that stays symmetric) in registers, and
    −g with it. A concept that others of the support span goes to zero, and they make up for it.
    """
    i = tl.arange(0, SIZE)
    used = z > 0
    left = tl.where(used[:, None] & used[None, :], gram, 0.0)
    step = tl.where(used, -g, 0.0)
    for j in range(size):
        chosen = i == j
        v = tl.sum(tl.where(chosen[None, :], left, 0.0), axis=1)
        pivot = tl.sum(tl.where(chosen, v, 0.0), axis=0)
        least = DEPENDENT * tl.sum(tl.where(chosen, diagonal, 0.0), axis=0)
        inverse = tl.where(pivot > least, 1 / tl.where(pivot > least, pivot, 1.0), 0.0)
        value = tl.sum(tl.where(chosen, step, 0.0), axis=0)
        old = tl.sum(tl.where(chosen, z, 0.0), axis=0)  # of an unused concept it is 0, and so is v
        goes = tl.where(pivot > least, value * inverse, -old)
        step = tl.where(chosen, goes, step - v * goes)
        w = v * inverse
        across = tl.where(chosen[:, None], w[None, :], w[:, None])
        left = tl.where(chosen[:, None] | chosen[None, :], across, left - w[:, None] * v[None, :])
    return step


@triton.jit
def exact_steps(Z, G, grams, H, aims, stride, size, steps, SIZE: tl.constexpr):
    """Towards the minimiser on the support of a program's row, in place, never uphill.

    A step is taken whole, negative codes set to zero, where that lowers the objective; else it is cut short where the
    first code reaches zero (Lawson & Hanson 1974), and another follows, up to so many `steps`.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    inside = i < size
    z = tl.load(Z + row * size + i, mask=inside, other=0.0)
    g = tl.load(G + row * size + i, mask=inside, other=0.0)
    h = tl.load(H + row * size + i, mask=inside, other=0.0)
    diagonal = tl.where(h > 0, 1 / tl.where(h > 0, h, 1.0), 0.0)
    of_gram = grams + row * stride + i[:, None] * size + i[None, :]
    both = inside[:, None] & inside[None, :]
    going = _residual(z, g, h, 0) > tl.load(aims + row)
    for _ in range(steps):
        if going:
            step = _step(z, g, tl.load(of_gram, mask=both, other=0.0), diagonal, size, SIZE)
            used, target = z > 0, z + step
            falls = used & (target < 0)
            reach = tl.min(tl.where(falls, -z / tl.where(falls, step, -1.0), 1.0), axis=0)
            new = tl.where(used, tl.maximum(target, 0.0), 0.0)
            change = tl.sum(tl.load(of_gram, mask=both, other=0.0) * (new - z)[None, :], axis=1)
            going = tl.sum((new - z) * (2 * g + change), axis=0) > 0
            if going:
                new = tl.where(used, tl.maximum(z + reach * step, 0.0), 0.0)
                change = tl.sum(tl.load(of_gram, mask=both, other=0.0) * (new - z)[None, :], axis=1)
            z, g = new, g + change
    tl.store(Z + row * size + i, z, mask=inside)
    tl.store(G + row * size + i, g, mask=inside)
