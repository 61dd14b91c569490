"""Plans for a device's memory, and tensors that lie on one: with the CPU in its place."""

import numpy as np
import pytest
import scipy.sparse
import torch

from core import NMF, Dictionary, checks, device_memory, errors, inputs
from core.chunks import chunk_size, rows_of_slice
from core.dictionary import LARGEST_GRAM, LARGEST_GRAM_ON_GPU, largest_gram
from tests.core.problems import planted

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU are treated as those on a GPU are, and read two rows at a time when they are checked."""
    monkeypatch.setattr("core.resident.is_resident", lambda x: isinstance(x, torch.Tensor))
    monkeypatch.setattr("core.resident.SLICE_VALUES", 80)


def test_rows_of_an_encode_fill_the_budget() -> None:
    budget = device_memory.encode_bytes(1234, 4096, 768)
    assert device_memory.rows_of_encode(4096, 768, budget) == 1234
    assert device_memory.rows_of_encode(4096, 768, budget - 1) == 1233
    assert device_memory.rows_of_encode(4096, 768, 0) == 1


def test_an_encode_is_split_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    A, _, D = planted(50, 30, 12)
    whole = Dictionary(D).encode(A)
    solved: list[int] = []
    solve = Dictionary._solve

    def counted(self: Dictionary, A: torch.Tensor, tol: float, max_iter: int) -> tuple[torch.Tensor, torch.Tensor]:
        solved.append(len(A))
        return solve(self, A, tol, max_iter)

    monkeypatch.setattr(Dictionary, "_solve", counted)
    monkeypatch.setattr(
        "core.dictionary.free_bytes", lambda device: device_memory.encode_bytes(20, 12, 30) + 4 * 50 * 12
    )
    Dictionary(D).encode(A)
    assert solved == [50]  # so few that nobody asks
    solved.clear()
    monkeypatch.setattr(device_memory, "SMALL_ENCODE", 0)
    parts = Dictionary(D).encode(torch.from_numpy(A).to(torch.float64))
    assert solved == [20, 20, 10]
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.kkt_residual, whole.kkt_residual)


def test_a_fit_that_cannot_fit_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    A = np.ones((40, 30), np.float32)
    needed = device_memory.fit_bytes(40, 30, 5, CPU)
    assert needed > 4 * (40 * 30 + 40 * 5 + 5 * 30)
    monkeypatch.setattr("core.device_memory.free_bytes", lambda device: needed - 1)
    with pytest.raises(errors.DeviceTooSmall, match=f"needs {needed} bytes on cpu, where {needed - 1} are free"):
        next(NMF(5).fit_steps(A))
    monkeypatch.setattr("core.device_memory.free_bytes", lambda device: needed)
    NMF(5, max_iter=1).fit(A)
    with pytest.raises(errors.DeviceTooSmall):  # whose rows are encodes, with working sets
        next(NMF(5, solver="anls").fit_steps(A))


def test_sparse_activations_are_not_counted_as_if_they_were_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    A = scipy.sparse.random_array(
        (60, 300), density=0.05, format="csr", dtype=np.float32, rng=np.random.default_rng(0)
    )
    needed = device_memory.fit_bytes(60, 300, 5, CPU, held=4 * A.shape[0] * A.shape[1])
    monkeypatch.setattr("core.device_memory.free_bytes", lambda device: needed)
    NMF(5, max_iter=1).fit(A)
    with pytest.raises(errors.DeviceTooSmall):
        NMF(5, max_iter=1).fit(A.toarray())


def test_a_rank_without_rows_may_have_them_on_a_gpu(resident: None) -> None:
    given = inputs.opened(torch.empty(0, 5), checks.activations_form(least_rows=0))
    assert isinstance(given, torch.Tensor)
    assert given.shape == (0, 5)


@pytest.mark.parametrize("k", [8, 512, 4096, 10_000])
def test_slices_of_a_gpu_leave_no_multiprocessor_of_an_h100_idle(k: int) -> None:
    assert chunk_size(768, k, GPU) % (128 * 132) == 0
    assert rows_of_slice(10**11, GPU, least=5) == 40


def test_the_cpus_memory_is_not_asked_for() -> None:
    assert device_memory.free_bytes(CPU) is None


def test_a_gram_is_held_for_more_concepts_on_a_gpu() -> None:
    assert (largest_gram(CPU), largest_gram(GPU)) == (LARGEST_GRAM, LARGEST_GRAM_ON_GPU)


@pytest.mark.usefixtures("resident")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_lies_on_a_device_is_read_as_it_is(dtype: torch.dtype) -> None:
    A = torch.from_numpy(planted(60, 40, 8)[0]).to(dtype).T.contiguous().T
    model = NMF(8, seed=0, max_iter=5)
    Z, D = model.fit(A)
    same = NMF(8, seed=0, max_iter=5)
    Z_same, D_same = same.fit(A.float().numpy())
    assert torch.equal(D, D_same)
    assert torch.equal(Z, Z_same)
    assert torch.equal(model.encode(A), same.encode(A.float().numpy()))
    assert torch.equal(model.encode(A[0]), model.encode(A[:1]))
    np.testing.assert_array_equal(model.sanitize_np_input(A), A.float().numpy())


@pytest.mark.usefixtures("resident")
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, errors.NegativeValues), (torch.nan, errors.NotFinite), (torch.inf, errors.NotFinite)],
)
def test_what_lies_on_a_device_is_checked(value: float, error: type[Exception]) -> None:
    A = torch.ones(9, 40, dtype=torch.bfloat16)
    A[7, 3] = value
    for asked in (NMF(2).fit, NMF(2).sanitize_np_input):
        with pytest.raises(error, match=r"row 7.*column 3"):
            asked(A)
    with pytest.raises(errors.WrongShape, match="3 dimensions"):
        NMF(2).fit(A[None])
    with pytest.raises(errors.OutOfRange, match="rescale"):
        NMF(2).fit(torch.full((3, 4), 1e-42, dtype=torch.float64))
