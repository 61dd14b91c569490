"""Fits and encodes on a CUDA device that the CPU stands in for: where tensors lie, what waits, what they take."""

from collections.abc import Iterator
from itertools import product as product_of
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from core import NMF, Dictionary, checks, device_memory, inputs, kernels
from core.chunks import Chunks
from core.errors import NegativeValues
from core.kernels import prepared
from core.kernels.cuda import encode
from core.kernels.cuda import interface as cuda_kernels
from core.kernels.precision import Precision, product
from core.progress import run
from core.solvers import alternating, hals
from core.solvers.revival import revive
from tests.core.problems import excess, kkt_residual, nearly_dependent, planted
from tests.core.ranks import told_by_ranks

if torch.cuda.is_available():
    pytest.skip("tests/gpu asks the device itself", allow_module_level=True)
from tests.core import on_shadow_ranks
from tests.core.shadow_cuda import DEVICE, Graph, Refused, Shadow, State, Stream, cuda, on_stream, recording


@pytest.fixture
def device() -> Iterator[State]:
    with cuda() as state:
        yield state


# --- the shadow itself ------------------------------------------------------------------------------------------


def test_tensors_of_two_devices_do_not_meet(device: State) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(Refused, match="same device"):
        x + torch.ones(3)
    with pytest.raises(Refused, match="same device"):
        torch.ones(3)[torch.zeros(1, dtype=torch.int64, device="cuda")]
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()


def test_what_makes_the_host_wait_is_known(device: State) -> None:
    x = torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    for waiting in (x.sum().item, x.cpu, x.nonzero, lambda: x[x > 0], lambda: torch.ones(3).to("cuda")):
        with pytest.raises(Refused, match="wait"):
            waiting()
    x[:2] = 3  # does not


def test_a_stream_waits_for_what_it_reads(device: State) -> None:
    x, stream = torch.ones(3, device="cuda"), Stream()
    x += 1
    with on_stream(stream):
        with pytest.raises(Refused, match="another stream"):
            x + 1
        stream.wait_stream(Stream())  # one that has done nothing
        with pytest.raises(Refused, match="another stream"):
            x.zero_()
    stream.wait_stream(torch.cuda.current_stream())
    with on_stream(stream):
        y = x + 1
    with pytest.raises(Refused, match="another stream"):
        x.zero_()  # which is still read
    stream.record_event().synchronize()
    assert x.zero_().tolist() == [0, 0, 0]
    assert y.tolist() == [3, 3, 3]


def test_a_graph_does_again_what_it_recorded(device: State) -> None:
    x, graph = torch.ones(2, device="cuda"), Graph()
    with recording(graph, stream=Stream()):
        y = x * 2
        x += y.sum()
        with pytest.raises(Refused, match="within a graph"):
            float(y.sum())
    assert x.tolist() == [1, 1]
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([5, 5], [2, 2])
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([25, 25], [10, 10])


def test_a_product_takes_no_other_threads_precision(device: State) -> None:
    x = torch.ones(2, 2, device="cuda")
    for multiplied in (lambda: x @ x, lambda: x @ x[0], lambda: torch.addmm(x, x, x), lambda: torch.mm(x, x, out=x)):
        with pytest.raises(Refused, match="another thread"):
            multiplied()
    assert product(x, x, Precision.FLOAT32).tolist() == [[2, 2], [2, 2]]
    assert (x.double() @ x.double()).tolist() == [[2, 2], [2, 2]]


