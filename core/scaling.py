"""Scaling by powers of two: exact, and enough to keep every product of two values inside float32's range."""

import torch

# Largest values within 2^±20 are left alone: products of two, and their sums, stay far from float32's limits.
ORDINARY_EXPONENT = 20


def exponents_of(peaks: torch.Tensor) -> torch.Tensor | None:
    """The e with peaks/2^e in [½, 1), int64, 0 where a peak is ordinary or zero; None where all are.

    What is ordinary is left as it is whatever lies beside it, so that it is computed with to the same last bit.
    """
    smallest, largest = (float(peak) for peak in torch.aminmax(peaks.cpu()))  # a device is waited for once
    if smallest >= 2.0**-ORDINARY_EXPONENT and largest <= 2.0**ORDINARY_EXPONENT:
        return None  # the usual case, told with few operations: one row is not to wait for many
    ordinary = (peaks == 0) | ((peaks >= 2.0**-ORDINARY_EXPONENT) & (peaks <= 2.0**ORDINARY_EXPONENT))
    return None if bool(ordinary.all()) else torch.where(ordinary, 0, torch.frexp(peaks).exponent.long())


def times_power_of_two(x: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """x·2^exponents in x's dtype; rounds only where the result is subnormal, and may overflow to infinity."""
    return (x.double() * torch.exp2(exponents.double())).to(x.dtype)
