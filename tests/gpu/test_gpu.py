"""What only a GPU can show: the kernels as compiled, TF32, memory, and that the host waits for nothing."""

import numpy as np
import pytest
import torch

from core import NMF, Dictionary, device_memory, kernels
from core.chunks import Chunks
from core.errors import DeviceTooSmall, NegativeValues
from core.kernels import grams, reference, torch_descent
from core.kernels.precision import Precision, product
from core.progress import run
from core.solvers import alternating, hals
from tests.core.problems import above_least, excess, kkt_residual, nearly_dependent, planted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
GPU = torch.device("cuda")


def on_gpu(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(x).to(GPU) for x in arrays]


# --- products ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "most"), [("TF32", 2e-3), ("SPLIT", 1e-5), ("FLOAT32", 4e-6)])
def test_each_product_has_the_precision_asked_for(precision: str, most: float) -> None:
    X, Y = torch.rand(300, 700, device=GPU), torch.rand(700, 200, device=GPU)
    less = torch.rand(300, 200, device=GPU)
    before = torch.backends.cuda.matmul.fp32_precision
    exact = X.double() @ Y.double()
    for subtracted in (None, less):
        error = product(X, Y, Precision[precision], less=subtracted) - (exact if subtracted is None else exact - less)
        assert float(error.abs().max() / exact.max()) < most
    assert torch.backends.cuda.matmul.fp32_precision == before
    if precision == "TF32":
        assert float((product(X, Y, Precision.TF32) - exact).abs().max() / exact.max()) > 1e-6


@pytest.mark.parametrize("terms", [30_000, 500_000])
def test_long_sums_of_non_negative_terms_are_not_biased(terms: int) -> None:
    """Tensor cores cut off what a sum grows past: in one piece 500 000 terms would lose a thousandth."""
    X, Y = torch.rand(64, terms, device=GPU), torch.rand(terms, 64, device=GPU)
    exact = X.double() @ Y.double()
    error = (product(X, Y, Precision.SPLIT) - exact) / exact
    assert abs(float(error.mean())) < 1e-5


# --- descent ----------------------------------------------------------------------------------------------------


