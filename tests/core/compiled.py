"""``python -m tests.core.compiled``: machine code of the Triton kernels for an H100, made without one.

The instructions of tensor cores that the tiles use are printed. Not under TRITON_INTERPRET.
"""

import re
from itertools import product
from typing import Any

import core.threads  # noqa: F401 (before torch)

import triton  # isort: skip
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from core.kernels import bounded, cuda, rounds, tiles, working_sets

H100 = GPUTarget("cuda", 90, 32)
WHOLE_NUMBERS = {
    "k", "d", "block", "sweep", "sweeps", "room", "size", "stride", "most", "charge", "added", "usual",
}  # fmt: skip
NUMBERS = {"share", "least"}
OF_WHOLE_NUMBERS = {"rows", "chosen", "wanted", "widths", "spent", "going"}
ALIGNED = {"k", "d", "room", "size", "stride"}


def compiled(kernel: Any, constants: dict[str, Any], *, numbers: frozenset[str] = frozenset(), **options: int) -> str:
    """As it would be launched there: arrays aligned, sizes multiples of sixteen."""
    kinds = dict.fromkeys(OF_WHOLE_NUMBERS, "*i32") | dict.fromkeys(WHOLE_NUMBERS | numbers, "i32")
    kinds |= dict.fromkeys(NUMBERS, "fp32") | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    place = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name in ALIGNED]
    source = ASTSource(
        kernel,
        signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    text: str = triton.compile(source, target=H100, options=options).asm["ptx"]
    return text


def main() -> None:
    shape = {"ROWS": cuda.ROWS, "BLOCK": cuda.BLOCK, "PART": cuda.PART, "DEPTH": cuda.DEPTH}
    for alone, even, precision in product((True, False), (True, False), ("tf32", "tf32x3")):
        ptx = compiled(
            tiles.descend,
            shape | {"ALONE": alone, "EVEN": even, "PRECISION": precision},
            numbers=frozenset({"rows"}),
            num_warps=1,
            num_stages=3,
        )
        print(precision, *sorted(set(re.findall(r"mma.sync\S*tf32\S*", ptx))))
    for width, resident in ((16, True), (rounds.RESIDENT, True), (rounds.ROOM, False)):
        compiled(bounded.minimise, {"SIZE": width, "DEPTH": 16, "RESIDENT": resident}, num_warps=rounds.warps(width))
    for width in (1024, 16384):
        compiled(working_sets.choose, {"WIDTH": width, "ALL": False}, num_warps=8)
    compiled(working_sets.gather, {"SIZE": rounds.ROOM, "DEPTH": rounds.GATHERED}, num_warps=4)
    compiled(working_sets.residuals, {"BLOCK": rounds.FEATURES, "DEPTH": 32}, num_warps=4)


if __name__ == "__main__":
    main()
