"""A, read in chunks of rows, each small enough that the work on it is one bounded slice."""

from collections.abc import Iterator

import torch

from core.scaling import exponents_of, times_power_of_two

# Multiply-adds of one slice: about 10 ms on two cores. The chunk size must depend on shapes alone, never on
# measured time, so that the same data and seed give the same dictionary.
SLICE_WORK = 400_000_000
SMALLEST_CHUNK = 64


class Chunks:
    """The rows of A (n, d), float32 and contiguous, which is never copied.

    Where the largest value is extraordinary every chunk is scaled, as it is read, by one power of two that brings
    that value near one; `exponent` is that of the values as stored.
    """

    def __init__(self, A: torch.Tensor, nb_concepts: int) -> None:
        self.A = A
        self.n_rows, self.n_features = A.shape
        exponents = exponents_of(A.amax()[None])
        self.exponent = 0 if exponents is None else int(exponents)
        self.size = chunk_size(self.n_features, nb_concepts)

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for rows in slices(self.n_rows, self.size):
            yield rows, self.read(rows)

    def read(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some rows, scaled; a view of A where the scale is ordinary."""
        block = self.A[rows]
        if self.exponent == 0:
            return block
        return times_power_of_two(block, torch.tensor(-self.exponent, device=block.device))


def chunk_size(width: int, nb_concepts: int) -> int:
    """Rows of one slice, where a row costs products with (width, k) and (k, k) matrices and a few sweeps."""
    work_per_row = nb_concepts * (2 * width + 6 * nb_concepts)
    return max(SMALLEST_CHUNK, SLICE_WORK // work_per_row)


def slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
