import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn import decomposition

from core import NMF
from core.chunks import Chunks
from core.initial import RANDOM_ROWS, STARTS, nndsvda
from core.progress import run
from core.ranks import Ranks
from core.sparse import SparseRows
from tests.core.problems import digits_split, planted, relative_error


def surveyed(A: np.ndarray, k: int, size: int | None = None) -> Chunks:
    chunks = Chunks(torch.from_numpy(A), k)
    chunks.size = size or chunks.size
    run(chunks.survey())
    return chunks


def started(
    name: str, A: np.ndarray, k: int, *, seed: int = 0, size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    return run(STARTS[name](surveyed(A, k, size), torch.Generator().manual_seed(seed)))


def test_survey() -> None:
    A = planted(100, 20, 5)[0]
    for scale, exponent in ((1.0, 0), (2.0**90, 90)):
        chunks = surveyed((A * scale).astype(np.float32), 5, size=7)
        peak = int(np.frexp(A.max())[1])
        assert chunks.exponent == (exponent + peak if exponent else 0)
        inner = scale / 2.0**chunks.exponent
        assert chunks.mean == pytest.approx(A.mean() * inner, rel=1e-5)
        assert chunks.energy == pytest.approx((A.astype(float) ** 2).sum() * inner**2, rel=1e-5)


def test_nndsvda_keeps_the_larger_halves_of_the_singular_pairs() -> None:
    A, k = planted(120, 40, 6, noise=0.01)[0], 6
    Z, D = started("nndsvda", A, k)
    _, _, V = np.linalg.svd(A.astype(float), full_matrices=False)
    for j in range(k):
        halves = [np.maximum(V[j], 0), np.maximum(-V[j], 0)]
        cosines = [
            h @ D[j].double().numpy() / np.linalg.norm(h) / float(D[j].norm()) if h.any() else 0 for h in halves
        ]
        assert max(cosines) > 0.99
    assert relative_error(A, Z, D) < 1


@pytest.mark.parametrize("massive", [{7: 3e3}, {7: 3e3, 20: 1e3, 30: 3e2}, {7: 1e4}])
@pytest.mark.parametrize("k", [8, 20])
def test_what_lies_beside_massive_features_is_seen_from_the_start(massive: dict[int, float], k: int) -> None:
    """As in residual streams: one feature holds nearly all of ‖A‖², and the others most of what there is to find."""
    A = np.abs(np.random.default_rng(0).standard_normal((250, 60))).astype(np.float32)
    for feature, scale in massive.items():
        A[:, feature] *= scale
    peer = decomposition.NMF(k, init="nndsvda", tol=1e-6, max_iter=400, random_state=0)
    with warnings.catch_warnings(action="ignore"):  # that it would go on
        Z = peer.fit_transform(A.astype(np.float64))
    error = np.linalg.norm(A - Z @ peer.components_) / np.linalg.norm(A.astype(np.float64))
    assert relative_error(A, *NMF(k, seed=0).fit(A)) <= 1.001 * error


def test_chunks_make_no_difference() -> None:
    A = planted(300, 30, 8)[0]
    whole, pieces = started("nndsvda", A, 8, size=300), started("nndsvda", A, 8, size=17)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)


class Part(Ranks):
    """A rank that has the rows from `before` on, and is told what the others would sum up."""

    def __init__(self, before: int) -> None:
        self.before = before

    def offset_and_total(self, count: int) -> tuple[int, int]:
        return self.before, self.before + count


