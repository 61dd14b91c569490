"""What the innermost loops are made of: arithmetic, and nothing that counts who refers to an array."""

import re
from collections.abc import Callable
from typing import Any

import numba
import pytest
from numba import types

from core.compiled import FASTMATH
from core.kernels.cpu import cholesky, dense, panels, products, small, sweeps

NUMBER, COUNT = types.float32, types.int64
VECTOR, MATRIX, PANELS = (types.Array(NUMBER, dimensions, "C") for dimensions in (1, 2, 3))
ROWS = types.UniTuple(COUNT, 4)

KERNELS: dict[Callable[..., Any], tuple[types.Type, ...]] = {
    cholesky._subtract_products: (MATRIX, COUNT, COUNT, COUNT),
    cholesky._finish: (MATRIX, VECTOR, COUNT, COUNT, COUNT, VECTOR, VECTOR, MATRIX),
    cholesky.solve_in_lanes: (MATRIX, COUNT, MATRIX),
    dense._change: (MATRIX, MATRIX, MATRIX, MATRIX, MATRIX),
    dense._solve_factored: (MATRIX, COUNT, MATRIX),
    dense._tile: (MATRIX, COUNT, COUNT, COUNT, MATRIX),
    panels.gradients: (MATRIX, COUNT, PANELS, MATRIX),
    products.row_of_tile: (VECTOR, MATRIX, ROWS, VECTOR),
    products.tile: (MATRIX, ROWS, ROWS, MATRIX),
    small.kkt_residual: (VECTOR, VECTOR, VECTOR),
    sweeps.sweep_lanes: (MATRIX, MATRIX, MATRIX, VECTOR, VECTOR, VECTOR, VECTOR),
    sweeps.sweep_row: (VECTOR, VECTOR, MATRIX, VECTOR),
}


def calls_that_count(function: Callable[..., Any], given: tuple[types.Type, ...]) -> list[str]:
    kernel = numba.njit(
        function, fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )
    kernel.compile(given)
    (assembly,) = kernel.inspect_asm().values()
    assert "ret" in assembly
    return re.findall(r"(?:\$|call\w*\s+\S*)(NRT_(?:inc|dec)ref)", assembly)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_kernels_within_loops_count_no_references(kernel: Any) -> None:
    assert calls_that_count(kernel.py_func, KERNELS[kernel]) == []


def test_such_calls_are_seen() -> None:
    def cut(x: Any, y: Any) -> float:
        total = 0.0
        for i in range(x.shape[0]):
            row = x[i]
            if y[i] > 0:
                total += max(row[0], row[1])
        return total

    assert calls_that_count(cut, (MATRIX, VECTOR))