def test_memory_is_counted(device: State) -> None:
    x = torch.empty(1000, device="cuda")
    assert torch.cuda.memory_allocated() == 4096
    y = x[10:] + 1
    del x, y
    assert torch.cuda.memory_allocated() == 0
    assert torch.cuda.max_memory_allocated() == 8192
    device.left = 4096
    x = torch.empty(1000, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        x + 1
    assert torch.cuda.memory_allocated() == 4096


# --- the way there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float16", ">f4", "by columns", "batches"])
def test_rows_come_there_in_slices(device: State, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a fit of many gigabytes, mapped from a disk, holds nobody up while they come."""
    A = np.random.default_rng(0).random((10, 6)).astype("float32" if kind in ("by columns", "batches") else kind)
    monkeypatch.setattr(inputs, "SLICE_VALUES", 3 * A.shape[1])
    given = iter([A[:5], A[5:]]) if kind == "batches" else np.asfortranarray(A) if kind == "by columns" else A
    form = checks.activations_form()
    slices = inputs.read_steps(inputs.opened(given, form), form, DEVICE)
    count = 0
    while True:
        try:
            next(slices)
        except StopIteration as end:
            there = end.value
            break
        count += 1
    assert count == 4 + (kind == "batches")
    assert there.device == DEVICE
    np.testing.assert_array_equal(there.cpu().numpy(), A.astype(np.float32))


# --- fits -------------------------------------------------------------------------------------------------------

A = planted(40, 12, 4, seed=2)[0]


@pytest.mark.parametrize(
    ("solver", "kind"),
    [*product_of(["hals", "mu", "pgd"], ["array", "half on the device", "sparse", "batches"]), ("anls", "array")],
)
def test_a_fit_is_that_of_the_cpu(device: State, solver: str, kind: str) -> None:
    given = {
        "array": lambda: A,
        "half on the device": lambda: torch.from_numpy(A).to(DEVICE, torch.bfloat16),
        "sparse": lambda: sparse.csr_array(A),
        "batches": lambda: [A[:25], A[25:]],
    }[kind]()
    iterations = 1 if solver == "anls" else 4
    of_cpu, of_cuda = (NMF(4, device=of, solver=solver, seed=0, max_iter=iterations) for of in ("cpu", "cuda"))
    of_cpu.fit(given.cpu() if isinstance(given, torch.Tensor) else given)
    Z, D = of_cuda.fit(given)
    assert isinstance(Z, Shadow)
    assert isinstance(D, Shadow)
    np.testing.assert_allclose(of_cuda.loss_history_, of_cpu.loss_history_, rtol=2e-2)
    assert isinstance(of_cuda.decode(Z), Shadow)


def test_a_fit_goes_on_from_its_state(device: State) -> None:
    whole, first, then = (NMF(4, device="cuda", seed=0, max_iter=6, tol=0) for _ in range(3))
    whole.fit(A)
    steps = first.fit_steps(A)
    while (state := steps.state()) is None or state["iteration"] < 3:
        next(steps)
    then.fit(A, state={name: x.cpu() if isinstance(x, torch.Tensor) else x for name, x in state.items()})
    assert then.loss_history_[-1] == pytest.approx(whole.loss_history_[-1], rel=1e-5)


def test_an_online_fit(device: State) -> None:
    model = NMF(2, device="cuda", seed=0)
    assert isinstance(model.fit_online(A[:12], 1), Shadow)
    model.partial_fit(A[12:20])
    assert model.loss_history_[-1] > 0


def test_ranks_exchange_what_lies_on_their_devices(device: State, tmp_path: Path) -> None:
    first, second = told_by_ranks("tests.core.on_shadow_ranks", tmp_path, 2)[2]
    for solver in on_shadow_ranks.SOLVERS:
        alone = on_shadow_ranks.model(solver)
        alone.fit(on_shadow_ranks.A)
        assert first[solver]["losses"] == second[solver]["losses"] == pytest.approx(alone.loss_history_, rel=1e-4)
        assert first[solver]["metrics"] == second[solver]["metrics"]


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
@pytest.mark.parametrize(("n", "d", "k"), [(2000, 128, 64), (1500, 20, 300), (300, 400, 40), (150, 30, 600)])
def test_a_fit_takes_the_memory_that_was_planned(device: State, solver: str, n: int, d: int, k: int) -> None:
    given = torch.rand(n, d).to(DEVICE)
    device.reset_peak()
    before = device.allocated
    NMF(k, device="cuda", seed=0, max_iter=2, init="random", solver=solver).fit(given)
    planned = device_memory.fit_bytes(n, d, k, DEVICE, held=given.nbytes)
    assert 0.3 * planned < device.peak - before <= planned


@pytest.mark.parametrize("k", [96, 600])  # a block that is swept at once, and two
def test_the_host_waits_for_nothing_within_an_iteration(device: State, k: int) -> None:
    rows, Z, D = (torch.from_numpy(x).to(DEVICE) for x in planted(200, 24, k, seed=1))
    chunks = Chunks(rows, k)
    run(chunks.survey())
    torch.cuda.set_sync_debug_mode("error")
    concepts = D.T.contiguous()
    statistics = run(alternating.update_codes(hals.CODES, chunks, Z, concepts))
    run(alternating.update_concepts(hals.CONCEPTS, concepts, statistics))


def test_starts_that_are_given_and_concepts_beyond_the_rank(device: State) -> None:
    rng = np.random.default_rng(0)
    Z, D = rng.random((40, 4), np.float32), rng.random((4, 12), np.float32)
    for given in ({"Z": Z}, {"D": D}, {"Z": torch.from_numpy(Z).to(DEVICE), "D": torch.from_numpy(D).to(DEVICE)}):
        assert isinstance(NMF(4, device="cuda", max_iter=2).fit(A, **given)[1], Shadow)
    NMF(20, device="cuda", seed=0, max_iter=2).fit(A)
    below = torch.from_numpy(A).to(DEVICE, torch.float16)
    below[2, 3] = -1
    with pytest.raises(NegativeValues, match="row 2, column 3"):
        NMF(4, device="cuda").fit(below)


@pytest.mark.parametrize("given", ["D", "Z"])
def test_a_start_of_several_blocks_of_concepts_is_gone_on_from(
    device: State, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its codes are found to the end, with products of split factors: before the first block nothing has moved."""
    monkeypatch.setattr("core.kernels.cuda.interface.BLOCK", 16)
    A, Z, D = planted(60, 50, 40)
    start = {"D": D} if given == "D" else {"Z": Z}
    NMF(40, device="cuda", max_iter=1).fit(A, **start)


def test_dead_concepts_are_revived(device: State) -> None:
    rows, Z, D = (torch.from_numpy(x).to(DEVICE) for x in planted(40, 12, 4, seed=2))
    concepts, dead = D.T.contiguous(), torch.tensor([False, True, False, True]).to(DEVICE)
    concepts[:, dead] = 0
    chunks = Chunks(rows, 4)
    run(chunks.survey())
    assert run(revive(chunks, Z, concepts, dead))
    assert bool((concepts.amax(dim=0) > 0).all())


# --- encodes ----------------------------------------------------------------------------------------------------


def test_few_rows_are_encoded_by_what_is_recorded(device: State) -> None:
    rows, _, D = planted(17, 12, 5, density=0.4, noise=0.1, seed=9)
    dictionary = Dictionary(D, device="cuda")
    for n in (17, 1, 1, 1, 3, 4):
        some = rows[-n:]
        encoded = dictionary.encode(some)
        assert isinstance(encoded.codes, Shadow)
        assert bool(encoded.converged.all())
        assert kkt_residual(some, encoded.codes.cpu().numpy(), D).max() <= 2e-6
    assert [graph is not None for graph in dictionary._kept.graphs.values()] == [True, True]


def test_encodes_of_extraordinary_sizes_and_in_float64(device: State) -> None:
    rows, _, D = planted(2, 12, 3, density=0.4, seed=9)
    for dictionary in (Dictionary(D * 2.0**90, device="cuda"), Dictionary(D, device="cuda", dtype=torch.float64)):
        assert bool(dictionary.encode(rows * 2.0**-30).converged.all())
        assert bool(dictionary.encode(torch.from_numpy(rows * 2.0**60).to(DEVICE)).converged.all())


@pytest.mark.parametrize("held", [True, False])
def test_working_sets_with_and_without_the_gram(device: State, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.dictionary.LARGEST_GRAM_ON_GPU", 16384 if held else 1)
    rows, _, D = planted(1, 20, 260, density=0.05, seed=5)
    dictionary = Dictionary(D, device="cuda")
    encoded = dictionary.encode(rows)
    assert bool(encoded.converged.all())
    assert kkt_residual(rows, encoded.codes.cpu().numpy(), D).max() <= 2e-6


def test_rows_that_are_given_up_are_ended_on_the_cpu(device: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where D is then kept, beside the device's."""
    monkeypatch.setattr(encode, "PRODUCTS", 1)
    rows, D = nearly_dependent("smooth", 24, 40, rows=2)
    dictionary = Dictionary(D, device="cuda")
    before, kept = dictionary.nbytes, []
    for _ in range(2):  # launch by launch, and recorded
        encoded = dictionary.encode(rows, max_iter=50)
        assert bool(encoded.converged.all())
        assert excess(rows, encoded.codes.cpu(), D).max() <= 1e-6
        kept.append(dictionary._kept.on_cpu)
    assert kept[0] is not None
    assert kept[0] is kept[1]
    assert dictionary.nbytes == before + sum(tensor.nbytes for tensor in kept[0])


@pytest.mark.parametrize("given", ["float64", "very many concepts"])
def test_what_the_cpu_encodes_is_prepared_there_once(
    device: State, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given != "float64":
        monkeypatch.setattr(cuda_kernels, "MOST_CONCEPTS", 15)
    rows, _, D = planted(2, 32, 16, density=0.4, seed=9)
    dtype = torch.float64 if given == "float64" else torch.float32
    before = device.allocated
    dictionary, of_cpu = (Dictionary(D, device=place, dtype=dtype) for place in ("cuda", "cpu"))
    held = device.allocated - before
    assert held == dictionary.D.nbytes  # and no gram
    assert dictionary.nbytes == held + of_cpu.nbytes
    monkeypatch.setattr(prepared, "cpu_kernels", pytest.fail)
    encoded = dictionary.encode(rows)
    assert isinstance(encoded.codes, Shadow)
    assert torch.equal(encoded.codes.cpu(), of_cpu.encode(rows).codes)


def test_the_host_waits_once_for_each_look(device: State, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FEW_CONCEPTS": 8, "ADDED": 6, "ROOM": 8, "SIZES": 16}.items():
        monkeypatch.setattr(encode, name, value)
    rows, _, D = planted(3, 20, 30, density=0.05, noise=0.1, seed=3)
    looks: list[Precision] = []
    waits: list[str] = []
    look = encode.Encode.look

    def looked(self: encode.Encode, precision: Precision, some: torch.Tensor | None = None) -> None:
        looks.append(precision)
        look(self, precision, some)

    there, prepared_there = torch.from_numpy(rows).to(DEVICE), Dictionary(D, device="cuda")._prepared
    monkeypatch.setattr(encode.Encode, "look", looked)
    monkeypatch.setattr(device, "host_waits", waits.append)
    _, residual = kernels.solve(there, prepared_there, tol=1e-6, max_sweeps=300)
    assert len(waits) == len(looks) > len(set(looks)) > 1
    assert float(residual.max()) <= 1e-6


def test_an_encode_larger_than_memory_is_split(device: State, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, D = planted(6, 12, 4, density=0.4, noise=0.1, seed=9)
    dictionary = Dictionary(D, device="cuda")
    whole = dictionary.encode(rows).codes
    monkeypatch.setattr(
        "core.dictionary.free_bytes", lambda device: device_memory.encode_bytes(4, 4, 12) + whole.nbytes
    )
    monkeypatch.setattr(device_memory, "SMALL_ENCODE", 0)
    for given in (rows, torch.from_numpy(rows).to(DEVICE)):
        torch.testing.assert_close(dictionary.encode(given).codes.cpu(), whole.cpu(), rtol=1e-3, atol=1e-4)
