"""The kernels for CUDA devices on the CPU: Triton's interpreter runs them, and its compiler takes them for a GPU.

What tensor cores round is not seen here (the interpreter multiplies in float32); tests/gpu is for that.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core import kernels
from core.kernels import cpu, reference
from tests.core.problems import excess, kkt_residual, planted

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs the kernels on the device itself", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # read as kernels are defined, triton's own among them
from core.kernels import cuda, small

ROOT = Path(__file__).parent.parent.parent
Answer = tuple[torch.Tensor, torch.Tensor]


def problem(
    rows: int, k: int, d: int, seed: int, *, zero_concepts: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(A, D, B, starting codes), float32."""
    A, Z, D = planted(rows, d, k, seed=seed)
    D[:zero_concepts] = 0
    A, Z, D = (torch.from_numpy(x) for x in (A, Z, D))
    return A, D, kernels.gram(D), Z


# one column and one row; ends of parts and of blocks; more than a program's rows, and than a block's columns
@pytest.mark.parametrize(("rows", "k", "d"), [(1, 1, 2), (3, 5, 4), (17, 32, 30), (20, 65, 90), (3, 161, 40)])
@pytest.mark.parametrize("share", [0.0, 0.01])
def test_descend_gives_the_iterates_of_the_definition(rows: int, k: int, d: int, share: float) -> None:
    A, D, B, Z = problem(rows, k, d, seed=k, zero_concepts=k // 10)
    G = Z @ B - A @ D.T
    expected, gradient = Z.double().numpy(), G.double().numpy()
    before = (
        np.where(expected > 0, gradient, np.minimum(gradient, 0)) ** 2 * kernels.inverse_diagonal(B).numpy()
    ).sum(1)
    reference.descend(expected, gradient, B.double().numpy(), max_sweeps=3, progress_ratio=share)

    violation = cuda.descend(Z, G, B, kernels.inverse_diagonal(B), 3, share)

    np.testing.assert_allclose(Z.numpy(), expected, atol=2e-6 * max(1, expected.max()))
    np.testing.assert_allclose(violation.numpy(), before, rtol=1e-3, atol=1e-4)


def test_descend_stops_each_row_by_itself() -> None:
    """Rows of one tile of which one has arrived, one needs many sweeps, and one is empty; alone and together."""
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
        cuda.descend(row, G[i : i + 1].clone(), B, inverse, 8, 0.01)
        alone[i] = row
    cuda.descend(Z, G, B, inverse, 8, 0.01)
    torch.testing.assert_close(Z, alone, rtol=1e-5, atol=1e-6)
    assert bool((Z[2] == 0).all())


def solved(
    A: torch.Tensor, D: torch.Tensor, *, tol: float = 1e-6, gram: bool = True, max_sweeps: int = 300
) -> Answer:
    B = kernels.gram(D) if gram else None
    return cuda.solve(A, D, B, kernels.inverse_squares(D), tol, max_sweeps)


@pytest.fixture
def small_working_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they do not hold all concepts of a problem that the interpreter can do."""
    for name, value in {"FEW_CONCEPTS": 8, "ADDED": 6, "SIZES": 16, "GRAM_BYTES": 4 * 16 * 16 * 2}.items():
        monkeypatch.setattr(cuda, name, value)


def test_solve_is_exact_on_few_concepts() -> None:
    A, D, _, _ = problem(4, 20, 24, seed=2, zero_concepts=2)
    Z, residual = solved(A, D)
    assert float(residual.max()) <= 1e-6
    assert bool((Z[:, :2] == 0).all())
    assert bool((Z >= 0).all())
    assert excess(A.numpy(), Z, D.numpy()).max() <= 1e-6
    assert kkt_residual(A.numpy(), Z.numpy(), D.numpy()).max() <= 2e-6
    by_cpu = cpu.solve(A, D, None, kernels.inverse_squares(D), 1e-6, 300)[0]
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


def test_an_exact_step_takes_a_spanned_concept_to_zero() -> None:
    """And gives its share to those that span it: on a support with one concept twice, one step is the minimum."""
    _, D, _, _ = problem(1, 5, 12, seed=5)
    D = torch.cat([D, D[:1]])
    B = kernels.gram(D)
    z = torch.ones(1, 6)
    g = z @ B - torch.full((1, 5), 2.0) @ D[:5] @ D.T
    small.exact_steps[(1,)](z, g, B, kernels.inverse_diagonal(B)[None].contiguous(), torch.zeros(1), 0, 6, 1, SIZE=16)
    torch.testing.assert_close(z, torch.tensor([[2.0, 2, 2, 2, 2, 0]]), rtol=1e-4, atol=1e-4)
    assert float(g.abs().max()) <= 1e-3 * float(B.max())


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
        [sys.executable, "-m", "tests.core.compiled"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr
    assert "wgmma.mma_async" in run.stdout


def test_nan_is_not_hidden() -> None:
    A, D, B, Z = problem(4, 6, 8, seed=6)
    G = Z @ B - A @ D.T
    G[2, 3] = torch.nan
    violation = cuda.descend(Z, G, B, kernels.inverse_diagonal(B), 3, 0.0)
    assert torch.isnan(violation).tolist() == [False, False, True, False]


def test_the_package_runs_without_triton() -> None:
    code = (
        "import sys; from core import NMF; import numpy as np; NMF(2, max_iter=2).fit(np.ones((4, 3)));"
        "print('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
