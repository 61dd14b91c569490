"""R·Dᵀ for the rows that a thread has in hand, at the rate of the machine's multipliers.

D comes in panels: the concepts whose sums are in registers at once lie together, feature by feature, so that what is
read is read in order. A library's product is made for many rows; and here a row's sums are added in one
fixed order, whatever the rows beside it.

Compiled by numba.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from core import levels
from core.compiled import Array, compiled
from core.kernels.cpu.lanes import LANES, in_all_lanes, plus_product

WIDE = levels.has("avx512f")
ROWS = 8  # that R and G are padded to a multiple of
# Features after which the sums so far are put down: a panel's stay in the core's cache for all rows, and a sum of
# sums is more exact.
DEPTH = 64


def _tile(itemsize: int) -> tuple[int, int]:
    """Rows and vectors of concepts whose sums the registers hold, with what is multiplied beside them."""
    if WIDE:
        return (8, 3) if itemsize == 4 else (8, 1)
    return (4, 1) if itemsize == 4 else (2, 1)


def width_of(itemsize: int) -> int:
    """Concepts of a panel."""
    return _tile(itemsize)[1] * LANES


def panels_of(D: torch.Tensor) -> torch.Tensor:
    """D (k, d) as (panels, d, width), the last panel filled up with zeros."""
    (k, d), width = D.shape, width_of(D.itemsize)
    panels = -(-k // width)
    whole = D if panels * width == k else torch.cat([D, D.new_zeros(panels * width - k, d)])
    return whole.reshape(panels, width, d).transpose(1, 2).contiguous()


def _products(most_rows: int | None) -> Any:
    """An operation of compiled code: so many rows by a panel, or as many as there are registers for."""

    @intrinsic
    def products(typing, R, panels, G, row, panel, first, last):
        """Add the products over features `first` to `last` to G, or where `first` is 0 begin with them."""
        in_registers, vectors = _tile(R.dtype.bitwidth // 8)
        rows = most_rows or in_registers

        def generate(context, builder, signature, args):
            kinds = signature.args
            arrays = [context.make_array(kinds[i])(context, builder, args[i]) for i in range(3)]
            row, panel, first, last = (context.cast(builder, args[i], kinds[i], types.intp) for i in range(3, 7))
            vector, number = ir.VectorType(arrays[0].data.type.pointee, LANES), ir.IntType(64)
            features, columns = (builder.extract_value(arrays[i].shape, 1) for i in (0, 2))
            width = number(vectors * LANES)

            def place(array, *terms):
                """At the sum of terms, each a number or a product of two."""
                total = number(0)
                for term in terms:
                    total = builder.add(total, builder.mul(*term) if isinstance(term, tuple) else term)
                return builder.gep(array.data, [total])

            def as_vector(pointer):
                return builder.bitcast(pointer, vector.as_pointer())

            def loaded(pointer):
                return builder.load(as_vector(pointer), align=R.dtype.bitwidth // 8)

            lines = [place(arrays[0], (builder.add(row, number(r)), features)) for r in range(rows)]
            start = place(arrays[1], (builder.mul(panel, features), width))
            nothing = ir.Constant(vector, None)
            sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(vectors)] for _ in range(rows)]
            for line in sums:
                for at in line:
                    builder.store(nothing, at)
            with cgutils.for_range(builder, builder.sub(last, first)) as loop:
                m = builder.add(first, loop.index)
                here = builder.gep(start, [builder.mul(m, width)])
                concepts = [loaded(builder.gep(here, [number(v * LANES)])) for v in range(vectors)]
                for r in range(rows):
                    x = in_all_lanes(builder, builder.load(builder.gep(lines[r], [m])))
                    for at, w in zip(sums[r], concepts, strict=True):
                        builder.store(plus_product(builder, builder.load(at), x, w), at)
            begins = builder.icmp_signed("==", first, number(0))
            for r in range(rows):
                line = place(arrays[2], (builder.add(row, number(r)), columns), (panel, width))
                for v, at in enumerate(sums[r]):
                    pointer = builder.gep(line, [number(v * LANES)])
                    before = builder.select(begins, nothing, loaded(pointer))
                    builder.store(
                        builder.fadd(before, builder.load(at)), as_vector(pointer), align=R.dtype.bitwidth // 8
                    )
            return context.get_dummy_value()

        return types.void(R, panels, G, row, panel, first, last), generate

    return products


_products_of_rows, _products_of_row = _products(None), _products(1)


@intrinsic
def _rows_of_tile(typing, R):
    def generate(context, builder, signature, args):
        return context.get_constant(types.intp, _tile(R.dtype.bitwidth // 8)[0])

    return types.intp(R), generate


@compiled()
def padded(rows: int) -> int:
    """Rows of R and of G for so many that count."""
    return (rows + ROWS - 1) // ROWS * ROWS


@compiled()
def gradients(R: Array, rows: int, panels: Array, G: Array) -> None:
    """The first `rows` of G = R·Dᵀ.

    R is (`padded(rows)` or more, d) and G (as many, panels·width); what they hold beyond does not count.
    """
    d, at_once = R.shape[1], int(_rows_of_tile(R))
    for panel in range(panels.shape[0]):
        for first in range(0, d, DEPTH):
            last = min(d, first + DEPTH)
            for row in range(0, rows, at_once):
                if row + 1 < rows:
                    _products_of_rows(R, panels, G, row, panel, first, last)
                else:
                    _products_of_row(R, panels, G, row, panel, first, last)