def test_random_codes_are_the_same_however_rows_are_shared_out() -> None:
    A = planted(3 * RANDOM_ROWS + 20, 5, 3)[0]
    whole = surveyed(A, 3)
    Z, D = run(STARTS["random"](whole, torch.Generator().manual_seed(1)))
    for ends in ([0, 1, 1, len(A)], [0, RANDOM_ROWS, RANDOM_ROWS + 7, len(A) - 5, len(A)]):
        parts = []
        for begin, end in pairwise(ends):
            chunks = Chunks(torch.from_numpy(A[begin:end]), 3, Part(begin))
            chunks.mean, chunks.exponent = whole.mean, whole.exponent
            parts.append(run(STARTS["random"](chunks, torch.Generator().manual_seed(1))))
        assert torch.equal(torch.cat([rows for rows, _ in parts]), Z)
        assert all(torch.equal(of_part, D) for _, of_part in parts)


def test_random_codes_of_no_two_rows_or_seeds_are_the_same() -> None:
    A = planted(3 * RANDOM_ROWS, 5, 3)[0]
    (Z, D), (of_next, _) = (started("random", A, 3, seed=seed) for seed in (0, 1))
    assert len(torch.unique(torch.cat([Z, of_next]), dim=0)) == 2 * len(A)
    assert not torch.isin(D, Z).any()


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize(
    ("rows", "d", "k"), [(1, 1, 1), (1, 9, 4), (9, 1, 4), (5, 6, 20), (40, 300, 280), (300, 280, 290)]
)
def test_any_shape(name: str, rows: int, d: int, k: int) -> None:
    A = planted(rows, d, 3)[0] + np.float32(0.1)
    Z, D = started(name, A, k)
    assert (Z.shape, D.shape) == ((rows, k), (k, d))
    for tensor in (Z, D):
        assert bool(torch.isfinite(tensor).all())
        assert bool((tensor >= 0).all())
    assert bool((D.norm(dim=1) > 0).all())


def test_concepts_beyond_the_rank_start_as_different_data_rows() -> None:
    A = planted(50, 30, 4, noise=0)[0] + np.float32(0)
    _, D = started("nndsvda", A, 12)
    rows = A[A.any(axis=1)]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (D[4:] / D[4:].norm(dim=1, keepdim=True)).numpy() @ unit.T
    assert (cosines.max(axis=1) > 0.9).all()  # the fill blurs small rows
    _, repeated = started("nndsvda", A[:3], 12)
    assert len({tuple(row) for row in repeated.tolist()}) == 12


def test_a_better_start_than_random_on_digits() -> None:
    fit = digits_split()[0]
    chunks = surveyed(np.ascontiguousarray(fit), 64)
    Z, D = run(nndsvda(chunks, torch.Generator().manual_seed(0)))
    assert relative_error(fit, Z, D) < relative_error(fit, *started("random", np.ascontiguousarray(fit), 64))


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize(("rows", "d", "k"), [(60, 20, 5), (60, 20, 30), (12, 40, 30), (1, 9, 4)])
@pytest.mark.parametrize("damage", ["none", "zero rows", "zero columns", "constant column", "rank one"])
@pytest.mark.parametrize("scale", [1.0, 2.0**90])
def test_sparse_rows_start_where_dense_ones_do(
    name: str, rows: int, d: int, k: int, damage: str, scale: float
) -> None:
    A = planted(rows, d, 3)[0]
    A[A < 0.2] = 0
    match damage:
        case "zero rows":
            A[1::2] = 0
        case "zero columns":
            A[:, ::2] = 0
        case "constant column":
            A[:, 0] = 7
        case "rank one":
            A = np.outer(A[:, 0] + 1, A[0]).astype(np.float32)
    A[0, -1] = 1
    A *= np.float32(scale)
    dense = surveyed(A, k, size=7)
    chunks = Chunks(SparseRows(sparse.csr_array(A), torch.device("cpu")), k)
    chunks.size = 7
    run(chunks.survey())
    assert chunks.exponent == dense.exponent
    assert (chunks.mean, chunks.energy) == pytest.approx((dense.mean, dense.energy), rel=1e-6)
    starts = [run(STARTS[name](c, torch.Generator().manual_seed(0))) for c in (chunks, dense)]
    for one, other in zip(*starts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.max()))
