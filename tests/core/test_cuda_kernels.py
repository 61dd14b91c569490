"""The kernels for CUDA devices on the CPU: Triton's interpreter runs them, and its compiler takes them for a GPU.

What tensor cores round is not seen here (the interpreter multiplies in float32); tests/gpu is for that.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from benchmarks import tensor_cores
from core import kernels
from core.kernels import grams, reference
from core.kernels.precision import Precision
from tests.core.problems import excess, kkt_residual, nearly_dependent, planted

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs the kernels on the device itself", allow_module_level=True)
from core.kernels.cpu import interface as cpu
from core.kernels.cuda import bounded, encode, graphs, working_sets
from core.kernels.cuda import interface as cuda
from core.kernels.cuda.graphs import graph_of
from tests.core import interpreted  # noqa: F401
from tests.core.fresh import ROOT, run_fresh
from tests.waiting import PATIENCE_SECONDS

Answer = tuple[torch.Tensor, torch.Tensor]


def problem(
    rows: int, k: int, d: int, seed: int, *, zero_concepts: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(A, D, B, starting codes), float32."""
    A, Z, D = planted(rows, d, k, seed=seed)
    D[:zero_concepts] = 0
    A, Z, D = (torch.from_numpy(x) for x in (A, Z, D))
    return A, D, grams.gram(D), Z


