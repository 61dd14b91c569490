"""How good a factorisation is, in plain numbers that JSON can hold (never NaN)."""

from collections.abc import Generator

import torch

from core.batches import Batches
from core.chunks import SMALLEST_CHUNK, Chunks
from core.dictionary import Dictionary
from core.inputs import tensor
from core.online import EXACT
from core.ranks import ALONE, Ranks
from core.sparse import SparseRows

# Of rows of which codes are to be found first; sums over so many random ones are within about a tenth of a per cent.
MOST_MEASURED, MEASURED_ORDER = 1 << 18, 0
# A concept active in more than this share of the rows tells little about any of them.
NEAR_DENSE_SHARE = 0.9


def measure_steps(
    A: torch.Tensor | SparseRows, Z: torch.Tensor, D: torch.Tensor, ranks: Ranks = ALONE
) -> Generator[None, None, dict[str, object]]:
    """Measure A ≈ Z·D in bounded slices: `metrics = yield from measure_steps(A, Z, D)`.

    Args:
        A, Z, D: (n, d), (n, k) and (k, d), float32, contiguous, finite and non-negative, on one device. A sparse A is
            made dense a chunk at a time.
        ranks: where they share out the rows of A and Z, the metrics are those of all rows.

    Returns:
        relative_error: ‖A − ZD‖_F / ‖A‖_F (0 for all-zero A).
        r2: 1 − ‖A − ZD‖² / ‖A − mean row‖²; where A is constant along its rows, 1 if it is met exactly, else 0.
        l0_mean, l0_fraction: non-zero codes of a row, on average; the same as a share of k.
        sparsity: Hoyer's (√k − ‖z‖₁/‖z‖₂) / (√k − 1), each code times its concept's norm, averaged over rows with a
            non-zero code (0: all equal, 1: a single one).
        dead_concepts: concepts that no row uses or that are zero.
        near_dense_concepts: concepts active in more than 90 % of the rows.
        coherence: the largest cosine between two concepts.
        energy: for each concept its share of Σ_j ‖Z_:j‖²·‖D_j‖² (all 0 where that is 0).
        kkt_residual: ‖V‖_F / ‖A‖_F, where V is the projected gradient of the loss in Z, each concept's column
            divided by its norm: how far the codes are from the best for this D.
    """
    chunks = Chunks(A, len(D), ranks)
    yield from chunks.survey()
    scale = 2.0**-chunks.exponent
    Z_scale, D_unit = _unit_concepts(D)
    sums = _Sums(D)
    for rows, block in chunks:
        # in units where each concept has norm one and A is of ordinary size
        sums.add(block.to_dense(), (Z[rows].double() * (Z_scale * scale)).to(A.dtype), D_unit)
        yield
    sums.total(ranks)
    return sums.metrics(D_unit, Z_scale > 0)


def measure_online_steps(batches: Batches, D: torch.Tensor) -> Generator[None, None, dict[str, object]]:
    """As `measure_steps`, with exact codes, of rows that are read in batches and of codes of which none are kept.

    Of more than 2¹⁸ rows so many are measured, and what is left of the last batch: of a matrix, blocks from all over
    it; of an iterable, its first.

    Returns:
        What `measure_steps` does, and `metrics_rows`: how many rows were measured.
    """
    Z_scale, D_unit = _unit_concepts(D)
    dictionary, sums = Dictionary(D_unit, device=D.device), _Sums(D)
    for reading in batches.epoch(0, 0, MEASURED_ORDER):
        chunks = Chunks(tensor((yield from reading)).to(D.device), len(D))
        chunks.size = max(SMALLEST_CHUNK, chunks.size // EXACT)
        yield from chunks.survey()
        for _, block in chunks:
            sums.add(block, dictionary.encode(block).codes, D_unit, unit=2.0**chunks.exponent)
            yield
        if sums.n >= MOST_MEASURED:
            break
    return sums.metrics(D_unit, Z_scale > 0) | {"metrics_rows": sums.n}


class _Sums:
    """What is added up over the chunks, in float64."""

    def __init__(self, D: torch.Tensor) -> None:
        (self.k, self.d), self.n, self.rows_in_use = D.shape, 0, 0
        self.squares = self.error = self.violation = self.hoyer = 0.0
        self.features = torch.zeros(self.d, dtype=torch.float64, device=D.device)
        self.uses = torch.zeros(self.k, dtype=torch.int64, device=D.device)
        self.energy = torch.zeros(self.k, dtype=torch.float64, device=D.device)

    def add(self, block: torch.Tensor, z: torch.Tensor, D_unit: torch.Tensor, unit: float = 1.0) -> None:
        """Rows and codes, both in this unit."""
        error = block - z @ D_unit
        g = -(error @ D_unit.T)
        v = torch.where(z > 0, g, g.clamp(max=0))
        self.n += len(block)
        self.squares += _energy(block) * unit**2
        self.error += _energy(error) * unit**2
        self.violation += _energy(v) * unit**2
        self.features += block.sum(dim=0, dtype=torch.float64) * unit
        self.uses += (z > 0).sum(dim=0)
        self.energy += (torch.linalg.vector_norm(z, dim=0, dtype=torch.float64) * unit).square()
        norms = torch.linalg.vector_norm(z, dim=1, dtype=torch.float64)
        used = norms > 0
        self.rows_in_use += int(used.sum())
        if self.k > 1:
            ratio = z.sum(dim=1, dtype=torch.float64)[used] / norms[used]
            self.hoyer += float(((self.k**0.5 - ratio) / (self.k**0.5 - 1)).clamp(0, 1).sum())

    def total(self, ranks: Ranks) -> None:
        """Add up what the ranks have."""
        ranks.total(0, self.features, self.uses, self.energy)
        for name in ("squares", "error", "violation", "hoyer"):
            setattr(self, name, ranks.total(getattr(self, name)))
        self.n, self.rows_in_use = int(ranks.total(self.n)), int(ranks.total(self.rows_in_use))

    def metrics(self, D_unit: torch.Tensor, alive: torch.Tensor) -> dict[str, object]:
        total, spread = float(self.energy.sum()), self.squares - float(self.features.square().sum()) / self.n
        l0 = float(self.uses.sum()) / self.n
        cosines = (D_unit @ D_unit.T).fill_diagonal_(0)
        return {
            "relative_error": (self.error / self.squares) ** 0.5 if self.squares > 0 else 0.0,
            "r2": _r2(self.error, spread, self.squares),
            "l0_mean": l0,
            "l0_fraction": l0 / self.k,
            "sparsity": self.hoyer / self.rows_in_use if self.rows_in_use else 0.0,
            "dead_concepts": int(((self.uses == 0) | ~alive).sum()),
            "near_dense_concepts": int((self.uses > NEAR_DENSE_SHARE * self.n).sum()),
            "coherence": min(1.0, float(cosines.max())),
            "energy": (self.energy / total).tolist() if total > 0 else [0.0] * self.k,
            "kkt_residual": (self.violation / self.squares) ** 0.5 if self.squares > 0 else 0.0,
        }


def _unit_concepts(D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The concepts' norms, float64 (k,), and the concepts divided by them (zero ones left zero)."""
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    return norms, (D / torch.where(norms > 0, norms, 1)[:, None]).to(D.dtype)


def _energy(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _r2(error: float, spread: float, squares: float) -> float:
    if spread > 1e-12 * squares:
        return 1 - error / spread
    return 1.0 if error <= 1e-12 * squares else 0.0
