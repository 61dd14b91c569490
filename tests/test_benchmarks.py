"""The benchmarks run, with no peer installed too, and the page on performance is what their figures make it."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import gpu, report
from benchmarks.cases import NAMES, OF_THE_CORE, OF_THE_SERVICE
from benchmarks.figures import Figure, Result, Table, number
from benchmarks.measure import dead_concepts, excess, loss_of, relative_error, row_losses
from benchmarks.process import Failed
from benchmarks.service.client import closed_loop, exchange
from benchmarks.service.ways import ECHO, FASTAPI, WAYS
from tests.wire import request

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.stem)
def test_the_pages_are_made_from_the_committed_figures(path: Path) -> None:
    assert report.page(path, report.read()) == path.read_text(), "run python -m benchmarks.report"


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_figures_say_where_they_come_from(name: str) -> None:
    told = report.read()[name]
    assert told.made["command"] == f"python -m benchmarks {name}"
    assert told.made["cores"] >= 1
    assert told.made["date"]
    assert {"torch", "numpy", "scikit-learn"} <= told.made["versions"].keys()
    for figure in told.figures:
        assert figure.value is not None or figure.note, figure.name


def test_each_file_holds_its_cases() -> None:
    assert tuple(json.loads(report.RESULTS.read_text())) == OF_THE_CORE
    assert tuple(json.loads(report.SERVICE.read_text())) == OF_THE_SERVICE


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """A quick run of all cases."""
    before = {path: path.read_text() for path in (report.RESULTS, report.SERVICE, *report.PAGES)}
    output = tmp_path_factory.mktemp("quick") / "results.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=650,
    )
    assert run.returncode == 0, run.stderr
    assert {path: path.read_text() for path in before} == before
    results = {name: Result.from_json(told) for name, told in json.loads(output.read_text()).items()}
    assert tuple(results) == NAMES
    assert "| goal |" in report.report(results)
    return results


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_quick_run_answers_every_question_of_the_core(quick: dict[str, Result]) -> None:
    ours = [f for name in OF_THE_CORE for f in quick[name].figures if "faster" not in f.name]
    assert [f.name for f in ours if f.value is None and "UnknownSolver" not in f.note] == []
    libraries = quick["fit"].made["libraries"]
    assert set(libraries) == {"dictserve", "scikit-learn", "overcomplete", "torchnmf", "nmf-torch"}
    for told in libraries.values():
        assert told[0].isdigit() or told.startswith("absent (")


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_quick_run_answers_every_question_of_the_service(quick: dict[str, Result]) -> None:
    figures = [f for name in OF_THE_SERVICE for f in quick[name].figures]
    assert [f.name for f in figures if f.value is None and not re.search("LitServe|MLServer", f.name)] == []
    assert all(f.verdict == "met" for f in figures if "largest difference" in f.name)
    libraries = quick["service"].made["libraries"]
    assert set(libraries) == {"dictserve", "uvicorn", "fastapi", "litserve", "mlserver"}
    for table in quick["service"].tables:
        assert [row[:2] for row in table.rows[1:]] == [[way.server, way.format] for way in WAYS]
        for server, _, p50, *_ in table.rows:
            assert not isinstance(p50, str) or (server not in ("none", ECHO, FASTAPI) and p50.startswith("absent: "))


@pytest.mark.slow
def test_a_quick_run_of_what_a_gpu_is_asked(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--device", "cpu", "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    told = json.loads(output.read_text())
    assert [name.partition(",")[0] for name in told] == ["made", "rates", *["encode"] * 4, "fit", "fit"]
    assert all(rate > 0 for rate in told["rates"].values())
    for name, figures in told.items():
        if name not in ("made", "rates"):
            assert figures["ratio"] > 0, name
            assert f"{name}: {json.dumps(figures)}" in run.stdout


def test_a_case_that_fails_on_a_gpu_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> dict[str, object]:
        raise RuntimeError("CUDA error")

    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "rates", lambda bench: {})
    monkeypatch.setattr(gpu, "cases", lambda bench: [("first", fails), ("second", lambda: {"ratio": 1})])
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--output", str(output)])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    told = json.loads(output.read_text())
    assert (told["first"], told["second"]) == ({"failed": "RuntimeError: CUDA error"}, {"ratio": 1})


def test_kernels_of_names_that_begin_alike_are_told_apart_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    alike = "void at::native::vectorized_elementwise_kernel<4, at::native::"
    microseconds = {alike + "CUDAFunctor_add<float>": 900.0, alike + "CUDAFunctor_mul<float>": 700.0, "choose": 500.0}
    microseconds |= {f"small {i}": 1.0 for i in range(20)}
    events = [SimpleNamespace(key=name, self_device_time_total=time) for name, time in microseconds.items()]
    profile = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: nullcontext(profile))
    bench = gpu.Bench(torch.device("cuda"), quick=True, deadline=0, output=None)
    monkeypatch.setattr(bench, "wait", lambda: None)
    of_kernels = gpu.by_kernel(bench, lambda: None)
    assert of_kernels.total() == pytest.approx(2.12)
    shown = gpu.largest(of_kernels)
    assert len(shown) == gpu.LARGEST + 1
    assert sum(shown.values()) == pytest.approx(2.12)
    assert list(shown)[:3] == [alike + "CUDAFunctor_a", alike + "CUDAFunctor_m", "choose"]


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


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the body that it was sent, and refuses an empty one."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if body else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of a server that echoes."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_the_load_counts_whole_answers(echo: int, size: int) -> None:
    assert exchange(echo, request("POST", "/", b"a" * size), limit_seconds=10).body == b"a" * size
    load = closed_loop(echo, [request("POST", "/", b"a" * size)] * 3, seconds=0.2, limit_seconds=10)
    assert len(load.ms) >= 3
    assert load.seconds >= 0.2
    assert load.per_second == pytest.approx(len(load.ms) / load.seconds)
    assert 0 < load.percentile(50) <= load.percentile(99)


def test_the_load_ends_at_an_error(echo: int) -> None:
    with pytest.raises(Failed, match="400"):
        closed_loop(echo, [request("POST", "/", b"")], seconds=0.2, limit_seconds=10)


def test_every_format_is_asked_for_on_one_line_a_header() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    for way in WAYS:
        head, _, body = way.request(80, "digits", rows).partition(b"\r\n\r\n")
        assert head.startswith(b"POST /")
        assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
