"""Small problems, each with a gram of its own, in Triton: launched by `core.kernels.cuda.encode`.

A row's problem is that of its working set: minimise ½zBzᵀ − cz over z ≥ 0, from given codes z and their gradient g.
Coordinate descent would be a chain of thousands of steps, each waiting for the one before; here a step is a product
of the whole gram with a vector, and some tens of them do: conjugate gradients on the support, a step that would
leave the bounds set back onto them, and codes at zero let go once they violate more than the others (Dostál &
Schöberl 2005, MPRGP; a step beyond the bounds is projected and tried, and cut short at the first bound where that
would lead uphill). Codes are in units of √B_jj, in which the gram's diagonal is one.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl

# A direction's curvature is no less than this share of its square (a hundred roundings): what has less is spanned by
# other concepts, and its step ends at a bound.
LEAST_CURVATURE = tl.constexpr(1e-5)


@triton.jit
def _violation(z, g):
    return tl.where(z > 0, g, tl.minimum(g, 0.0))


@triton.jit
def _free(z, g):
    """The gradient on the support."""
    return tl.where(z > 0, g, 0.0)


@triton.jit
def _direction(z, g, free, on_support):
    """What to go against: `on_support`, or the gradient of the codes at zero where these violate more."""
    held = _violation(z, g) - free
    return tl.where(tl.sum(held * held, axis=0) > tl.sum(free * free, axis=0), held, on_support)


@triton.jit(do_not_specialize=["most", "charge"])
def minimise(
    Z,
    G,
    chosen,
    scale,
    grams,
    rows,
    norms,
    relative,
    widths,
    spent,
    vectors,
    k,
    room,
    size,
    stride,
    share,
    least,
    most,
    charge,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """The codes of a program's row on its working set, until its relative residual is `share` of what it was.

    Args:
        Z: (all rows, k), in place at `rows` and `chosen`.
        G: (rows, room), the gradients of the chosen concepts.
        chosen: (rows, room) int32, of which the first `widths` of each row are its working set.
        scale: (k,), 1/√B_jj, or 0 for a concept that is not used.
        grams: (size, size) of each row, `stride` apart: 0 where all share one.
        norms, relative: (rows,), ‖a‖ and max |v_j|/(‖d_j‖·‖a‖) at the given codes.
        spent: (rows,) int32, products made so far; a row makes none beyond `most`, and counts as having made
            `charge` at least.
        vectors: room for SIZE numbers a program.
        least: a relative residual that is small enough whatever `share` is.
        DEPTH: rows of the gram that are read at once; all, and once only, where it is RESIDENT in registers.
    """
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, SIZE)
    width = tl.minimum(tl.load(widths + i), size)
    inside = j < width
    at = tl.load(chosen + i * room + j, mask=inside, other=0)
    here = Z + tl.load(rows + i).to(tl.int64) * k + at
    s = tl.load(scale + at, mask=inside, other=0.0)
    used = s > 0
    z = tl.where(used, tl.load(here, mask=used, other=0.0) / tl.where(used, s, 1.0), 0.0)
    g = s * tl.load(G + i * room + j, mask=inside, other=0.0)
    aim = tl.maximum(share * tl.load(relative + i), least) * tl.load(norms + i)
    made_before = tl.load(spent + i)
    left = most - made_before
    of_gram, vector = grams + i * stride, vectors + i * SIZE
    # of a row of the gram columns are read four at once, also what is not used or not defined of these
    columns = ((j // 4 * 4 < width) & (j < size))[None, :]
    if RESIDENT:
        gram = tl.load(of_gram + j[:, None] * size + j[None, :], mask=used[:, None] & columns, other=0.0)
        gram = tl.where(used[None, :], gram, 0.0) * s[:, None] * s[None, :]

    free = _free(z, g)
    p, product_of_p, step = _direction(z, g, free, free), tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
    made, trying = 0, False
    going = (tl.max(tl.abs(_violation(z, g)), axis=0) > aim) & (left > 0)
    while going:
        x = tl.where(trying, step, p)
        if RESIDENT:
            y = tl.sum(gram * x[:, None], axis=0)
        else:
            tl.debug_barrier()  # all have read the vector before
            tl.store(vector + j, x * s)
            tl.debug_barrier()
            sums = tl.zeros([DEPTH, SIZE], tl.float32)
            for first in range(0, width, DEPTH):
                m = first + tl.arange(0, DEPTH)
                x_m = tl.load(vector + m, mask=m < width, other=0.0)
                read = (x_m != 0)[:, None] & columns  # nothing, where nothing moves
                sums += x_m[:, None] * tl.load(of_gram + m[:, None] * size + j[None, :], mask=read, other=0.0)
            y = tl.where(used, s * tl.sum(sums, axis=0), 0.0)
        made += 1
        if trying:
            falls = tl.sum(step * (2 * g + y), axis=0) < 0
            reach = tl.min(tl.where(p > 0, z / tl.where(p > 0, p, 1.0), float("inf")), axis=0)
            z = tl.maximum(tl.where(falls, z + step, z - reach * p), 0.0)
            g = tl.where(falls, g + y, g - reach * product_of_p)
            free = _free(z, g)
            p = _direction(z, g, free, free)
            trying = False
        else:
            square = tl.maximum(tl.sum(p * p, axis=0), 1e-37)
            curvature = tl.maximum(tl.sum(p * y, axis=0), square * LEAST_CURVATURE)
            length = tl.sum(g * p, axis=0) / curvature
            target = z - length * p
            product_of_p = y
            if tl.min(target, axis=0) < 0:
                step = tl.maximum(target, 0.0) - z
                trying = True
            else:
                z = target
                g -= length * y
                free = _free(z, g)
                p = _direction(z, g, free, free - tl.sum(free * y, axis=0) / curvature * p)
        going = trying | (tl.max(tl.abs(_violation(z, g)), axis=0) > aim)
        going = going & (made < left)
    tl.store(here, z * s, mask=used)
    tl.store(spent + i, made_before + tl.maximum(made, charge))
