"""``python -m tests.core.compiled``: machine code of the Triton kernels for an H100, made without one.

The instructions of tensor cores that the tiles use are printed. Not under TRITON_INTERPRET.
"""

import re
from typing import Any

import core.threads  # noqa: F401 (before torch)

import triton  # isort: skip
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from core.kernels import cuda, small, tiles

H100 = GPUTarget("cuda", 90, 32)
WHOLE_NUMBERS = {"rows", "k", "max_sweeps", "size", "sweeps", "steps", "stride"}


def compiled(kernel: Any, constants: dict[str, Any], **options: int) -> str:
    """As it would be launched there: arrays aligned, sizes multiples of sixteen."""
    kinds = dict.fromkeys(WHOLE_NUMBERS, "i32") | {"share": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    place = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = [name for name, kind in signature.items() if kind == "*fp32" or name in ("k", "size", "stride")]
    source = ASTSource(
        kernel,
        signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    text: str = triton.compile(source, target=H100, options=options).asm["ptx"]
    return text


def main() -> None:
    shape = {"BLOCK": cuda.BLOCK, "PART": cuda.PART, "DEPTH": cuda.DEPTH, "PRECISION": "tf32"}
    for rows in (cuda.LEAST_ROWS, cuda.MOST_ROWS):
        ptx = compiled(
            tiles.descend, {"ROWS": rows, **shape}, num_warps=8 if rows == cuda.MOST_ROWS else 4, num_stages=3
        )
        print(rows, *sorted(set(re.findall(r"wgmma.mma_async\S*tf32|mma.sync\S*tf32\S*", ptx))))
    compiled(small.sweep, {"ROWS": cuda.ROWS_SWEPT, "SIZE": 128}, num_warps=cuda.ROWS_SWEPT)
    compiled(small.exact_steps, {"SIZE": 128}, num_warps=cuda.WARPS[128])


if __name__ == "__main__":
    main()
