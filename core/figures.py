"""What each concept of a factorisation is like: where it is strong, how its codes are spread, which others are near.

Beside `core.metrics`, which tells of the whole. Everything is counted over all rows.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields, replace

import torch

from core.chunks import rows_of_slice, slices
from core.constants import NEIGHBOURS
from core.kernels.precision import Precision, product
from core.ranks import ALONE, Ranks

BINS = 20  # of a histogram
TOP_ROWS = 10
NONE = -1  # in the place of a row or concept, where there are fewer than there is room for
# Concepts that are counted with all others at a time: at most, and so many that slices have about as many rows, for
# adding up what a slice has counted takes as long as a hundred rows.
TOGETHER_BLOCK = 512
PASS_WORK = 512  # multiply-adds in the time that a few passes over one code take
TOGETHER_WORK = 64  # likewise: of one pass
MOST_VALUES = 1 << 23  # of codes at a time, for each of which a slice takes some 30 bytes


@dataclass(frozen=True, slots=True)
class Figures:
    """Of k concepts, fitted on n rows; tensors on any device. None where it is not known.

    Attributes:
        nearest, cosines: (k, 10) int64 and float32, the other concepts with the largest cosines above zero, from the
            largest on; -1 and 0 where there are no more.
        uses: (k,) int64, rows with a code above zero.
        largest: (k,) float32, the largest code.
        histogram: (k, 20) int64, codes above zero, in equal bins from zero to the largest (which the last includes).
        top_rows, top_codes: (k, 10) int64 and float32, the rows with the largest codes above zero, likewise;
            of equal ones those that come first.
        together, overlap: (k, 10) int64 and float32, the other concepts that are active in the same rows, by the rows
            that both are active in over those that either is (Jaccard's index), likewise.
    """

    nearest: torch.Tensor
    cosines: torch.Tensor
    uses: torch.Tensor | None = None
    largest: torch.Tensor | None = None
    histogram: torch.Tensor | None = None
    top_rows: torch.Tensor | None = None
    top_codes: torch.Tensor | None = None
    together: torch.Tensor | None = None
    overlap: torch.Tensor | None = None

    def known(self) -> dict[str, torch.Tensor]:
        """What is known, by name."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in told.items() if tensor is not None}


def figure_steps(Z: torch.Tensor, of_D: Figures, ranks: Ranks = ALONE) -> Generator[None, None, Figures]:
    """All figures, in bounded slices, of codes and what is known without them.

    Args:
        Z: (n, k) float32, finite and non-negative.
        ranks: where they share out the rows of Z, the figures are of all rows, which count from rank 0's on.

    Memory beside Z: some 400 bytes a concept (of each rank), `TOGETHER_BLOCK`·k·8, and one slice's.
    """
    uses, largest, top_rows, top_codes = yield from _strongest(Z, ranks)
    histogram = yield from _histogram(Z, largest, ranks)
    together, overlap = yield from _together(Z, uses, ranks)
    return replace(
        of_D,
        uses=uses,
        largest=largest,
        histogram=histogram,
        top_rows=top_rows,
        top_codes=top_codes,
        together=together,
        overlap=overlap,
    )


def nearest_steps(D_unit: torch.Tensor) -> Generator[None, None, Figures]:
    """The concepts near each, in bounded slices.

    Args:
        D_unit: (k, d), rows of norm one; zero ones are near none.
    """
    found = []
    for part in slices(len(D_unit), rows_of_slice(D_unit.numel(), D_unit.device, least=1)):
        found.append(_best_others(product(D_unit[part], D_unit.T, Precision.FLOAT32), part.start))
        yield
    concepts, cosines = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Figures(concepts, cosines.clamp_(max=1))


def _strongest(Z: torch.Tensor, ranks: Ranks) -> Generator[None, None, tuple[torch.Tensor, ...]]:
    """Uses, the largest codes, and the rows and codes at the top."""
    k = Z.shape[1]
    before, _ = ranks.offset_and_total(len(Z))
    uses = torch.zeros(k, dtype=torch.int64, device=Z.device)
    codes = Z.new_zeros(0, k)
    rows = torch.zeros(0, k, dtype=torch.int64, device=Z.device)
    for part in _rows(Z):
        z = Z[part]
        uses += (z > 0).sum(dim=0)
        best = _rows_of_largest(z)
        first = before + part.start
        codes, rows = _top(torch.cat([codes, z.gather(0, best)]), torch.cat([rows, best + first]))
        yield
    ranks.all_sum(0, uses)
    codes, rows = _top(ranks.all_gather(codes), ranks.all_gather(rows))
    largest = codes[0].clone() if len(codes) else Z.new_zeros(k)
    return uses, largest, *_padded(rows.T, codes.T, TOP_ROWS)


def _rows_of_largest(z: torch.Tensor) -> torch.Tensor:
    """Of each concept's codes (n, k) the largest ones' rows, in order; of equal ones those that come first."""
    best = z.topk(min(TOP_ROWS + 1, len(z)), dim=0)
    rows = best.indices[:TOP_ROWS]
    if len(z) > TOP_ROWS:  # of the least ones topk has taken any
        least, next_one = best.values[-2:]
        tied = ((least == next_one) & (least > 0)).nonzero()[:, 0]
        # bits of non-negative floats are in the order of their values; no two keys are equal
        keys = (z[:, tied].view(torch.int32).long() << 32) - torch.arange(len(z), device=z.device)[:, None]
        rows[:, tied] = keys.topk(TOP_ROWS, dim=0).indices
    return rows.sort(dim=0).values


def _top(codes: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each concept's codes (n, k) the largest, and their rows; of equal ones those that come first."""
    codes, order = codes.sort(dim=0, descending=True, stable=True)
    return codes[:TOP_ROWS], rows.gather(0, order)[:TOP_ROWS]


def _histogram(Z: torch.Tensor, largest: torch.Tensor, ranks: Ranks) -> Generator[None, None, torch.Tensor]:
    k = Z.shape[1]
    counts = torch.zeros(k * BINS, dtype=torch.int64, device=Z.device)
    scale = torch.where(largest > 0, largest, 1)
    for part in _rows(Z):
        row, concept = (Z[part] > 0).nonzero(as_tuple=True)
        share = Z[part][row, concept] / scale[concept]
        bins = (share * BINS).long().clamp_(max=BINS - 1)
        counts += torch.bincount(concept * BINS + bins, minlength=k * BINS)
        yield
    ranks.all_sum(0, counts)
    return counts.reshape(k, BINS)


def _together(Z: torch.Tensor, uses: torch.Tensor, ranks: Ranks) -> Generator[None, None, tuple[torch.Tensor, ...]]:
    k, found = Z.shape[1], []
    block = min(TOGETHER_BLOCK, rows_of_slice(TOGETHER_BLOCK * k, Z.device))
    for concepts in slices(k, block):
        width = concepts.stop - concepts.start
        both = torch.zeros(width, k, dtype=torch.float64, device=Z.device)
        for part in _rows(Z, width + TOGETHER_WORK):
            active = (Z[part] > 0).float()
            both += product(active[:, concepts].T, active, Precision.FLOAT32)
            yield
        ranks.all_sum(0, both)
        either = uses[concepts, None] + uses - both
        found.append(_best_others((both / either.clamp(min=1)).float(), concepts.start))
        yield
    together, overlap = (torch.cat(parts) for parts in zip(*found, strict=True))
    return together, overlap


def _rows(Z: torch.Tensor, work_of_code: int = PASS_WORK) -> Iterator[slice]:
    """Slices of bounded work and memory."""
    k = Z.shape[1]
    return slices(len(Z), max(1, min(rows_of_slice(work_of_code * k, Z.device), MOST_VALUES // k)))


def _best_others(scores: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of scores (some concepts, k), those of others; the first row is concept `first`'s."""
    own = torch.arange(len(scores), device=scores.device)
    scores[own, own + first] = 0
    best = scores.topk(min(NEIGHBOURS, scores.shape[1]), dim=1)
    return _padded(best.indices, best.values, NEIGHBOURS)


def _padded(indices: torch.Tensor, values: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both (k, width); where a value is not above zero there is none."""
    shape = (len(values), width)
    to, of = values.new_zeros(shape), indices.new_full(shape, NONE)
    there = values > 0
    to[:, : values.shape[1]] = torch.where(there, values, 0)
    of[:, : values.shape[1]] = torch.where(there, indices, NONE)
    return of, to
