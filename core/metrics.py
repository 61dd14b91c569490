"""How good a factorisation is, in plain numbers that JSON can hold (never NaN)."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from core.batches import Batches
from core.chunks import Chunks, chunk_size, encode_chunk_size, slices
from core.constants import NEAR_DENSE_SHARE
from core.dictionary import Dictionary
from core.figures import Figures, nearest_steps
from core.inputs import tensor
from core.kernels.precision import Precision, product
from core.ranks import ALONE, Ranks
from core.scaling import unit_concepts
from core.sparse import SparseRows

if TYPE_CHECKING:
    from core.nmf import NMF

# Of rows of which codes are to be found first; sums over so many random ones are within about a tenth of a per cent.
MOST_MEASURED, MEASURED_ORDER = 1 << 18, 0
DUPLICATE_COSINE = 0.95  # of two concepts that say about the same
WORST_FEATURES = 10
ROUNDING = 1e-12  # of sums in float64, as a share of the squares


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of the whole, and what came to be known of each concept on the way."""

    metrics: dict[str, object]
    figures: Figures


def codes_to_measure_steps(nmf: "NMF", A: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """The codes (n, k) to measure a fit of A (n, d) by, in bounded slices: its own. Those of `mu` never reach zero,
    so that nothing could be counted of them: exact ones take their place, in `nmf.Z_` itself."""
    Z = nmf.Z_
    if nmf.solver == "mu":
        D = nmf.get_dictionary()
        dictionary = Dictionary(D, device=D.device)
        for rows in slices(len(A), encode_chunk_size(chunk_size(A.shape[1], len(D), D.device))):
            Z[rows] = dictionary.encode(A[rows]).codes
            yield
    return Z


def measure_steps(
    A: torch.Tensor | SparseRows, Z: torch.Tensor, D: torch.Tensor, ranks: Ranks = ALONE
) -> Generator[None, None, Measured]:
    """Measure A ≈ Z·D in bounded slices: `measured = yield from measure_steps(A, Z, D)`.

    Args:
        A, Z, D: (n, d), (n, k) and (k, d), float32, contiguous, finite and non-negative; Z and D on one device. A
            may lie on another, and goes there a chunk at a time; a sparse A is made dense likewise.
        ranks: where they share out the rows of A and Z, the metrics are those of all rows.

    Returns:
        Figures of the nearest concepts, uses and largest codes, and metrics:

        relative_error: ‖A − ZD‖_F / ‖A‖_F (0 for all-zero A).
        r2: 1 − ‖A − ZD‖² / ‖A − mean row‖²; where A is constant along its rows, 1 if it is met exactly, else 0.
        l0_mean, l0_fraction: non-zero codes of a row, on average; the same as a share of k.
        sparsity: Hoyer's (√k − ‖z‖₁/‖z‖₂) / (√k − 1), each code times its concept's norm, averaged over rows with a
            non-zero code (0: all equal, 1: a single one).
        dead_concepts: concepts that no row uses or that are zero.
        near_dense_concepts: concepts active in more than 90 % of the rows.
        coherence: the largest cosine between two concepts.
        duplicates: concepts of which another has a cosine above 0.95.
        worst_features: the ten features that are met worst, from the worst on: `feature`, and `r2`, which is
            1 − Σ(a − zD)² / Σ(a − mean)² of it, as for the whole.
        energy: for each concept its share of Σ_j ‖Z_:j‖²·‖D_j‖² (all 0 where that is 0).
        kkt_residual: ‖V‖_F / ‖A‖_F, where V is the projected gradient of the loss in Z, each concept's column
            divided by its norm: how far the codes are from the best for this D.
    """
    chunks = Chunks(A, len(D), ranks)
    yield from chunks.survey()
    scale = 2.0**-chunks.exponent
    Z_scale, D_unit = unit_concepts(D)
    sums = _Sums(D)
    for rows, block in chunks:
        # in units where each concept has norm one and A is of ordinary size
        z = (Z[rows].double() * (Z_scale * scale)).to(D.dtype)
        sums.add(block.to_dense().to(D.device), z, D_unit, unit=2.0**chunks.exponent)
        yield
    sums.total(ranks)
    return (yield from sums.measured(D_unit, Z_scale))


def measure_online_steps(batches: Batches, D: torch.Tensor) -> Generator[None, None, Measured]:
    """As `measure_steps`, with exact codes, of rows that are read in batches and of codes of which none are kept.

    Of more than 2¹⁸ rows so many are measured, and what is left of the last batch: of a matrix, blocks from all over
    it; of an iterable, its first.

    Returns:
        What `measure_steps` does, of these rows, and the metric `metrics_rows`: how many they are.
    """
    Z_scale, D_unit = unit_concepts(D)
    dictionary, sums = Dictionary(D_unit, device=D.device), _Sums(D)
    for reading in batches.epoch(0, 0, MEASURED_ORDER):
        chunks = Chunks(tensor((yield from reading)).to(D.device), len(D))
        chunks.size = encode_chunk_size(chunks.size)
        yield from chunks.survey()
        for _, block in chunks:
            sums.add(block, dictionary.encode(block).codes, D_unit, unit=2.0**chunks.exponent)
            yield
        if sums.n >= MOST_MEASURED:
            break
    measured = yield from sums.measured(D_unit, Z_scale)
    return replace(measured, metrics=measured.metrics | {"metrics_rows": sums.n})


class _Sums:
    """What is added up over the chunks, in float64."""

    def __init__(self, D: torch.Tensor) -> None:
        (self.k, self.d), self.n, self.rows_in_use = D.shape, 0, 0
        self.violation = self.hoyer = 0.0
        self.features, self.squares, self.errors = torch.zeros(3, self.d, dtype=torch.float64, device=D.device)
        self.uses = torch.zeros(self.k, dtype=torch.int64, device=D.device)
        self.largest, self.energy = torch.zeros(2, self.k, dtype=torch.float64, device=D.device)

    def add(self, block: torch.Tensor, z: torch.Tensor, D_unit: torch.Tensor, unit: float) -> None:
        """Rows and codes, both in this unit."""
        error = block - product(z, D_unit, Precision.FLOAT32)
        g = -product(error, D_unit.T, Precision.FLOAT32)
        v = torch.where(z > 0, g, g.clamp(max=0))
        self.n += len(block)
        self.violation += float(torch.linalg.vector_norm(v, dtype=torch.float64) * unit) ** 2
        self.features += block.sum(dim=0, dtype=torch.float64) * unit
        self.squares += _energies(block, unit)
        self.errors += _energies(error, unit)
        self.uses += (z > 0).sum(dim=0)
        self.largest = torch.maximum(self.largest, z.amax(dim=0).double() * unit)
        self.energy += _energies(z, unit)
        norms = torch.linalg.vector_norm(z, dim=1, dtype=torch.float64)
        used = norms > 0
        self.rows_in_use += int(used.sum())
        if self.k > 1:
            ratio = z.sum(dim=1, dtype=torch.float64)[used] / norms[used]
            self.hoyer += float(((self.k**0.5 - ratio) / (self.k**0.5 - 1)).clamp(0, 1).sum())

    def total(self, ranks: Ranks) -> None:
        """Add up what the ranks have."""
        ranks.all_sum(0, self.features, self.squares, self.errors, self.uses, self.energy)
        self.largest = ranks.all_gather(self.largest[None]).amax(dim=0)
        for name in ("violation", "hoyer"):
            setattr(self, name, ranks.all_sum(getattr(self, name)))
        self.n, self.rows_in_use = int(ranks.all_sum(self.n)), int(ranks.all_sum(self.rows_in_use))

    def measured(self, D_unit: torch.Tensor, norms: torch.Tensor) -> Generator[None, None, Measured]:
        nearest = yield from nearest_steps(D_unit)
        largest = torch.where(norms > 0, self.largest / norms, 0).float()  # of codes of D itself
        figures = replace(nearest, uses=self.uses, largest=largest)
        return Measured(self._metrics(nearest.cosines[:, 0], norms > 0), figures)

    def _metrics(self, cosines: torch.Tensor, alive: torch.Tensor) -> dict[str, object]:
        energy, squares, error = float(self.energy.sum()), float(self.squares.sum()), float(self.errors.sum())
        spreads = self.squares - self.features.square() / self.n
        l0 = float(self.uses.sum()) / self.n
        worst, features = _r2(self.errors, spreads, self.squares).topk(min(WORST_FEATURES, self.d), largest=False)
        return {
            "relative_error": (error / squares) ** 0.5 if squares > 0 else 0.0,
            "r2": float(_r2(self.errors.sum(), spreads.sum(), self.squares.sum())),
            "l0_mean": l0,
            "l0_fraction": l0 / self.k,
            "sparsity": self.hoyer / self.rows_in_use if self.rows_in_use else 0.0,
            "dead_concepts": int(((self.uses == 0) | ~alive).sum()),
            "near_dense_concepts": int((self.uses > NEAR_DENSE_SHARE * self.n).sum()),
            "coherence": float(cosines.max()),
            "duplicates": int((cosines > DUPLICATE_COSINE).sum()),
            "worst_features": [
                {"feature": feature, "r2": r2} for feature, r2 in zip(features.tolist(), worst.tolist(), strict=True)
            ],
            "energy": (self.energy / energy).tolist() if energy > 0 else [0.0] * self.k,
            "kkt_residual": (self.violation / squares) ** 0.5 if squares > 0 else 0.0,
        }


def _energies(x: torch.Tensor, unit: float) -> torch.Tensor:
    """Of each column, in this unit."""
    return x.double().square().sum(dim=0) * unit**2


def _r2(error: torch.Tensor, spread: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    varied = spread > ROUNDING * squares
    met = (error <= ROUNDING * squares).double()
    return torch.where(varied, 1 - error / torch.where(varied, spread, 1), met)
