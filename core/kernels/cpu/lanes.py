"""Sixteen rows at once: vectors that hold one number of each, for compiled code.

An array of vectors is an ordinary C-contiguous array whose last axis has length `LANES`; `load(X, i)` and
`store(X, i, v)` take the i-th sixteen numbers of it. What is done to one lane never depends on another, and LLVM
maps a vector on what registers the machine has.
"""

# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call"

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

_FUSED = ("contract",)  # as in core.compiled.FASTMATH: a product and a sum may become one operation


class Vector(types.Type):
    """LANES numbers of one float type, in registers."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), LANES))


def _operation(define: Callable[..., Any]) -> Callable[..., Any]:
    """An operation of compiled code, made of LLVM's instructions."""
    return cast(Callable[..., Any], intrinsic(define))


@_operation
def load(typing, X, i):
    """The i-th vector of X."""

    def generate(context, builder, signature, args):
        return builder.load(_place(context, builder, signature, args), align=X.dtype.bitwidth // 8)

    return Vector(X.dtype)(X, i), generate


@_operation
def load_from(typing, X, start):
    """The sixteen numbers of X from this one on, counted through all of it."""

    def generate(context, builder, signature, args):
        vector = ir.VectorType(context.get_value_type(X.dtype), LANES)
        place = builder.bitcast(_number(context, builder, signature, args), vector.as_pointer())
        return builder.load(place, align=X.dtype.bitwidth // 8)

    return Vector(X.dtype)(X, start), generate


@_operation
def load_first(typing, X, start, count):
    """The same with zeros in all lanes but the first `count`, which alone are read."""

    def generate(context, builder, signature, args):
        vector = ir.VectorType(context.get_value_type(X.dtype), LANES)
        place = builder.bitcast(_number(context, builder, signature, args), vector.as_pointer())
        mask = ir.VectorType(ir.IntType(1), LANES)
        numbers = ir.Constant(ir.VectorType(ir.IntType(64), LANES), list(range(LANES)))
        count = in_all_lanes(builder, context.cast(builder, args[2], signature.args[2], types.int64))
        name = f"llvm.masked.load.v{LANES}f{X.dtype.bitwidth}.p0"
        kind = ir.FunctionType(vector, [place.type, ir.IntType(32), mask, vector])
        read = cgutils.get_or_insert_function(builder.module, kind, name)
        align, zeros = ir.IntType(32)(X.dtype.bitwidth // 8), ir.Constant(vector, None)
        return builder.call(read, [place, align, builder.icmp_signed("<", numbers, count), zeros])

    return Vector(X.dtype)(X, start, count), generate


@_operation
def total(typing, v):
    """The sum of the lanes, in one fixed order."""

    def generate(context, builder, signature, args):
        v, width = args[0], LANES
        while width > 1:
            width //= 2
            v = builder.fadd(*(builder.shuffle_vector(v, v, half) for half in _halves(width)))
        return builder.extract_element(v, ir.IntType(32)(0))

    return v.dtype(v), generate


@_operation
def most(typing, v):
    """The largest of the lanes, none of which is NaN."""

    def generate(context, builder, signature, args):
        v, width = args[0], LANES
        while width > 1:
            width //= 2
            low, high = (builder.shuffle_vector(v, v, half) for half in _halves(width))
            v = builder.select(builder.fcmp_ordered(">", high, low), high, low)
        return builder.extract_element(v, ir.IntType(32)(0))

    return v.dtype(v), generate


@_operation
def store(typing, X, i, v):
    """The i-th vector of X becomes v."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _place(context, builder, signature, args), align=X.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(X, i, v), generate


@_operation
def splat(typing, x):
    """The number x in every lane."""

    def generate(context, builder, signature, args):
        return in_all_lanes(builder, args[0])

    return Vector(x)(x), generate


@_operation
def spread(typing, X, i):
    """The i-th number of X, counted through all of it, in every lane."""

    def generate(context, builder, signature, args):
        return in_all_lanes(builder, builder.load(_number(context, builder, signature, args)))

    return Vector(X.dtype)(X, i), generate


@_operation
def zeros_of(typing, X):
    """Zero in every lane, of X's type."""

    def generate(context, builder, signature, args):
        return context.get_constant_null(signature.return_type)

    return Vector(X.dtype)(X), generate


@_operation
def add(typing, v, w):
    """v + w."""

    def generate(context, builder, signature, args):
        return builder.fadd(*args)

    return v(v, w), generate


@_operation
def subtract(typing, v, w):
    """v − w."""

    def generate(context, builder, signature, args):
        return builder.fsub(*args)

    return v(v, w), generate


@_operation
def multiply(typing, v, w):
    """v·w."""

    def generate(context, builder, signature, args):
        return builder.fmul(*args)

    return v(v, w), generate


@_operation
def add_scaled(typing, v, x, w):
    """v + x·w, for a number x."""

    def generate(context, builder, signature, args):
        return plus_product(builder, args[0], in_all_lanes(builder, args[1]), args[2])

    return v(v, x, w), generate


@_operation
def add_product(typing, v, u, w):
    """v + u·w."""

    def generate(context, builder, signature, args):
        return plus_product(builder, *args)

    return v(v, u, w), generate


@_operation
def subtract_product(typing, v, u, w):
    """v − u·w; of numbers, too, of which several are taken away in the order that is written."""

    def generate(context, builder, signature, args):
        return builder.fsub(args[0], builder.fmul(args[1], args[2], flags=_FUSED), flags=_FUSED)

    return v(v, u, w), generate


@_operation
def positive_part(typing, v):
    """max(v, 0); 0 for NaN."""

    def generate(context, builder, signature, args):
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[0], zero)

    return v(v), generate


@_operation
def where_positive(typing, condition, v, w):
    """v where the condition is above zero, else w."""

    def generate(context, builder, signature, args):
        mask = builder.fcmp_ordered(">", args[0], ir.Constant(args[0].type, None))
        return builder.select(mask, args[1], args[2])

    return v(condition, v, w), generate


@_operation
def larger(typing, v, w):
    """The larger of v and w, w if it is NaN."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_unordered(">", args[1], args[0]), args[1], args[0])

    return v(v, w), generate


@_operation
def root(typing, v):
    """√v."""

    def generate(context, builder, signature, args):
        return builder.call(_square_root(builder, args[0].type), args)

    return v(v), generate


@_operation
def any_lane(typing, v):
    """Whether any lane is other than zero."""

    def generate(context, builder, signature, args):
        differs = builder.fcmp_unordered("!=", args[0], ir.Constant(args[0].type, None))
        return builder.icmp_unsigned("!=", builder.bitcast(differs, ir.IntType(LANES)), ir.IntType(LANES)(0))

    return types.boolean(v), generate


@_operation
def projected_gradient(typing, z, g):
    """g where z > 0 or g is not ≥ 0, else 0; NaN does not pass unseen."""

    def generate(context, builder, signature, args):
        zero = ir.Constant(args[0].type, None)
        used = builder.fcmp_ordered(">", args[0], zero)
        falls = builder.fcmp_unordered("<", args[1], zero)
        return builder.select(builder.or_(used, falls), args[1], zero)

    return g(z, g), generate


@_operation
def reciprocal_root(typing, v, least):
    """1/√v where v is above `least`, else 0."""

    def generate(context, builder, signature, args):
        vector = args[0].type
        above = builder.fcmp_ordered(">", args[0], args[1])
        one = in_all_lanes(builder, vector.element(1.0))
        roots = builder.call(_square_root(builder, vector), [builder.select(above, args[0], one)])
        return builder.select(above, builder.fdiv(one, roots), ir.Constant(vector, None))

    return v(v, least), generate


def _halves(width):
    """The numbers of the lanes of each half of twice as many."""
    return [ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(at, at + width))) for at in (0, width)]


def _place(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    i = context.cast(builder, args[1], signature.args[1], types.intp)
    first = builder.gep(array.data, [builder.mul(i, context.get_constant(types.intp, LANES))])
    return builder.bitcast(first, ir.VectorType(first.type.pointee, LANES).as_pointer())


def _number(context, builder, signature, args):
    """That it is within X, and none counted from its end, nothing takes time to see to."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [context.cast(builder, args[1], signature.args[1], types.intp)])


def in_all_lanes(builder, x):
    nothing = ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined)
    first = builder.insert_element(nothing, x, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _square_root(builder, vector):
    name = f"llvm.sqrt.v{LANES}f{32 if vector.element == ir.FloatType() else 64}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector]), name)


def plus_product(builder, v, u, w):
    return builder.fadd(v, builder.fmul(u, w, flags=_FUSED), flags=_FUSED)
