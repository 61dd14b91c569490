"""Dense tensors that lie on a GPU: checked there, and never copied as a whole, whatever float dtype they are of."""

from collections.abc import Generator

import torch

from core.checks import Form, check_scale, check_values
from core.chunks import slices

SLICE_VALUES = 1 << 28  # read in less than a millisecond
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_resident(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.device.type == "cuda" and x.layout == torch.strided and x.dtype in FLOATS


def shaped(x: torch.Tensor, form: Form) -> torch.Tensor:
    """`x` with two dimensions, once its shape is right."""
    x = x.detach()[None] if x.ndim == 1 else x.detach()
    form.check(x.shape)
    return x


def check_steps(x: torch.Tensor, name: str) -> Generator[None, None, None]:
    """`core.checks.check_values` and `check_scale` in slices, on the device; what is wrong is told from the host."""
    largest = 0.0
    for rows in slices(len(x), max(1, SLICE_VALUES // x.shape[1])):
        lowest, highest = (float(value) for value in torch.aminmax(x[rows]))
        if not 0 <= lowest <= highest <= torch.finfo(torch.float32).max:  # nor NaN
            check_values(x.to("cpu", torch.float64).numpy(), name=name)
        largest = max(largest, highest)
        yield
    check_scale(largest, name=name)
