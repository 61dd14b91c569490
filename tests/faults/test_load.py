"""Short ones of the long runs of tests/faults/load, which `make slow`, `make load` and `make soak` go on with."""

from collections.abc import Iterator

import pytest

from benchmarks.figures import Figure, Result
from tests.e2e.conftest import Service
from tests.faults.load import report, saturate, soak, trickle

SLACK_MS = 20.0  # on a machine that does other things too


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has little patience and a short queue."""
    bounds = {"DICTSERVE_HEADER_SECONDS": "1", "DICTSERVE_TRANSFER_SECONDS": "1.5"}
    service = Service(tmp_path_factory.mktemp("load") / "models", **bounds, **saturate.SETTINGS).start()
    yield service
    assert "Traceback" not in service.log.read_text()
    assert service.stop() == 0


def missed(result: Result, *but: str) -> list[Figure]:
    """The figures that miss their goals, but for those named."""
    return [f for f in result.figures if f.verdict == "missed" and not any(part in f.name for part in but)]


def test_slow_connections_cost_others_little(bounded: Service) -> None:
    result = trickle.run(bounded, slow=200, rest_seconds=0.7, held_seconds=2.2, pause_seconds=0.2)
    assert missed(result, "p99") == []  # of some hundreds of encodes that is chance
    (table,) = result.tables
    p50 = table.columns.index("p50 (ms)")
    alone, beside = (row[p50] for row in table.rows)
    assert beside <= trickle.MOST_TIMES_SLOWER * alone + SLACK_MS, table  # type: ignore[operator]


def test_more_than_is_solved_is_refused_and_the_rest_is_right(bounded: Service) -> None:
    result = saturate.run(bounded, clients=100, seconds=2.5)
    assert missed(result, "memory") == []


def test_nothing_is_left_of_many_requests_and_fits(bounded: Service) -> None:
    result = soak.run(bounded, requests=1000, fits=12)
    assert missed(result, "memory of") == []


def test_the_page_tells_the_figures_that_are_kept() -> None:
    told = report.PAGE.read_text()
    assert report.page(told) == told
