"""All rows of a kernel that takes some, handed out in pieces to the cores that there are.

A kernel is called by its address: what calls it directly would hold, and compile, all of it once more. (Numba's own
functions as values would do; but each time such a one is passed it is unpickled.)
"""

# mypy: disable-error-code="call-arg, no-untyped-def, no-untyped-call"

from functools import cache
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from core.compiled import Array, compiled
from core.kernels.prepared import Prepared


def _signature(dtype: Any) -> Any:
    """Of `solve_some` in `core.kernels.cpu.dense`, `core.kernels.cpu.active_set` and `core.kernels.cpu.dependent`."""
    vector, matrix, panels = (types.Array(dtype, dimensions, "C") for dimensions in (1, 2, 3))
    prepared = types.NamedTuple((matrix, matrix, vector, panels), Prepared)
    return types.none(matrix, prepared, types.float64, matrix, vector, types.int64, types.int64, types.int64)


@cache
def address(solve_some: Any, dtype: Any) -> int:
    """Of the kernel compiled for this dtype of numpy's, from now on for as long as there is this process."""
    signature = _signature(numba.from_dtype(dtype))
    solve_some.compile(signature.args)
    code = solve_some.overloads[signature.args]
    return code.library.get_pointer_to_function(code.fndesc.llvm_cfunc_wrapper_name)  # type: ignore[no-any-return]


@intrinsic
def _solve_some(typing, address, A, prepared, tol, Z, residual, max_sweeps, first, last):
    """The kernel at this address."""
    signature = _signature(A.dtype)

    def generate(context, builder, signature, args):
        returned, *taken = (context.get_value_type(kind) for kind in (signature.return_type, *signature.args[1:]))
        function = builder.inttoptr(args[0], ir.FunctionType(returned, taken).as_pointer())
        builder.call(function, args[1:])
        return context.get_dummy_value()

    return types.none(types.int64, *signature.args), generate


@compiled(parallel=True)
def solve_pieces(
    address: int, A: Array, prepared: Prepared, tol: float, Z: Array, residual: Array, max_sweeps: int, pieces: int
) -> None:
    """The kernel at this address for all rows, in so many pieces."""
    rows = A.shape[0]
    for p in numba.prange(pieces):
        first, last = p * rows // pieces, (p + 1) * rows // pieces
        _solve_some(address, A, prepared, tol, Z, residual, max_sweeps, first, last)
