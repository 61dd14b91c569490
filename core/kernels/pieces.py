"""All rows of a kernel that takes some, handed out in pieces to the cores that there are.

A kernel is called through a pointer: what calls it directly would hold, and compile, all of it once more.
"""

from functools import cache
from typing import Any

import numba
from numba import types

from core.threads import compiled


class Pointer(types.WrapperAddressProtocol):
    """A compiled kernel as a value that compiled code can call."""

    def __init__(self, kernel: Any, signature: Any) -> None:
        kernel.compile(signature.args)
        code = kernel.overloads[signature.args]
        self._signature = signature
        self._code = code  # keeps the code where the address says
        self._address = code.library.get_pointer_to_function(code.fndesc.llvm_cfunc_wrapper_name)

    def __wrapper_address__(self) -> int:
        return self._address  # type: ignore[no-any-return]

    def signature(self) -> Any:
        return self._signature


@cache
def pointer(kernel: Any, dtype: Any) -> Pointer:
    """To `solve_some` of `core.kernels.dense` or `core.kernels.active_set`, for this float dtype."""
    number = numba.from_dtype(dtype)
    matrix, vector = types.Array(number, 2, "C"), types.Array(number, 1, "C")
    integers = [types.int64] * 3
    return Pointer(kernel, types.void(matrix, matrix, matrix, vector, types.float64, matrix, vector, *integers))


@compiled(parallel=True)
def solve_pieces(
    solve_some: Any,
    A: Any,
    D: Any,
    B: Any,
    inverse: Any,
    tol: float,
    Z: Any,
    residual: Any,
    max_sweeps: int,
    pieces: int,
) -> None:
    """`solve_some` for all rows, in so many pieces."""
    rows = A.shape[0]
    for p in numba.prange(pieces):
        solve_some(A, D, B, inverse, tol, Z, residual, max_sweeps, p * rows // pieces, (p + 1) * rows // pieces)
