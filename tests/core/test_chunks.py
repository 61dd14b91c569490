import numpy as np
import pytest
import torch
from scipy import sparse

from core.chunks import Chunks, even, slices
from core.progress import run
from core.solvers import hals
from core.solvers.alternating import ERRORS_AT_ONCE, direct_loss, in_turn
from core.sparse import SparseRows
from core.statistics import FEW_COLUMNS, FEW_SUMMED, MOST_SUMMED, add_cross_product


@pytest.mark.parametrize("n", [0, 1, 7, FEW_SUMMED, FEW_SUMMED + 1, 3 * FEW_SUMMED + 5, 2 * MOST_SUMMED + 5])
@pytest.mark.parametrize(("d", "k"), [(6, 3), (6, FEW_COLUMNS), (128, 32)], ids=["few columns", "small", "large"])
def test_a_cross_product_is_added(n: int, d: int, k: int) -> None:
    rows, Y = torch.rand(n, d), torch.rand(n, k)
    to = torch.rand(d, k, dtype=torch.float64)
    expected = to + rows.double().T @ Y.double()
    add_cross_product(rows, Y, to)
    torch.testing.assert_close(to, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize(("total", "most", "size"), [(10, 4, 4), (10, 9, 5), (9, 9, 9), (1, 9, 1), (0, 9, 1)])
def test_pieces_are_of_equal_size(total: int, most: int, size: int) -> None:
    assert even(total, most) == size
    assert len([*slices(total, size)]) == -(-total // most)


@pytest.mark.parametrize("width", [6, 4000], ids=["", "narrow"])
def test_so_is_that_of_sparse_rows(width: int) -> None:
    rows = np.zeros((50, width), np.float32)
    rows[:, :6] = np.random.default_rng(0).random((50, 6)) * (np.arange(50)[:, None] % 3 == 0)
    block, Y, to = SparseRows(sparse.csr_array(rows), torch.device("cpu")), torch.rand(50, 3), torch.zeros(width, 3)
    assert block.is_mostly_zero_columns == (width == 4000)
    add_cross_product(block, Y, to := to.double())
    torch.testing.assert_close(to, torch.from_numpy(rows).double().T @ Y.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("n", "d", "k"),
    [(100_000, 16, 4), (8000, 1, 1), (4000, 2, 1), (4096, 2048, 2), (3000, 8, 2), (2500, 300, 40), (64, 20_000, 16)],
)
def test_the_loss_is_told_from_products(n: int, d: int, k: int) -> None:
    """Each A is one chunk. Of thin rows sums in float32 throughout would be off by up to 1e-5 of themselves."""
    A = torch.rand(n, k) ** 4 @ torch.rand(k, d) + 0.001 * torch.rand(n, d)
    chunks, Z, concepts = Chunks(A, k), torch.rand(n, k), torch.rand(d, k)
    assert chunks.size == n
    run(chunks.survey())
    for _ in range(3):
        done = run(in_turn(hals.CODES, hals.CONCEPTS, chunks, Z, concepts))
        concepts = done.concepts
        direct = 0.5 * float((A.double() - Z.double() @ concepts.double().T).square().sum())
        assert done.loss == pytest.approx(direct, abs=5e-7 * chunks.energy)


@pytest.mark.parametrize(("n", "d"), [(3000, 2000), (7, 3), (2, 1 + ERRORS_AT_ONCE)])
def test_the_loss_is_taken_from_errors_of_some_rows_at_a_time(n: int, d: int) -> None:
    A, Z, concepts = torch.rand(n, d), torch.rand(n, 2), torch.rand(d, 2)
    expected = 0.5 * float((A.double() - Z.double() @ concepts.double().T).square().sum())
    run((chunks := Chunks(A, 2)).survey())
    assert run(direct_loss(chunks, Z, concepts)) == pytest.approx(expected, rel=1e-6)
