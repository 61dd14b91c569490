"""ZᵀZ and AᵀZ, added up over chunks of rows: all that D's half of an iteration needs to know of the codes."""

from dataclasses import dataclass, field
from typing import Self

import torch

from core import kernels
from core.chunks import even, slices
from core.sparse import SparseRows
from core.threads import SMALL_PRODUCT, threads_for_elements

# Rows over which sums are float32 throughout, on the CPU: of large products, and of small ones, whose errors are too
# few to cancel.
MOST_SUMMED, FEW_SUMMED = 4096, 512
# With fewer columns to the right of a wide matrix than this, MKL takes up to four times as long as with so many rows
# to its left: for 5000×768 values and 8 codes a row 10.8 ms and 2.6.
FEW_COLUMNS = 12


@dataclass
class Statistics:
    """
    Attributes:
        gram: ZᵀZ, float64 (k, k).
        cross: AᵀZ, float64 (d, k).
        violation: squared, of Z's optimality before its update; float64 ().
    """

    gram: torch.Tensor
    cross: torch.Tensor
    violation: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64, device="cpu"))

    @classmethod
    def zeros(cls, n_features: int, nb_concepts: int, device: torch.device) -> Self:
        sizes = (nb_concepts, nb_concepts), (n_features, nb_concepts), ()
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def add(self, rows: torch.Tensor, Z: torch.Tensor) -> None:
        """Those of more rows of A (n, d), and their codes (n, k)."""
        add_cross_product(Z, Z, self.gram)
        add_cross_product(rows, Z, self.cross)


def loss_from(statistics: Statistics, concepts: torch.Tensor, gram: torch.Tensor, energy: float) -> float:
    """½‖A − ZD‖²_F = ½‖A‖² − ⟨AᵀZ, Dᵀ⟩ + ½⟨ZᵀZ, DDᵀ⟩, summed in float64; never below 0.

    The products were rounded to float32 before, which leaves up to about 5e-7·‖A‖². Where that is of account, and in
    the end, the loss is taken directly.
    """
    inner = float((statistics.cross * concepts).sum())
    loss = 0.5 * energy - inner + 0.5 * float((statistics.gram * gram).sum())
    return 0.0 if loss < 0 else loss  # NaN is to be seen


def add_cross_product(rows: torch.Tensor, Y: torch.Tensor, to: torch.Tensor) -> None:
    """to += rowsᵀ·Y, for a chunk's rows (n, d) or others, Y (n, k) and `to` (d, k), float64.

    On the CPU no sum in float32 is over more than `MOST_SUMMED` rows, nor, of few concepts or a small product, over
    more than `FEW_SUMMED`: over 262 144 rows of 16 values, and 4 concepts, the rounding came to 2e-5, and the product
    took five times as long.
    """
    if isinstance(rows, SparseRows) and rows.is_mostly_zero_columns:
        rows.add_cross_product(Y, to)
        return
    if isinstance(rows, SparseRows) or rows.device.type != "cpu":
        to += kernels.product(rows.T, Y)
        return
    (n, d), k = rows.shape, Y.shape[1]
    if n > FEW_SUMMED and (k < FEW_COLUMNS or even(n, MOST_SUMMED) * d * k < SMALL_PRODUCT):
        count = -(-n // FEW_SUMMED)
        whole = n - n % count
        stacks = (x[:whole].reshape(count, -1, x.shape[1]) for x in (rows, Y))
        to += _transposed_product(*stacks).sum(dim=0, dtype=to.dtype)
        rows, Y = rows[whole:], Y[whole:]
    for piece in slices(len(rows), even(len(rows), MOST_SUMMED)):
        of_piece = _transposed_product(rows[piece], Y[piece])
        with threads_for_elements(to):
            to += of_piece


def _transposed_product(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Xᵀ·Y of two matrices, or two stacks of them."""
    if Y.shape[-1] < FEW_COLUMNS:
        return kernels.product(Y.mT, X).mT
    return kernels.product(X.mT, Y)