# ends of tiles, parts and blocks; of the last two, one block is not enough
@pytest.mark.parametrize(
    ("rows", "k", "d"),
    [(1, 1, 2), (20, 65, 90), (300, 300, 200), (40000, 96, 50), (300, 1100, 200), (20000, 1024, 100)],
)
@pytest.mark.parametrize(("progress_ratio", "close"), [(0.01, 2e-2), (1e-10, 1e-4)])
def test_descend_is_the_definitions(rows: int, k: int, d: int, progress_ratio: float, close: float) -> None:
    A, Z, D = planted(rows, d, k, seed=k)
    D[: k // 10] = 0
    A, Z, D = on_gpu(A, Z, D)
    B = grams.gram(D)
    G = Z @ B - A @ D.T
    expected, gradient = (x[:40].double().cpu().numpy() for x in (Z, G))
    reference.descend(expected, gradient, B.double().cpu().numpy(), max_sweeps=3, progress_ratio=progress_ratio)
    by_torch, g = Z.clone(), G.clone()
    told = torch_descent.descend(by_torch, g, B, kernels.inverse_diagonal(B), 3, progress_ratio)
    violation = kernels.descend(Z, G, B, kernels.inverse_diagonal(B), max_sweeps=3, progress_ratio=progress_ratio)
    scale = float(Z.max()) + 1
    np.testing.assert_allclose(Z[:40].cpu().numpy(), expected, atol=close * scale)
    torch.testing.assert_close(Z, by_torch, atol=close * scale, rtol=0)
    torch.testing.assert_close(violation, told, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("k", [96, 1024])
def test_the_host_waits_for_nothing_within_an_iteration(k: int) -> None:
    A, Z, D = on_gpu(*planted(20000, 64, k, seed=1))
    chunks = Chunks(A, k)
    run(chunks.survey())
    concepts = D.T.contiguous()

    def iteration() -> None:
        statistics = run(alternating.update_codes(hals.CODES, chunks, Z, concepts))
        run(alternating.update_concepts(hals.CONCEPTS, concepts, statistics))

    iteration()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        iteration()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd", "anls"])
def test_a_fit_is_as_good_as_on_the_cpu(solver: str) -> None:
    A, _, _ = planted(2000, 100, 24, seed=2)
    of_cpu, of_gpu = (NMF(24, device=device, solver=solver, seed=0, max_iter=20) for device in ("cpu", "cuda"))
    of_cpu.fit(A)
    Z, D = of_gpu.fit(A)
    assert Z.device.type == D.device.type == "cuda"
    assert of_gpu.loss_history_[-1] <= 1.02 * of_cpu.loss_history_[-1]
    direct = 0.5 * float((torch.from_numpy(A).double() - Z.cpu().double() @ D.cpu().double()).square().sum())
    assert of_gpu.loss_history_[-1] == pytest.approx(direct, rel=1e-4)


def test_a_fit_is_repeated_by_its_seed() -> None:
    A = planted(3000, 80, 64, seed=3)[0]
    first, second = (NMF(64, device="cuda", seed=1, max_iter=10).fit(A) for _ in range(2))
    torch.testing.assert_close(first[1], second[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(dtype: torch.dtype) -> None:
    A = on_gpu(planted(3000, 64, 24, seed=4)[0])[0].to(dtype)
    given = NMF(24, device="cuda", seed=0, max_iter=5)
    _, D = given.fit(A)
    _, D_converted = NMF(24, device="cuda", seed=0, max_iter=5).fit(A.float())
    torch.testing.assert_close(D, D_converted, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(given.encode(A), given.encode(A.float()), rtol=1e-4, atol=1e-5)
    A[2, 3] = -1
    with pytest.raises(NegativeValues, match="row 2"):
        given.encode(A)


def test_a_fit_takes_the_memory_that_was_planned() -> None:
    A, k = torch.rand(60000, 256, device=GPU), 512
    NMF(k, device="cuda", seed=0, max_iter=1, init="random").fit(A[:20000])  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    NMF(k, device="cuda", seed=0, max_iter=2, init="random").fit(A)
    assert torch.cuda.max_memory_allocated() - before <= device_memory.fit_bytes(60000, 256, k, GPU, held=A.nbytes)


def test_a_fit_that_cannot_fit_is_refused_in_bytes() -> None:
    needed = device_memory.fit_bytes(10**8, 4096, 4096, GPU)
    with pytest.raises(DeviceTooSmall, match=str(needed)):
        device_memory.check_fit(10**8, 4096, 4096, GPU)


# --- encode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "k", "density"), [(60, 20, 0.2), (60, 60, 0.2), (3, 1, 1), (100, 600, 0.02), (200, 300, 0.2)]
)
def test_encode_is_exact(d: int, k: int, density: float) -> None:
    A, _, D = planted(40, d, k, density=density, seed=k)
    encoded = Dictionary(D, device="cuda").encode(A)
    codes = encoded.codes.cpu()
    assert bool(encoded.converged.all())
    assert excess(A, codes, D).max() <= 1e-6
    assert kkt_residual(A, codes.numpy(), D).max() <= 2e-6
    torch.testing.assert_close(
        codes @ torch.from_numpy(D), Dictionary(D).encode(A).codes @ torch.from_numpy(D), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("k", "d"), [(48, 100), (300, 120)])
@pytest.mark.parametrize("kind", ["smooth", "of low rank", "nearly one"])
@pytest.mark.parametrize("times", [1, 3])  # launch by launch, and recorded
def test_concepts_that_nearly_depend_on_each_other(kind: str, k: int, d: int, times: int) -> None:
    A, D = nearly_dependent(kind, k, d, rows=12)
    dictionary = Dictionary(D, device="cuda")
    for _ in range(times):
        encoded = dictionary.encode(A)
    assert bool(encoded.converged.all())
    assert above_least(A, encoded.codes.cpu(), D).max() <= 1e-6  # as of the CPU


def test_encode_without_the_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    A, _, D = planted(40, 100, 600, density=0.02, seed=5)
    monkeypatch.setattr("core.dictionary.LARGEST_GRAM_ON_GPU", 1)
    encoded = Dictionary(D, device="cuda").encode(A)
    assert bool(encoded.converged.all())
    assert excess(A, encoded.codes.cpu(), D).max() <= 1e-6


def test_float64_is_encoded_in_float64() -> None:
    A, _, D = planted(40, 100, 600, density=0.02, seed=5)
    encoded = Dictionary(D, device="cuda", dtype=torch.float64).encode(A)
    assert encoded.codes.device.type == "cuda"
    assert encoded.codes.dtype == torch.float64
    assert float(encoded.kkt_residual.max()) <= 1e-12


@pytest.mark.parametrize("k", [48, 600])
def test_a_row_is_encoded_alike_alone_and_in_a_batch(k: int) -> None:
    A, _, D = planted(200, 100, k, density=0.05, noise=0.3, seed=6)
    dictionary = Dictionary(D, device="cuda")
    together = dictionary.encode(A).codes
    assert torch.equal(together, dictionary.encode(A).codes)
    alone = torch.cat([dictionary.encode(A[i : i + 1]).codes for i in range(5)])
    torch.testing.assert_close(alone, together[:5], rtol=1e-3, atol=1e-4 * float(together.max()))


@pytest.mark.parametrize(("k", "density"), [(48, 0.2), (600, 0.02)])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_few_rows_are_encoded_by_what_is_recorded(k: int, density: float, rows: int) -> None:
    """From the second call on; nothing stays behind of the call before."""
    A, _, D = planted(6 * rows, 100, k, density=density, noise=0.1, seed=9)
    dictionary = Dictionary(D, device="cuda")
    for i in range(0, len(A), rows):
        some = A[i : i + rows]
        encoded = dictionary.encode(some)
        assert bool(encoded.converged.all())
        assert excess(some, encoded.codes.cpu(), D).max() <= 1e-6
    assert [graph is not None for graph in dictionary._kept.graphs.values()] == [True]


def test_recorded_encodes_share_their_memory() -> None:
    A, _, D = planted(16, 100, 2000, density=0.02, noise=0.1, seed=9)
    dictionary = Dictionary(D, device="cuda")
    before = torch.cuda.memory_reserved()
    taken = []
    for tol in (1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 6e-6, 7e-6, 8e-6):
        for _ in range(3):
            dictionary.encode(A, tol=tol)
        taken.append(torch.cuda.memory_reserved() - before)
    assert taken[-1] <= 3 * max(taken[0], 1 << 25)


def test_an_encode_larger_than_memory_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    A, _, D = planted(500, 60, 300, density=0.05, noise=0.3, seed=7)
    dictionary = Dictionary(D, device="cuda")
    whole = dictionary.encode(A).codes
    budget = device_memory.encode_bytes(100, 300, 60) + whole.nbytes
    monkeypatch.setattr("core.dictionary.free_bytes", lambda device: budget)
    monkeypatch.setattr(device_memory, "SMALL_ENCODE", 0)
    torch.testing.assert_close(dictionary.encode(A).codes, whole, rtol=1e-3, atol=1e-4 * float(whole.max()))


def test_an_encode_takes_the_memory_that_was_planned() -> None:
    A, _, D = planted(20000, 100, 1000, density=0.01, noise=0.1, seed=8)
    dictionary = Dictionary(D, device="cuda")
    given = torch.from_numpy(A).to(GPU)
    dictionary.encode(given[:100])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dictionary.encode(given)
    assert (
        torch.cuda.max_memory_allocated() - before <= device_memory.encode_bytes(20000, 1000, 100) + 4 * 20000 * 1000
    )
