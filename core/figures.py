"""What each concept of a factorisation is like: where it is strong, how its codes are spread, which others are near.

Beside `core.metrics`, which tells of the whole. Everything is counted exactly, but for which concepts go together:
that costs rows·k², so that it is counted on evenly spaced rows, `TOGETHER_ROWS` at most.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch

from core.chunks import SLICE_WORK, Chunks, slices
from core.sparse import SparseRows

BINS = 20  # of a histogram
TOP_ROWS = 10
NEIGHBOURS = 10
TOGETHER_ROWS = 8192
NONE = -1  # in the place of a row or concept, where there are fewer than there is room for


@dataclass(frozen=True, slots=True)
class Figures:
    """Of k concepts, fitted on n rows with d features; tensors on the CPU.

    Attributes:
        uses: (k,) int64, rows with a code above zero.
        largest: (k,) float32, the largest code.
        histogram: (k, 20) int64, codes above zero, in equal bins from zero to the largest (which the last includes).
        top_rows, top_codes: (k, 10) int64 and float32, the rows with the largest codes above zero, from the largest
            on; -1 and 0 where there are no more.
        nearest, cosines: (k, 10) int64 and float32, the other concepts with the largest cosines above zero; likewise.
        together, overlap: (k, 10) int64 and float32, the other concepts that are active in the same rows, by the rows
            that both are active in over those that either is (Jaccard's index); likewise.
        feature_r2: (d,) float32, 1 − Σ(a − zD)²/Σ(a − mean)² of each feature; of a constant one, 1 where it is met
            exactly, else 0.
    """

    uses: torch.Tensor
    largest: torch.Tensor
    histogram: torch.Tensor
    top_rows: torch.Tensor
    top_codes: torch.Tensor
    nearest: torch.Tensor
    cosines: torch.Tensor
    together: torch.Tensor
    overlap: torch.Tensor
    feature_r2: torch.Tensor

    def on_host(self) -> Self:
        return type(self)(*(getattr(self, told.name).cpu() for told in fields(self)))


def figure_steps(A: torch.Tensor | SparseRows, Z: torch.Tensor, D: torch.Tensor) -> Generator[None, None, Figures]:
    """The figures of A ≈ Z·D in bounded slices: `figures = yield from figure_steps(A, Z, D)`.

    Args:
        A, Z, D: (n, d), (n, k) and (k, d), float32, contiguous, finite and non-negative, on one device.

    Memory beside them, in bytes: 400·k for what is told of each concept, and one slice's products.
    """
    uses, largest, top_rows, top_codes = yield from _strongest(Z)
    histogram = yield from _histogram(Z, largest)
    nearest, cosines = yield from _nearest(D)
    together, overlap = yield from _together(Z)
    feature_r2 = yield from _feature_r2(A, Z, D)
    told = Figures(
        uses, largest, histogram, top_rows, top_codes, nearest, cosines, together, overlap, feature_r2.float()
    )
    return told.on_host()


def _strongest(Z: torch.Tensor) -> Generator[None, None, tuple[torch.Tensor, ...]]:
    """Uses, the largest codes, and the rows and codes at the top."""
    k = Z.shape[1]
    uses = torch.zeros(k, dtype=torch.int64, device=Z.device)
    codes = Z.new_zeros(0, k)
    rows = torch.zeros(0, k, dtype=torch.int64, device=Z.device)
    for part in _rows(Z):
        z = Z[part]
        uses += (z > 0).sum(dim=0)
        best = z.topk(min(TOP_ROWS, len(z)), dim=0)
        codes, rows = torch.cat([codes, best.values]), torch.cat([rows, best.indices + part.start])
        codes, order = codes.sort(dim=0, descending=True)
        codes, rows = codes[:TOP_ROWS], rows.gather(0, order)[:TOP_ROWS]
        yield
    largest = codes[0].clone() if len(codes) else Z.new_zeros(k)
    return uses, largest, *_padded(rows.T, codes.T, TOP_ROWS)


def _histogram(Z: torch.Tensor, largest: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    k = Z.shape[1]
    counts = torch.zeros(k * BINS, dtype=torch.int64, device=Z.device)
    scale = torch.where(largest > 0, largest, 1)
    for part in _rows(Z):
        row, concept = (Z[part] > 0).nonzero(as_tuple=True)
        share = Z[part][row, concept] / scale[concept]
        bins = (share * BINS).long().clamp_(max=BINS - 1)
        counts += torch.bincount(concept * BINS + bins, minlength=k * BINS)
        yield
    return counts.reshape(k, BINS)


def _nearest(D: torch.Tensor) -> Generator[None, None, tuple[torch.Tensor, ...]]:
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    unit = (D / torch.where(norms > 0, norms, 1)[:, None]).to(D.dtype)
    found = []
    for part in slices(len(D), max(1, SLICE_WORK // max(1, D.numel()))):
        found.append(_best_others(unit[part] @ unit.T, part.start))
        yield
    concepts, cosines = (torch.cat(parts) for parts in zip(*found, strict=True))
    return concepts, cosines.clamp_(max=1)


def _together(Z: torch.Tensor) -> Generator[None, None, tuple[torch.Tensor, ...]]:
    n, k = Z.shape
    rows = torch.linspace(0, n - 1, min(n, TOGETHER_ROWS), dtype=torch.float64, device=Z.device).long()
    active = Z.new_zeros(k, len(rows), dtype=torch.bool)
    for part in slices(len(rows), max(1, SLICE_WORK // (64 * k))):
        active[:, part] = (Z[rows[part]] > 0).T
        yield
    uses = active.sum(dim=1, dtype=torch.float32)
    found = []
    for part in slices(k, max(1, min(k, SLICE_WORK // max(1, k * len(rows))))):
        both = Z.new_zeros(part.stop - part.start, k)
        # concepts a block at a time: as numbers they take four times the memory
        for others in slices(k, 1024):
            both[:, others] = active[part].float() @ active[others].float().T
        either = uses[part, None] + uses - both
        found.append(_best_others(both / either.clamp(min=1), part.start))
        yield
    concepts, overlap = (torch.cat(parts) for parts in zip(*found, strict=True))
    return concepts, overlap


def _feature_r2(
    A: torch.Tensor | SparseRows, Z: torch.Tensor, D: torch.Tensor
) -> Generator[None, None, torch.Tensor]:
    chunks = Chunks(A, len(D))
    yield from chunks.survey()
    scale = 2.0**-chunks.exponent
    new = torch.zeros(3, A.shape[1], dtype=torch.float64, device=D.device)
    total, squares, error = new
    for rows, block in chunks:
        a = block.to_dense().double()
        total += a.sum(dim=0)
        squares += a.square().sum(dim=0)
        error += (a - (Z[rows].double() * scale) @ D.double()).square().sum(dim=0)
        yield
    spread = squares - total.square() / max(1, len(A))
    constant = spread <= 1e-12 * squares
    met = error <= 1e-12 * squares
    return torch.where(constant, met.double(), 1 - error / torch.where(constant, 1, spread))


def _rows(Z: torch.Tensor) -> Iterator[slice]:
    """Slices in which a few passes over codes are bounded work."""
    return slices(len(Z), max(1, SLICE_WORK // (128 * Z.shape[1])))


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
