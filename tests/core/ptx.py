"""``python -m tests.core.ptx``: the Triton kernels for an H100, compiled without one, as they are launched.

The host's code runs on the CPU, on numbers that mean nothing; what it launches is compiled for what it was launched
with, and not run. Printed is of each kernel how often it was compiled, and how often for tensor cores. Not under
TRITON_INTERPRET.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import core.threads  # noqa: F401 (before torch)

import torch  # isort: skip
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from core import kernels
from core.kernels.cuda import bounded, descent, encode, interface, working_sets
from core.kernels.precision import Precision


class H100:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, grid: object) -> Callable[..., None]:
    def launch(*given: Any, **constants: Any) -> None:
        kernel.run(*given, grid=grid, warmup=True, **constants)

    return launch


def descend_rows(rows: int, k: int, progress_ratio: float) -> None:
    Z, G, B = torch.rand(rows, k), torch.rand(rows, k), torch.rand(k, k)
    interface.descend(Z, G, B, torch.rand(k), 2, progress_ratio)


SIZES = 64, 128, encode.ROOM, 2 * encode.ROOM  # the first of working sets, and one beyond the usual


def encode_rows(rows: int, k: int, d: int, *, hold_gram: bool = True, sizes: tuple[int, ...] = SIZES) -> None:
    solving = encode.Encode(torch.rand(rows, d), kernels.prepare(torch.rand(k, d), hold_gram=hold_gram), 1e-6, 300)
    solving.begin()
    for size in (encode.size_for(solving.room),) if solving.all_chosen else sizes:
        if size > solving.room and not solving.all_chosen:
            solving.make_room(size)
        solving.look(Precision.FLOAT32)
        solving.rows.chosen.zero_()
        solving.rows.wanted.fill_(1)
        solving.lower(size)


def compiled(kernel: Any) -> Iterator[str]:
    """The PTX of each way in which it was compiled."""
    for caches in kernel.device_caches.values():
        for made in caches[0].values():
            yield made.asm["ptx"]


def main() -> None:
    driver.set_active(H100())
    JITFunction.__getitem__ = compile_only
    torch.cuda.device_of = lambda tensor: nullcontext()  # type: ignore[assignment,misc]
    # alone or not, even or not, with TF32 or split: every two of these meet
    for rows, k, progress_ratio in ((1, 1, 1e-2), (40, 96, 1e-10), (300, 1040, 1e-2), (300, 1100, 1e-10)):
        descend_rows(rows, k, progress_ratio)
    for rows, k, d in ((3, 1, 3), (12, 256, 100), (16, 1024, 768)):
        encode_rows(rows, k, d)
    encode_rows(4, 600, 100, hold_gram=False, sizes=(64, 2 * encode.ROOM))  # in registers, and read in parts
    encode.MANY_ROWS = 0
    encode_rows(16, 1024, 768, sizes=(2 * encode.ROOM,))
    of_encodes = bounded.minimise, working_sets.choose, working_sets.gather, working_sets.residuals
    for kernel in (descent.descend, *of_encodes):
        texts = list(compiled(kernel))
        on_tensor_cores = [text for text in texts if re.search(r"mma.sync\S*tf32", text)]
        print(f"{kernel.fn.__name__}: compiled {len(texts)} times, {len(on_tensor_cores)} for tensor cores")


if __name__ == "__main__":
    main()
