"""The benchmarks run, with no peer installed too, and the page on performance is what their figures make it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import report
from benchmarks.cases import NAMES
from benchmarks.figures import Figure, Result, Table, number
from benchmarks.measure import dead_concepts, excess, loss_of, relative_error, row_losses

ROOT = Path(__file__).parent.parent


def test_the_page_is_made_from_the_committed_figures() -> None:
    page = report.PAGE.read_text()
    assert report.page(page, report.read()) == page, "run python -m benchmarks.report"


def test_the_committed_figures_say_where_they_come_from() -> None:
    for name, told in json.loads(report.RESULTS.read_text()).items():
        assert name in NAMES
        made = told["made"]
        assert made["command"] == f"python -m benchmarks {name}"
        assert made["cores"] >= 1
        assert made["date"]
        assert {"torch", "numpy", "scikit-learn"} <= made["versions"].keys()
        for figure in told["figures"]:
            assert figure["value"] is not None or figure["note"], figure["name"]


@pytest.mark.slow
def test_a_quick_run_answers_every_question(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    before = report.RESULTS.read_text()
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr
    assert report.RESULTS.read_text() == before
    results = {name: Result.from_json(told) for name, told in json.loads(output.read_text()).items()}
    assert tuple(results) == NAMES
    assert "| goal |" in report.report(results)
    ours = [f for result in results.values() for f in result.figures if "faster" not in f.name]
    assert [f.name for f in ours if f.value is None and "UnknownSolver" not in f.note] == []
    libraries = results["fit"].made["libraries"]
    assert set(libraries) == {"dictserve", "scikit-learn", "overcomplete", "torchnmf", "nmf-torch"}
    for told in libraries.values():
        assert told[0].isdigit() or told.startswith("absent (")


def test_an_unknown_case_is_refused_with_those_there_are() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonsense"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2
    assert "nonsense" in run.stderr
    assert all(name in run.stderr for name in NAMES)


def test_verdicts() -> None:
    assert Figure("x", 9, "×", at_least=8).verdict == "met"
    assert Figure("x", 7, "×", at_least=8).verdict == "missed"
    assert Figure("x", 7, "×", at_least=8, lower_bound=True).verdict == "open"
    assert Figure("x", 9, "×", at_least=8, lower_bound=True).shown == "≥ 9×"
    assert Figure("x", 2, at_most=1).verdict == "missed"
    assert Figure("x", None, at_most=1).verdict == "not measured"
    assert Figure("x", 3).verdict == "stated"


def test_numbers() -> None:
    assert [number(x) for x in (0, 1.2345, 123.4, 0.0123, 1e-7, 2e6)] == [
        "0", "1.23", "123", "0.0123", "1.0e-07", "2.0e+06",
    ]  # fmt: skip


def test_results_survive_json() -> None:
    result = Result([Figure("x", 1.5, at_most=2)], [Table("t", ["a"], [[1], [None], ["b"]])], {"date": "today"})
    assert Result.from_json(json.loads(json.dumps(result.as_json()))) == result


def test_measures() -> None:
    A = np.array([[1, 2], [3, 4]], np.float32)
    Z, D = np.array([[1, 0], [1, 0]], np.float32), np.array([[1, 2], [5, 5]], np.float32)
    assert loss_of(A, Z, D) == 4
    assert row_losses(A, Z, D).tolist() == [0, 4]
    assert relative_error(4, A) == pytest.approx((8 / 30) ** 0.5)
    assert dead_concepts(Z, D) == 1
    np.testing.assert_allclose(excess(np.array([1.0, 2.0]), np.array([0.0, 1.0]), A), [1 / 0.005, 1])
