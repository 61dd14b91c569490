import numpy as np
import pytest
import torch
from scipy import sparse

from core.chunks import MOST_SUMMED, Chunks, add_cross_product
from core.progress import run
from core.solvers import hals
from core.solvers.alternating import loss_from, update_codes
from core.sparse import SparseRows


@pytest.mark.parametrize("n", [0, 1, 7, MOST_SUMMED, MOST_SUMMED + 1, 3 * MOST_SUMMED + 5])
def test_a_cross_product_is_added(n: int) -> None:
    rows, Y = torch.rand(n, 6), torch.rand(n, 3)
    to = torch.rand(6, 3, dtype=torch.float64)
    expected = to + rows.double().T @ Y.double()
    add_cross_product(rows, Y, to)
    torch.testing.assert_close(to, expected, rtol=5e-6, atol=0)


@pytest.mark.parametrize("width", [6, 4000], ids=["", "narrow"])
def test_so_is_that_of_sparse_rows(width: int) -> None:
    rows = np.zeros((50, width), np.float32)
    rows[:, :6] = np.random.default_rng(0).random((50, 6)) * (np.arange(50)[:, None] % 3 == 0)
    block, Y, to = SparseRows(sparse.csr_array(rows), torch.device("cpu")), torch.rand(50, 3), torch.zeros(width, 3)
    assert block.is_narrow == (width == 4000)
    add_cross_product(block, Y, to := to.double())
    torch.testing.assert_close(to, torch.from_numpy(rows).double().T @ Y.double(), rtol=1e-6, atol=0)


def test_the_loss_of_many_thin_rows_is_told_from_their_products() -> None:
    """All of them are one chunk, over which sums in float32 throughout would be off by 1e-5 of themselves."""
    n, d, k = 100_000, 16, 4
    A = torch.rand(n, k) ** 4 @ torch.rand(k, d) + 0.01 * torch.rand(n, d)
    chunks, Z, concepts = Chunks(A, k), torch.rand(n, k), torch.rand(d, k)
    assert chunks.size > n
    run(chunks.survey())
    statistics = run(update_codes(hals.CODES, chunks, Z, concepts))
    loss = loss_from(statistics, concepts, concepts.T @ concepts, chunks.energy)
    direct = 0.5 * float((A.double() - Z.double() @ concepts.double().T).square().sum())
    assert loss == pytest.approx(direct, abs=5e-7 * chunks.energy)