# one column and one row; ends of parts and of a product's depth; more than a program's rows
@pytest.mark.parametrize(
    ("block", "rows", "k", "d"),  # a block for all columns, and several
    [
        *((512, 1, 1, 2), (512, 3, 5, 4), (512, 33, 32, 30), (512, 20, 65, 90), (512, 3, 80, 40)),
        *((32, 20, 65, 90), (32, 3, 80, 40)),
    ],
)
@pytest.mark.parametrize("progress_ratio", [0.0, 0.01])
def test_descend_gives_the_iterates_of_the_definition(
    block: int, rows: int, k: int, d: int, progress_ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "BLOCK", block)
    A, D, B, Z = problem(rows, k, d, seed=k, zero_concepts=k // 10)
    G = Z @ B - A @ D.T
    expected, gradient = Z.double().numpy(), G.double().numpy()
    before = (
        np.where(expected > 0, gradient, np.minimum(gradient, 0)) ** 2 * kernels.inverse_diagonal(B).numpy()
    ).sum(1)
    reference.descend(expected, gradient, B.double().numpy(), max_sweeps=3, progress_ratio=progress_ratio)

    violation = cuda.descend(Z, G, B, kernels.inverse_diagonal(B), 3, progress_ratio)

    np.testing.assert_allclose(Z.numpy(), expected, atol=2e-6 * max(1, expected.max()))
    np.testing.assert_allclose(violation.numpy(), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [512, 16])
def test_descend_stops_each_row_by_itself(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one tile of which one has arrived, one needs many sweeps, and one is empty; alone and together."""
    monkeypatch.setattr(cuda, "BLOCK", block)
    monkeypatch.setattr(cuda, "LOOK_AFTER", 2)
    A, D, B, Z = problem(3, 20, 30, seed=1)
    inverse = kernels.inverse_diagonal(B)
    A[2], Z[2] = 0, 0
    arrived, at_rest = Z[:1].double().numpy(), (Z[:1] @ B - A[:1] @ D.T).double().numpy()
    reference.descend(arrived, at_rest, B.double().numpy(), max_sweeps=300, progress_ratio=0)
    Z[:1] = torch.from_numpy(arrived)
    G = Z @ B - A @ D.T
    alone = Z.clone()
    for i in range(3):
        row = alone[i : i + 1].clone()
        cuda.descend(row, G[i : i + 1].clone(), B, inverse, 6, 0.01)
        alone[i] = row
    cuda.descend(Z, G, B, inverse, 6, 0.01)
    torch.testing.assert_close(Z, alone, rtol=1e-5, atol=1e-6)
    assert bool((Z[2] == 0).all())


def solved(
    A: torch.Tensor,
    D: torch.Tensor,
    *,
    tol: float = 1e-6,
    gram: bool = True,
    max_sweeps: int = 300,
    kept: kernels.EncodeCache | None = None,
) -> Answer:
    return cuda.solve(A, kernels.prepare(D, hold_gram=gram), tol, max_sweeps, kept)


@pytest.fixture
def small_working_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they do not hold all concepts of a problem that the interpreter can do."""
    small = {"FEW_CONCEPTS": 8, "ADDED": 6, "ROOM": 8, "SIZES": 16, "RESIDENT": 16, "GRAM_BYTES": 4 * 16 * 16 * 2}
    for name, value in small.items():
        monkeypatch.setattr(encode, name, value)


def test_solve_is_exact_on_few_concepts() -> None:
    A, D, _, _ = problem(4, 20, 24, seed=2, zero_concepts=2)
    Z, residual = solved(A, D)
    assert float(residual.max()) <= 1e-6
    assert bool((Z[:, :2] == 0).all())
    assert bool((Z >= 0).all())
    assert excess(A.numpy(), Z, D.numpy()).max() <= 1e-6
    assert kkt_residual(A.numpy(), Z.numpy(), D.numpy()).max() <= 2e-6
    by_cpu = cpu.solve(A, kernels.prepare(D, hold_gram=False), 1e-6, 300)[0]
    torch.testing.assert_close(Z, by_cpu, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("small_working_sets")
@pytest.mark.parametrize("gram", [True, False])
def test_solve_is_exact_on_working_sets(gram: bool) -> None:
    """Pieces of two rows at most; more concepts than features, so that the whole gram is singular."""
    A, _, D = planted(2, 20, 30, density=0.05, seed=3)
    Z, residual = solved(torch.from_numpy(A), torch.from_numpy(D), gram=gram)
    assert float(residual.max()) <= 1e-6
    assert excess(A, Z, D).max() <= 1e-6
    assert kkt_residual(A, Z.numpy(), D).max() <= 2e-6


@pytest.mark.usefixtures("small_working_sets")
@pytest.mark.parametrize(("noise", "tol"), [(0.05, 1e-6), (3.0, 1e-7)])
def test_gradients_are_as_precise_as_it_takes(noise: float, tol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rounding of tensor cores. Where concepts explain a row well, split products certify it."""
    used: set[Precision] = set()

    def product(X: torch.Tensor, Y: torch.Tensor, kind: Precision) -> torch.Tensor:
        used.add(kind)
        return tensor_cores.product(X, Y, kind)

    monkeypatch.setattr(encode, "product", product)
    A, _, D = planted(2, 20, 30, density=0.1, noise=noise, seed=3)
    Z, residual = solved(torch.from_numpy(A), torch.from_numpy(D), tol=tol)
    assert float(residual.max()) <= tol
    assert kkt_residual(A, Z.numpy(), D).max() <= 1.1 * tol
    assert used == (set(Precision) - {Precision.FLOAT32} if noise < 1 else set(Precision))


def test_a_row_whose_gradient_is_lost_in_rounding_gets_a_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would go on with the same, until it was given up."""
    solving = encode.Encode(torch.ones(3, 20), kernels.prepare(torch.eye(300, 20), hold_gram=True), 1e-6, 300)
    solving.begin()
    looked: list[tuple[Precision, list[int]]] = []
    told = {
        Precision.TF32: [2e-3, 2e-3, 0.5],
        Precision.SPLIT: [1e-6, 1e-4, 0.5],
        Precision.FLOAT32: [5e-7, 1e-4, 0.5],
    }

    def look(precision: Precision, some: torch.Tensor | None = None) -> None:
        looked.append((precision, [0, 1, 2] if some is None else some.tolist()))
        solving.rows.relative.copy_(torch.tensor(told[precision]))
        solving.rows.wanted.zero_()

    monkeypatch.setattr(solving, "look", look)
    solving.rows.relative.copy_(torch.tensor([2.1e-3, 1e-1, 1.0]))  # of which the second has fallen by much since
    solving.climb()
    assert looked == [(Precision.TF32, [0, 1, 2]), (Precision.SPLIT, [0]), (Precision.FLOAT32, [0])]


@pytest.mark.usefixtures("small_working_sets")
def test_few_rows_are_solved_by_what_is_kept_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays behind of earlier rows; rows that want more than there is room for go by the common way."""
    monkeypatch.setattr(encode, "ROOM", 30)
    A, _, D = planted(4, 20, 30, density=0.05, seed=3)
    a, D = torch.from_numpy(A), torch.from_numpy(D)
    a[3] = 0
    kept = kernels.EncodeCache()
    solved(a[:2], D, kept=kept)
    solved(a[:1], D, kept=kept)
    assert kept.graphs == {(2, 1e-6, 300): None, (1, 1e-6, 300): None}  # which is worth it from the second time on
    for rows in (a[:2], a[2:3], a[2:4]):
        Z, residual = solved(rows, D, kept=kept)
        assert Z.shape == (len(rows), 30)
        assert float(residual.max()) <= 1e-6
        used = rows.norm(dim=1) > 0
        assert bool((Z[~used] == 0).all())
        assert excess(rows[used].numpy(), Z[used], D.numpy()).max() <= 1e-6
    again = kept.graphs[1, 1e-6, 300].solve(a[2:3])
    torch.testing.assert_close(again.Z, Z[:1], rtol=1e-3, atol=1e-4 * float(Z.max()))
    monkeypatch.setattr(encode, "ROOM", 4)
    kept.graphs[1, 1e-6, 300] = None
    by_common_way = solved(a[2:3], D, kept=kept)[0]
    graph = kept.graphs[1, 1e-6, 300]
    assert graph.solve(a[2:3]) is None
    torch.testing.assert_close(by_common_way, Z[:1], rtol=1e-3, atol=1e-4 * float(Z.max()))


def test_rows_that_are_played_in_vain_are_played_less_and_less() -> None:
    """One that is unlike the others is of no account."""
    solving = encode.Encode(torch.zeros(1, 3), kernels.prepare(torch.eye(8, 3), hold_gram=True), 1e-6, 300, room=4)
    graph = graphs.EncodeGraph(solving)
    played: list[int] = []

    def told_of(widest: int) -> bool:
        """Whether it was played."""
        before = len(played)
        solving.told = lambda wanted: encode.Told(torch.zeros(1), torch.zeros(1), widest, ())  # type: ignore[method-assign]
        assert (graph.solve(solving.A) is None) == (widest > solving.room or len(played) == before)
        return len(played) > before

    graph._begin = lambda: played.append(1)
    assert [i for i in range(12) if told_of(9)] == [0, 1, 3, 6, 10]
    assert [told_of(widest) for widest in (3, 3, 3, 3, 9, 3, 9, 3)] == [False] * 3 + [True] * 5


def test_all_that_is_recorded_on_a_device_shares_a_stream_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's graphs replaced. One graph stays, without which torch refuses the pool later."""
    captured: list[dict[str, Any]] = []

    @contextmanager
    def graph(graph: Any, **how: Any) -> Iterator[None]:
        captured.append(how)
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda device, priority: SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": object,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "zeros", lambda n, device: None)
    graphs._place.cache_clear()
    try:
        for _ in range(2):
            graphs.as_graph(lambda: None, torch.device("cuda", 0))
        assert len(captured) == 3
        assert len({how["pool"] for how in captured}) == len({id(how["stream"]) for how in captured}) == 1
        assert graphs._place(torch.device("cuda", 0))._first is not None
    finally:
        graphs._place.cache_clear()


def test_graphs_of_one_dictionary_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kernels.cuda.graphs.MOST_GRAPHS", 2)
    kept: dict[Any, Any] = {}
    for tol in (1e-3, 1e-4, 1e-5):
        assert graph_of(kept, (4, tol, 9), pytest.fail) is None
    assert list(kept) == [(4, 1e-4, 9), (4, 1e-5, 9)]


@pytest.mark.usefixtures("small_working_sets")
def test_a_row_is_solved_alike_alone_and_in_a_batch() -> None:
    """Beside rows of wider working sets, and empty ones."""
    A, _, D = planted(3, 20, 30, density=0.05, seed=3)
    a, D = torch.from_numpy(A), torch.from_numpy(D)
    a[1] *= 0
    a[2] = 5 * D[20:30].sum(dim=0)
    Z, residual = solved(a, D)
    alone, residual_alone = solved(a[:1], D)
    torch.testing.assert_close(Z[:1], alone, rtol=1e-5, atol=1e-6)
    assert residual.tolist()[1] == 0
    assert bool((Z[1] == 0).all())
    assert float(residual_alone) <= 1e-6


def test_repeated_and_dependent_concepts() -> None:
    """A singular gram: each concept twice, and sums of pairs. The codes are not unique; the minimum is."""
    A, _, D = planted(4, 20, 6, seed=4)
    D = np.concatenate([D, D, D[:3] + D[3:]])
    Z, residual = solved(torch.from_numpy(A), torch.from_numpy(D))
    assert float(residual.max()) <= 1e-6
    assert excess(A, Z, D).max() < 1e-6


def test_rows_given_up_are_ended_by_exact_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    A, D = (torch.from_numpy(x) for x in nearly_dependent("smooth", 24, 40, rows=2))
    A[0] = D[3]
    monkeypatch.setattr(encode, "PRODUCTS", 1)
    given: list[torch.Tensor] = []
    finish = cpu.finish

    def seen(a: torch.Tensor, *others: Any) -> None:
        given.append(a)
        finish(a, *others)

    monkeypatch.setattr(cpu, "finish", seen)
    kept = kernels.EncodeCache()
    for _ in range(2):  # launch by launch, and recorded
        Z, residual = solved(A, D, max_sweeps=50, kept=kept)
        assert torch.equal(given.pop(), A[1:])  # the other was done
        assert float(residual.max()) <= 1e-6
        assert excess(A.numpy(), Z, D.numpy()).max() <= 1e-6


@pytest.mark.parametrize(("rows", "k", "d"), [(3, 20, 24), (2, 40, 24)])  # the gram in registers, and read in parts
@pytest.mark.parametrize("resident", [True, False])
def test_minimise_is_exact_on_what_was_chosen(rows: int, k: int, d: int, resident: bool) -> None:
    """From codes that are not the start, some of them where the minimum has none; others stay as they are."""
    A, D, B, Z = problem(rows, k, d, seed=k, zero_concepts=1)
    B += torch.eye(k)  # which gives it one minimum
    scale = kernels.inverse_diagonal(B).sqrt()
    chosen = torch.stack([torch.randperm(k, generator=torch.Generator().manual_seed(i))[:16] for i in range(rows)])
    widths = torch.full((rows,), 14, dtype=torch.int32)
    before, expected = Z.clone(), Z.clone()
    C = A @ D.T
    for i, of_row in enumerate(chosen[:, :14]):
        others = torch.ones(k)
        others[of_row] = 0
        factor = torch.linalg.cholesky(B[of_row][:, of_row].double())
        c = (C[i] - (Z[i] * others) @ B)[of_row].double()
        wanted = nnls(factor.T.numpy(), torch.linalg.solve_triangular(factor, c[:, None], upper=False)[:, 0].numpy())
        expected[i, of_row] = torch.from_numpy(wanted[0]).float()
    G = (Z @ B - C).gather(1, chosen)
    spent = torch.zeros(rows, dtype=torch.int32)
    grams = torch.stack([B[of_row][:, of_row] for of_row in chosen]).contiguous()
    grams[:, 14:] = grams[:, :, 14:] = torch.nan  # which is not defined there
    bounded.minimise[(rows,)](
        Z, G, chosen.int(), scale, grams, torch.arange(rows, dtype=torch.int32), torch.ones(rows), torch.ones(rows),
        widths, spent, torch.empty(rows, 16), k, 16, 16, 256, 0.0, 1e-6 * float(C.max()), 500, 3,
        SIZE=16, DEPTH=4, RESIDENT=resident,
    )  # fmt: skip
    torch.testing.assert_close(Z, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert bool((Z.scatter(1, chosen[:, :14], 0) == before.scatter(1, chosen[:, :14], 0)).all())
    assert 3 <= int(spent.min()) <= int(spent.max()) < 100


def test_pieces_begin_where_numbers_are_aligned() -> None:
    starts = [piece.start for piece in encode._pieces(20_000, 4 * 192 * 192)]
    assert len(starts) == 3
    assert all(start % 4 == 0 for start in starts)
    assert [piece.stop for piece in encode._pieces(5, encode.GRAM_BYTES // 3)] == [3, 5]


def test_minimise_makes_no_more_products_than_it_may() -> None:
    A, D, B, _ = problem(3, 16, 24, seed=4)
    Z, spent = torch.zeros(3, 16), torch.tensor([0, 5, 7], dtype=torch.int32)
    one, every = torch.ones(3), torch.arange(16, dtype=torch.int32).repeat(3, 1)
    bounded.minimise[(3,)](
        Z, -A @ D.T, every, kernels.inverse_diagonal(B).sqrt(), B, torch.arange(3, dtype=torch.int32), one, one,
        torch.full((3,), 16, dtype=torch.int32), spent, torch.empty(3, 16), 16, 16, 16, 0, 0.0, 0.0, 7, 1,
        SIZE=16, DEPTH=16, RESIDENT=True,
    )  # fmt: skip
    assert spent.tolist() == [7, 7, 8]
    assert (Z > 0).any(dim=1).tolist() == [True, True, False]


def chosen_of(
    Z: torch.Tensor,
    G: torch.Tensor,
    scale: torch.Tensor,
    added: int,
    room: int,
    *,
    usual: int = 40,
    everything: bool = False,
) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    """The concepts of each row, as far as there is room; residuals; numbers wanted."""
    n, k = Z.shape
    chosen, g = torch.full((n, room), -1, dtype=torch.int32), torch.full((n, room), torch.nan)
    relative, residual, wanted = torch.empty(n), torch.empty(n), torch.empty(n, dtype=torch.int32)
    working_sets.choose[(n,)](
        Z, G, torch.arange(n, dtype=torch.int32), torch.full((n,), 2.0), scale, chosen, g, relative,
        residual, wanted, k, room,
        added, usual, WIDTH=64, ALL=everything,
    )  # fmt: skip
    torch.testing.assert_close(residual, relative, rtol=0, atol=0, equal_nan=True)
    some = [row[row >= 0].tolist() for row in chosen]
    for i, concepts in enumerate(some):
        torch.testing.assert_close(g[i, : len(concepts)], G[i, concepts], rtol=0, atol=0, equal_nan=True)
    return some, relative, wanted


def test_a_working_set_is_the_support_and_those_that_violate_most() -> None:
    rng = torch.Generator().manual_seed(0)
    Z = torch.rand(6, 40, generator=rng) * (torch.rand(6, 40, generator=rng) < 0.2)
    G = torch.randn(6, 40, generator=rng)
    G[1] = G[1].abs()  # none violates: those that come nearest to it join
    Z[2] = 0
    scale = torch.rand(40, generator=rng)
    scale[7], Z[:, 7] = 0, 0  # is not used
    some, relative, wanted = chosen_of(Z, G, scale, 5, 30)
    for i, concepts in enumerate(some):
        support = int((Z[i] > 0).sum())
        violating = int(((Z[i] == 0) & (G[i] < 0) & (scale > 0)).sum())
        count = support + (5 if violating < 5 else max(5, support))
        score = torch.where(Z[i] > 0, torch.inf, torch.where(scale > 0, -G[i] * scale, -torch.inf))
        assert concepts == sorted(score.topk(count).indices.tolist())
        assert int(wanted[i]) == count
    projected = torch.where(Z > 0, G, G.clamp(max=0))
    torch.testing.assert_close(relative, (projected.abs() * scale).amax(dim=1) / 2)


def test_a_working_set_holds_as_many_of_equals_as_join_and_says_how_many_it_wants() -> None:
    Z, G = torch.zeros(2, 40), -torch.ones(2, 40)
    Z[1, :20] = 1
    some, _, wanted = chosen_of(Z, G, torch.ones(40), 6, 24)
    assert some == [list(range(6)), list(range(24))]
    assert wanted.tolist() == [6, 40]
    assert chosen_of(Z, G, torch.ones(40), 6, 24, usual=24)[2].tolist() == [6, 26]
    assert chosen_of(Z, G, torch.ones(40), 6, 36, usual=36)[2].tolist() == [6, 36]
    assert chosen_of(Z, G, torch.ones(40), 6, 40, everything=True)[0] == [list(range(40))] * 2
    G[0, 3] = torch.nan
    assert torch.isnan(chosen_of(Z, G, torch.ones(40), 6, 24)[1]).tolist() == [True, False]


def test_solve_says_so_where_it_did_not_arrive() -> None:
    A, D, _, _ = problem(3, 20, 24, seed=3)
    Z, residual = solved(A, D, max_sweeps=1, tol=1e-9)
    assert bool((residual > 1e-9).any())
    direct = kkt_residual(A.numpy(), Z.numpy(), D.numpy())
    np.testing.assert_allclose(residual.numpy(), direct, rtol=1e-2, atol=1e-6)


@pytest.mark.slow
def test_the_compiler_takes_the_kernels(tmp_path: Path) -> None:
    """For tensor cores of compute capability 9.0; a GPU is not needed for that."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.core.ptx"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    told = dict(line.split(": compiled ") for line in run.stdout.splitlines())
    assert told.keys() == {"descend", "minimise", "choose", "gather", "residuals"}
    times = told["descend"].split()[0]
    assert told["descend"] == f"{times} times, {times} for tensor cores"


def test_nan_is_not_hidden() -> None:
    A, D, B, Z = problem(4, 6, 8, seed=6)
    G = Z @ B - A @ D.T
    G[2, 3] = torch.nan
    violation = cuda.descend(Z, G, B, kernels.inverse_diagonal(B), 3, 0.0)
    assert torch.isnan(violation).tolist() == [False, False, True, False]


def test_a_gpu_does_without_numba() -> None:
    """All but what is ended by the CPU, which says what is missing."""
    code = """
import sys
sys.modules["numba"] = None
import core, core.chunks, core.fit, core.warm, torch
from tests.core import interpreted
from core import kernels
from core.kernels import grams, prepared
from core.kernels.cuda import interface as cuda
D = torch.rand(3, 5)
A = torch.rand(2, 3) @ D
B, inverse = grams.gram(D), kernels.inverse_diagonal(grams.gram(D))
ready = prepared.Prepared(D, B, inverse, torch.empty(0))
for _ in range(2):
    Z, residual = cuda.solve(A, ready, 1e-6, 300, kernels.EncodeCache())
print(bool(torch.allclose(Z @ D, A, atol=1e-3)), float(residual.max()) <= 1e-6)
cuda.descend(Z, Z @ B - A @ D.T, B, inverse, 5, 0.0)
try:
    core.Dictionary(D)
except ImportError as error:
    print(error)
"""
    worked, told = run_fresh(code).splitlines()
    assert worked == "True True"
    assert told.startswith("what is computed on the CPU needs numba, which cannot be imported (")
