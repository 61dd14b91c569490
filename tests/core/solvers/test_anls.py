import numpy as np
import pytest
import torch

from core.errors import OutOfRange
from core.solvers import anls
from tests.core.problems import excess, planted

SINGULAR = {
    "regular": lambda D: D,
    "repeated concepts": lambda D: np.concatenate([D, D[:4], 2 * D[:4]]),
    "sums of concepts": lambda D: np.concatenate([D, D[:3] + D[3:6]]),
    "zero concepts": lambda D: np.concatenate([D, 0 * D[:2]]),
    "more concepts than features": lambda D: np.ascontiguousarray(D[:, :5]),
    "concepts of any size": lambda D: D * np.float32(10.0) ** np.arange(-4, 4, dtype=np.float32)[:, None],
    "one concept": lambda D: D[:1],
}


@pytest.mark.parametrize("dictionary", SINGULAR.values(), ids=SINGULAR)
def test_a_step_is_exact_least_squares(dictionary) -> None:
    """Whatever the codes before, and whether or not the gram is singular."""
    A, _, D = planted(40, 30, 8)
    D = dictionary(D)
    A = A[:, : D.shape[1]]
    codes = torch.rand(len(A), len(D), generator=torch.Generator().manual_seed(0))
    anls.exact(torch.from_numpy(D @ D.T))(codes, torch.from_numpy(A @ D.T))
    assert excess(A, codes, D).max() < 1e-5


@pytest.mark.parametrize("dictionary", SINGULAR.values(), ids=SINGULAR)
def test_the_factor_gives_the_gram_to_rounding(dictionary) -> None:
    D = dictionary(planted(1, 30, 8)[2])
    B = D @ D.T
    norms = np.sqrt(np.diag(B))
    L = anls.factor(torch.from_numpy(B)).double().numpy()
    used = norms > 0
    relative = (L @ L.T - B)[used][:, used] / np.outer(norms, norms)[used][:, used]
    assert np.abs(relative).max() < 2e-6
    assert np.isfinite(L).all()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gram_that_is_not_finite_is_refused(value: float) -> None:
    B = torch.eye(4)
    B[1, 2] = B[2, 1] = value
    with pytest.raises(OutOfRange, match="exceed float32"):
        anls.factor(B)
