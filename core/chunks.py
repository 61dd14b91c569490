"""A, read in chunks of rows, each small enough that the work on it is one bounded slice."""

from collections.abc import Generator, Iterator
from typing import cast

import torch

from core import kernels
from core.ranks import ALONE, Ranks
from core.scaling import exponents_of, times_power_of_two
from core.sparse import SparseRows

# Multiply-adds of one slice: about 10 ms on two cores. The size of a chunk depends on shapes alone, never on
# measured time, so that the same data and seed give the same dictionary.
SLICE_WORK = 600_000_000
SMALLEST_CHUNK = 64
ENCODE_COST = 4  # an exact encode of a row costs about so many times what a slice reckons with
# Of very thin rows: to read them takes longer than to multiply them.
LARGEST_CHUNK = 1 << 18
# On a GPU, where rows of too small a chunk leave multiprocessors idle: some tens of milliseconds, and a multiple of
# the rows that products do at once, 128 on each of the 132 multiprocessors of an H100.
GPU_SLICE_WORK = 4_000_000_000_000
GPU_SMALLEST_CHUNK = 128 * 132
# Of a sparse chunk: sums over its rows are float32 throughout, so that the rounding of more rows would begin to show;
# and now and then one is made dense, with this many values.
MOST_SPARSE_ROWS, MOST_DENSE_VALUES = 8192, 1 << 22


class Chunks:
    """The rows of A (n, d), which is never copied: a float32 C-contiguous tensor, or `SparseRows`.

    On a GPU a tensor may be of any float dtype and layout; every chunk is converted as it is read.

    A sparse chunk is a `SparseRows` that takes the place of a tensor: `block @ X` and `block.T @ X` stay sparse,
    whatever else torch does to it makes that one chunk dense.

    Of a fit over several ranks these are the rows of one; what `survey` finds is told of all rows.

    Where the largest value is extraordinary, every chunk is scaled as it is read by the one power of two that
    brings that value near one.

    Attributes, known once `survey` has run:
        all_rows: how many rows A has; `n_rows` of them are this rank's.
        exponent: A = (what is read)·2^exponent; 0 where the values are ordinary.
        mean, energy: mean value and sum of squares of what is read.
    """

    all_rows: int
    exponent: int
    mean: float
    energy: float

    def __init__(self, A: torch.Tensor | SparseRows, nb_concepts: int, ranks: Ranks = ALONE) -> None:
        self.A = cast(torch.Tensor, A)
        self.n_rows, self.n_features = A.shape
        self.nb_concepts = nb_concepts
        self.ranks = ranks
        self.size = chunk_size(self.n_features, nb_concepts, A.device)
        if isinstance(A, SparseRows):
            most = min(MOST_SPARSE_ROWS, MOST_DENSE_VALUES // self.n_features)
            self.size = min(self.size, max(SMALLEST_CHUNK, most))
        if A.device.type == "cpu":
            self.size = even(self.n_rows, self.size)

    def survey(self) -> Generator[None, None, None]:
        """One pass over A for the attributes."""
        peak = total = energy = 0.0
        for rows in self.slices():
            block = self._rows(rows)
            values = block.values() if isinstance(block, SparseRows) else block
            if values.numel():
                peak = max(peak, float(values.amax()))
                of_values, of_squares = kernels.sums(values)
                total, energy = total + of_values, energy + of_squares
            yield
        self.all_rows = int(self.ranks.all_sum(self.n_rows))
        peak, total, energy = self.ranks.all_max(peak), self.ranks.all_sum(total), self.ranks.all_sum(energy)
        exponents = exponents_of(torch.tensor([peak], dtype=torch.float64, device="cpu"))
        self.exponent = 0 if exponents is None else int(exponents)
        self.mean = total / (self.all_rows * self.n_features) * 2.0**-self.exponent
        self.energy = energy * 4.0**-self.exponent

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for rows in self.slices():
            yield rows, self.read(rows)

    def slices(self) -> Iterator[slice]:
        return slices(self.n_rows, self.size)

    def read(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some rows; a view of a dense A where the values are ordinary."""
        block = self._rows(rows)
        if self.exponent == 0:
            return block
        if isinstance(block, SparseRows):
            return cast(torch.Tensor, block.times_power_of_two(-self.exponent))
        return times_power_of_two(block, torch.tensor(-self.exponent, device=block.device))

    def _rows(self, rows: slice | torch.Tensor) -> torch.Tensor:
        block = self.A[rows]
        return block if isinstance(block, SparseRows) else block.to(torch.float32).contiguous()


def chunk_size(width: int, nb_concepts: int, device: torch.device) -> int:
    """Rows of one slice, where a row costs products with (width, k) and (k, k) matrices and a few sweeps."""
    return rows_of_slice(nb_concepts * (2 * width + 6 * nb_concepts), device)


def rows_of_slice(work_of_row: int, device: torch.device, least: int | None = None) -> int:
    """Rows of one slice, where a row costs so many multiply-adds; so many at least."""
    if device.type == "cuda":
        rows = max(GPU_SMALLEST_CHUNK if least is None else least, GPU_SLICE_WORK // work_of_row)
        return rows - rows % GPU_SMALLEST_CHUNK if rows > GPU_SMALLEST_CHUNK else rows
    return max(SMALLEST_CHUNK if least is None else least, min(SLICE_WORK // work_of_row, LARGEST_CHUNK))


def encode_chunk_size(size: int) -> int:
    """Rows of one slice that encodes them exactly, where it would be so many of a fit."""
    return max(SMALLEST_CHUNK, size // ENCODE_COST)


def even(total: int, most: int) -> int:
    """The size, at least 1 and at most `most`, of as few pieces of equal size as make up the total."""
    pieces = max(1, -(-total // most))
    return max(1, -(-total // pieces))


def slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
