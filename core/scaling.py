"""Units of concepts and activations: norm one; and powers of two, exact, and enough to keep every product of two
values inside float32's range."""

import torch

# Largest values within 2^±20 are left alone: products of two, and their sums, stay far from float32's limits.
ORDINARY_EXPONENT = 20


def exponents_of(peaks: torch.Tensor) -> torch.Tensor | None:
    """The e with peaks/2^e in [½, 1), int64, 0 where a peak is ordinary or zero; None where all are.

    What is ordinary is left as it is whatever lies beside it, so that it is computed with to the same last bit.
    """
    if len(peaks) == 1:  # one row is not to wait for many operations
        smallest = largest = float(peaks)
    else:
        smallest, largest = (float(peak) for peak in torch.aminmax(peaks.cpu()))  # a device is waited for once
    if smallest >= 2.0**-ORDINARY_EXPONENT and largest <= 2.0**ORDINARY_EXPONENT:
        return None  # the usual case
    ordinary = (peaks == 0) | ((peaks >= 2.0**-ORDINARY_EXPONENT) & (peaks <= 2.0**ORDINARY_EXPONENT))
    return None if bool(ordinary.all()) else torch.where(ordinary, 0, torch.frexp(peaks).exponent.long())


def exponents_with(Z: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Of each row of Z·2^exponents, for non-negative Z (rows, k) and exponents (k,): that of its largest value, as
    `exponents_of` tells it; int64 (rows,). The product itself may be no number."""
    least = torch.iinfo(torch.int64).min
    largest = torch.where(Z > 0, torch.frexp(Z).exponent + exponents, least).amax(dim=1)
    return torch.where((largest == least) | (largest.abs() <= ORDINARY_EXPONENT), 0, largest)


def times_power_of_two(x: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """x·2^exponents in x's dtype; rounds only where the result is subnormal, and may overflow to infinity."""
    if x.dtype != torch.float64:
        return (x.double() * torch.exp2(exponents.double())).to(x.dtype)
    # Exponents may be as large as two of float64's ranges, whose power of two is no number any more.
    third = torch.div(exponents, 3, rounding_mode="trunc")
    step = torch.exp2(third.double())
    return x * step * step * torch.exp2((exponents - 2 * third).double())


def unit_concepts(D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The norms of D's rows, float64 (k,), and D divided by them (k, d), in its dtype; zero rows stay zero."""
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    return norms, (D / one_where_zero(norms)[:, None]).to(D.dtype)


def one_where_zero(norms: torch.Tensor) -> torch.Tensor:
    """What can be divided by."""
    return torch.where(norms > 0, norms, 1)
