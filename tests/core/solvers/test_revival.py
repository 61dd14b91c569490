import torch

from core.chunks import Chunks
from core.progress import run
from core.solvers.revival import far_apart, revive
from tests.core.problems import planted


def problem(size: int) -> tuple[Chunks, torch.Tensor, torch.Tensor]:
    A, Z, D = (torch.from_numpy(x) for x in planted(100, 30, 6, noise=0))
    chunks = Chunks(A, 6)
    chunks.size = size
    run(chunks.survey())
    return chunks, Z, D.T.contiguous()


def test_revived_concepts_point_at_what_is_missing() -> None:
    chunks, Z, concepts = problem(size=9)
    missing = concepts[:, [1, 4]].clone()
    concepts[:, [1, 4]] = 0
    before = (chunks.A - Z @ concepts.T).norm()
    dead = torch.zeros(6, dtype=torch.bool)
    dead[[1, 4]] = True
    Z[:, [1, 4]] = 5
    assert run(revive(chunks, Z, concepts, dead))
    assert bool((Z[:, [1, 4]] == 0).all())
    torch.testing.assert_close((chunks.A - Z @ concepts.T).norm(), before)
    torch.testing.assert_close(concepts[:, [1, 4]].norm(dim=0), torch.ones(2))
    # the errors lie in the plane of the two that are missing, and the revived two span it
    both = torch.linalg.lstsq(missing, concepts[:, [1, 4]]).solution
    torch.testing.assert_close(missing @ both, concepts[:, [1, 4]], atol=1e-4, rtol=1e-3)
    assert abs(float(torch.linalg.det(both / both.norm(dim=0)))) > 1e-2


def test_nothing_is_revived_where_nothing_is_missing() -> None:
    _, Z, concepts = problem(size=100)
    Z[:, 0], concepts[:, 0] = 0, 0
    A = Z @ concepts.T
    exact = Chunks(A, 6)
    run(exact.survey())
    dead = torch.zeros(6, dtype=torch.bool)
    dead[0] = True
    assert not run(revive(exact, Z, concepts, dead))
    assert bool((concepts[:, 0] == 0).all())


def test_far_apart() -> None:
    rows = torch.tensor([[3.0, 0, 0], [2.9, 0.1, 0], [0, 2, 0], [1, 1, 0], [0, 0, 0.5]])
    torch.testing.assert_close(far_apart(rows, 3), rows[[0, 2, 4]])
    assert len(far_apart(rows, 5)) == 3  # no more than their rank
    assert len(far_apart(rows[:0], 2)) == 0
