"""Fits over several processes: each must equal that of one process on all the rows."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core import ProcessGroup
from core.errors import InvalidParameter
from core.metrics import measure_steps
from core.progress import run
from tests.core.on_ranks import CASES
from tests.core.ranks import told_by_ranks

ROOT = Path(__file__).parents[2]
Told = list[dict[str, Any]]


SIZES = 2, 3


@pytest.fixture(scope="module")
def told_by_size(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Told]:
    return told_by_ranks("tests.core.on_ranks", tmp_path_factory.mktemp("ranks"), *SIZES)


@pytest.fixture(scope="module", params=SIZES)
def told(request: pytest.FixtureRequest, told_by_size: dict[int, Told]) -> Told:
    """What each rank tells of its fits."""
    return told_by_size[request.param]


@cache
def alone(name: str) -> tuple[list[float], dict[str, Any]]:
    """Losses and metrics of one process."""
    case = CASES[name]
    A, model = case.activations(), case.model()
    Z, D = model.fit(A, **case.given(A))  # type: ignore[arg-type]
    return model.loss_history_, run(measure_steps(torch.from_numpy(A), Z, D)).metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_one_process(told: Told, name: str) -> None:
    losses, metrics = alone(name)
    # where the concepts explain all but this share of ‖A‖², rows in another order end as far apart in one process
    least = 1e-5 * float(np.square(CASES[name].activations().astype(np.float64)).sum())
    for of_rank in told:
        assert of_rank[name]["losses"][-1] == pytest.approx(losses[-1], rel=1e-4, abs=least)
        for figure in ("relative_error", "r2"):
            assert of_rank[name]["metrics"][figure] == pytest.approx(metrics[figure], rel=5e-3, abs=2e-3)
        assert of_rank[name]["metrics"]["l0_mean"] == pytest.approx(metrics["l0_mean"], rel=0.1)
    assert sum(of_rank[name]["rows"] for of_rank in told) == len(CASES[name].activations())


@pytest.mark.slow
def test_every_rank_has_the_same_dictionary_to_the_bit(told: Told) -> None:
    for name in CASES:
        for part in ("D", "losses", "metrics", "uses", "largest", "nearest", "cosines"):
            assert all(of_rank[name][part] == told[0][name][part] for of_rank in told), (name, part)


@pytest.mark.slow
def test_the_figures_of_concepts_are_of_the_rows_of_all(told: Told) -> None:
    for name in CASES:
        alive = np.any(told[0][name]["D"], axis=1)
        own = [of_rank[name]["own"] for of_rank in told]
        uses, largest = np.sum([of["uses"] for of in own], axis=0), np.max([of["largest"] for of in own], axis=0)
        np.testing.assert_array_equal(told[0][name]["uses"], uses * alive)
        np.testing.assert_allclose(told[0][name]["largest"], largest * alive, rtol=1e-5)
        assert [of_rank[name]["other figures"] for of_rank in told] == [[]] * len(told), name


@pytest.mark.slow
def test_an_iteration_exchanges_as_much_however_many_rows_there_are(told: Told) -> None:
    k, d = 8, 60
    for of_rank in told:
        few, many = of_rank["exchanged"]
        assert few == many
        assert k * (k + d) < many < k * (k + d) + k * d + 20


@pytest.mark.slow
def test_what_is_wrong_on_one_rank_is_told_by_all(told: Told) -> None:
    for of_rank in told:
        assert of_rank["NaN"].startswith("NotFinite: activations hold 1 NaN or infinite value")
        assert of_rank["NaN"].endswith("(among the rows of rank 1)")
        assert of_rank["NaN in Z"].startswith("NotFinite: codes hold ")
        assert of_rank["NaN in Z"].endswith("(among the rows of rank 1)")
        assert of_rank["another width of Z"].startswith("WrongShape: codes have ")
        assert "nb_concepts is 9 on rank 1 and 8 on rank 0" in of_rank["another k"]
        assert of_rank["no max_iter"].startswith("InvalidParameter: max_iter is 0; it must be")
        assert of_rank["no max_iter"].endswith("(on rank 1)")
        assert of_rank["a state and D"].startswith("InvalidParameter: state is given along with Z or D")
        assert of_rank["no state"].startswith("InvalidParameter: the state lacks 'Z'")
        assert of_rank["a state of others"].startswith("InvalidParameter: the state's energy is ")
        assert of_rank["a state with NaN"].startswith("InvalidParameter: the state holds negative, NaN or infinite")


@pytest.mark.slow
def test_a_callback_on_one_rank_ends_the_fit_of_all(told: Told) -> None:
    assert [of_rank["stopped by rank 1"] for of_rank in told] == [3] * len(told)


def test_a_group_must_have_been_made() -> None:
    with pytest.raises(InvalidParameter, match="init_process_group"):
        ProcessGroup()
