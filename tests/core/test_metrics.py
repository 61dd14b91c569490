import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from core.batches import opened
from core.checks import activations_form
from core.metrics import Measured, measure_online_steps, measure_steps
from core.progress import run
from core.sparse import SparseRows
from tests.core.problems import planted

KEYS = {
    "relative_error",
    "r2",
    "l0_mean",
    "l0_fraction",
    "sparsity",
    "dead_concepts",
    "near_dense_concepts",
    "coherence",
    "duplicates",
    "worst_features",
    "energy",
    "kkt_residual",
}


def measured(A: np.ndarray, Z: np.ndarray, D: np.ndarray) -> Measured:
    A, Z, D = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (A, Z, D))
    return run(measure_steps(A, Z, D))


def test_of_very_many_rows_some_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are wanted, and what is left of the batch."""
    A, _, D = planted(1000, 20, 5)
    batches = opened(A, activations_form(), 64)
    whole = run(measure_online_steps(batches, torch.from_numpy(D))).metrics
    monkeypatch.setattr("core.metrics.MOST_MEASURED", 300)
    some = run(measure_online_steps(batches, torch.from_numpy(D))).metrics
    assert (whole["metrics_rows"], some["metrics_rows"]) == (1000, 320)
    assert some["l0_mean"] == pytest.approx(whole["l0_mean"], rel=0.1)


def measure(A: np.ndarray, Z: np.ndarray, D: np.ndarray) -> dict:
    return measured(A, Z, D).metrics


def test_against_plain_numpy() -> None:
    A, Z, D = planted(300, 40, 12, noise=0.3)
    told = measure(A, Z, D)
    A, Z, D = (x.astype(np.float64) for x in (A, Z, D))
    error, norms = A - Z @ D, np.linalg.norm(D, axis=1)
    used = (Z * norms)[Z.any(axis=1)]
    hoyer = (np.sqrt(12) - used.sum(1) / np.linalg.norm(used, axis=1)) / (np.sqrt(12) - 1)
    G = -error @ D.T / norms
    V = np.where(Z > 0, G, np.minimum(G, 0))
    cosines = (D / norms[:, None]) @ (D / norms[:, None]).T
    energy = (Z**2).sum(0) * norms**2
    assert told["relative_error"] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(A), rel=1e-5)
    assert told["r2"] == pytest.approx(1 - (error**2).sum() / ((A - A.mean(0)) ** 2).sum(), rel=1e-5)
    assert told["l0_mean"] == pytest.approx((Z > 0).sum(1).mean())
    assert told["l0_fraction"] == pytest.approx((Z > 0).mean())
    assert told["sparsity"] == pytest.approx(hoyer.mean(), rel=1e-5)
    assert told["coherence"] == pytest.approx((cosines - np.eye(12)).max(), rel=1e-5)
    assert told["energy"] == pytest.approx(energy / energy.sum(), rel=1e-5)
    assert told["kkt_residual"] == pytest.approx(np.linalg.norm(V) / np.linalg.norm(A), rel=1e-4)
    assert (told["dead_concepts"], told["near_dense_concepts"]) == (0, 0)


def test_sparse_rows_measure_as_dense_ones_do() -> None:
    A, Z, D = planted(300, 40, 12, noise=0.3)
    A[A < 0.5] = 0
    rows = SparseRows(sparse.csr_array(A), torch.device("cpu"))
    told = run(measure_steps(rows, torch.from_numpy(Z), torch.from_numpy(D))).metrics
    dense = measure(A, Z, D)
    for key in KEYS - {"worst_features"}:
        assert told[key] == pytest.approx(dense[key], rel=1e-6)
    for ours, theirs in zip(told["worst_features"], dense["worst_features"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_dead_and_near_dense_concepts() -> None:
    A, Z, D = planted(100, 20, 6)
    Z[:, 0], D[1], Z[:, 2], Z[:, 3] = 0, 0, 1, 1
    Z[:10, 3] = 0  # active in 90 % of the rows, no more
    told = measure(A, Z, D)
    assert told["dead_concepts"] == 2
    assert told["near_dense_concepts"] == 1


def test_the_worst_features_against_plain_numpy() -> None:
    A, Z, D = planted(300, 40, 12, noise=0.3)
    A[:, 7] = 2  # constant, and not met
    told = measure(A, Z, D)["worst_features"]
    A, Z, D = (x.astype(np.float64) for x in (A, Z, D))
    spread = ((A - A.mean(0)) ** 2).sum(0)
    r2 = np.where(spread > 0, 1 - ((A - Z @ D) ** 2).sum(0) / np.where(spread > 0, spread, 1), 0)
    assert len(told) == 10
    assert [worst["r2"] for worst in told] == pytest.approx(np.sort(r2)[:10], abs=1e-4)
    assert [r2[worst["feature"]] for worst in told] == pytest.approx(np.sort(r2)[:10], abs=1e-4)


def test_duplicates_are_concepts_with_another_like_them() -> None:
    A, Z, _ = planted(100, 20, 6)
    D = np.eye(6, 20, dtype=np.float32)
    assert measure(A, Z, D)["duplicates"] == 0
    D[1] = 3 * D[0] + 0.5 * D[4]
    assert measure(A, Z, D)["duplicates"] == 2
    D[2], D[3] = 0, 0  # like nothing
    assert measure(A, Z, D)["duplicates"] == 2


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(-80, 80), st.integers(0, 10**6))
def test_what_is_known_of_concepts_is_known_of_them_as_they_are(k: int, exponent: int, seed: int) -> None:
    A, Z, D = planted(30, 12, k, seed=seed, density=0.5)
    scale = np.float32(2.0**exponent)  # extraordinary values are scaled on the way
    figures = measured(A * scale, Z * scale, D).figures
    alive = D.any(axis=1)  # what codes a concept of zeros has says nothing
    np.testing.assert_array_equal(figures.uses, (Z > 0).sum(0) * alive)
    np.testing.assert_allclose(figures.largest, (Z * scale).max(0) * alive, rtol=1e-5)
    assert set(figures.known()) == {"nearest", "cosines", "uses", "largest"}


def test_slices_are_many_where_the_data_is_large() -> None:
    A, Z, D = torch.rand(20000, 512), torch.rand(20000, 256), torch.rand(256, 512)
    assert sum(1 for _ in measure_steps(A, Z, D)) >= 10


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6),
    d=st.integers(1, 6),
    k=st.integers(1, 6),
    zero=st.sampled_from(["none", "A", "Z", "D", "all", "constant"]),
    scales=st.tuples(st.integers(-80, 80), st.integers(-40, 40)),
    seed=st.integers(0, 100),
)
def test_always_json_without_nan(rows: int, d: int, k: int, zero: str, scales: tuple[int, int], seed: int) -> None:
    A, Z, D = planted(rows, d, k, seed=seed, density=0.5)
    A, Z, D = A * (zero not in ("A", "all")), Z * (zero not in ("Z", "all")), D * (zero not in ("D", "all"))
    if zero == "constant":
        A[:] = 3
    scale, share = 2.0 ** scales[0], 2.0 ** scales[1]
    told = measure(A * scale, Z * scale * share, D / share)
    assert set(told) == KEYS
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert len(told["energy"]) == k
    assert all(0 <= share <= 1 for share in told["energy"])
    assert 0 <= told["coherence"] <= 1
    assert 0 <= told["sparsity"] <= 1
    assert math.isfinite(told["r2"])
    plain = measure(A, Z, D)
    assert told["relative_error"] == pytest.approx(plain["relative_error"], rel=1e-3, abs=1e-5)
    assert told["kkt_residual"] == pytest.approx(plain["kkt_residual"], rel=1e-3, abs=1e-5)
