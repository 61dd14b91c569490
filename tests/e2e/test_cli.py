"""The command line against a real service, as scripts use it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from app.cli import main
from demo.digits import split_digits
from tests.e2e.conftest import Service

FITTED, HELD_OUT = split_digits()
ROOT = Path(__file__).parents[2]
LONG = "--name long --nb-concepts 64 --solver mu --tol 0 --max-iter 100000"  # hals settles within seconds


@pytest.fixture
def folder(tmp_path: Path, shared: Service, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with activations in it; commands run there, against the shared service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DICTSERVE_URL", shared.url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    np.save(tmp_path / "A.npy", FITTED)
    np.save(tmp_path / "B.npy", HELD_OUT)
    return tmp_path


def run(folder: Path, line: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A line of shell, ``dictserve`` being this interpreter's."""
    line = re.sub(r"\bdictserve\b", f"{sys.executable} -m app", line)
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    return ended


def call(arguments: str, code: int = 0, input: bytes = b"") -> Result:
    """A command in this process: to begin one of its own, as `run` does, takes longer than most of them."""
    result = CliRunner().invoke(main, arguments, input=input)
    assert result.exit_code == code, result.output
    return result


def test_a_dictionary_from_first_to_last(folder: Path) -> None:
    fitted = run(folder, "dictserve fit A.npy --name digits --nb-concepts 16 --seed 1")
    assert fitted.stdout == "digits@1\n"
    assert re.search(r"digits: iteration [1-9]\d*/500 loss .*\n\Z", fitted.stderr)  # where it ended, however fast

    run(folder, "dictserve encode digits - < B.npy | dictserve decode digits - -o back.npy")
    back = np.load(folder / "back.npy")
    assert back.shape == HELD_OUT.shape
    assert np.linalg.norm(HELD_OUT - back) < 0.8 * np.linalg.norm(HELD_OUT)
    run(folder, "dictserve encode digits B.npy --format csv | dictserve decode digits - --format json > back.json")
    rows = json.loads((folder / "back.json").read_text())["activations"]
    np.testing.assert_allclose(rows, back, rtol=1e-3, atol=1e-4)
    call("encode digits@1 B.npy -o Z.safetensors --top-k 3 --reconstruct")
    for form in ("safetensors", "json"):
        encoded = call(f"encode digits B.npy --sparse --format {form}")
        call("decode digits - -o sparse.npy", input=encoded.stdout_bytes)
        np.testing.assert_allclose(np.load(folder / "sparse.npy"), back, rtol=1e-3, atol=1e-4)
    call("decode digits Z.safetensors -o top.npy")
    assert 0.1 < np.linalg.norm(np.load(folder / "top.npy")) / np.linalg.norm(back) < 1
    call("encode digits B.npy -o Z.json")
    call("decode digits Z.json -o again.npy")
    np.testing.assert_allclose(np.load(folder / "again.npy"), back, rtol=1e-3, atol=1e-4)

    call("export digits@1 -o D.npy")
    assert call("import digits D.npy").stdout == "digits@2\n"
    piped = call("export digits").stdout_bytes
    np.testing.assert_array_equal(np.load(io.BytesIO(piped)), np.load(folder / "D.npy"))

    assert "digits@2" in call("ls").stdout
    assert json.loads(call("ls --json").stdout)[0]["version"] == 2
    shown = run(folder, "dictserve show digits@1").stdout  # to a pipe, in whatever encoding
    assert "relative_error" in shown
    assert "█" in shown
    for told in ("duplicates", "near_dense_concepts", "worst features (r2)", "energy", "largest"):
        assert told in shown
    assert json.loads(call("show digits@1 --json").stdout)["nb_concepts"] == 16
    of_one = call("show digits@1 --concept 3").stdout
    for told in ("norm", "uses", "codes", "row", "nearest", "together"):
        assert re.search(rf"^{told} ", of_one, re.MULTILINE), of_one
    assert json.loads(call("show digits@1 --concept 3 --json").stdout)["concept"] == 3
    call("show digits@1 --concept 16", code=3)
    compared = call("compare digits@1 digits@2").stdout
    assert re.search(r"^stability +1", compared, re.MULTILINE), compared
    assert compared.count("best: ") == compared.count("worst: ") == 1
    assert len(json.loads(call("compare digits@1 digits@2 --json").stdout)["matches"]) == 16
    assert "succeeded" in call("jobs --name digits").stdout
    job = json.loads(call("jobs --name digits --json").stdout)[0]["id"]
    assert re.search(r"^state +succeeded", call(f"jobs {job}").stdout, re.MULTILINE)
    assert call(f"jobs {job} --wait").stdout == "digits@1\n"
    assert json.loads(call(f"jobs {job} --json").stdout)["id"] == job
    assert call("label digits@2 task=vision --concept 3=edges").stdout == "digits@2\n"
    labelled = json.loads(call("show digits@2 --json").stdout)
    assert (labelled["labels"], labelled["concept_labels"]) == ({"task": "vision"}, {"3": "edges"})
    call("label digits@2 task= --concept 3=")
    assert json.loads(call("show digits@2 --json").stdout)["labels"] == {}

    assert "Remove digits@2?" in run(folder, "echo n | dictserve rm digits@2", code=1).stderr
    call("rm digits@2 --yes")
    call("rm digits", input=b"y\n")
    call("show digits", code=3)


def test_jobs_that_are_not_waited_for(folder: Path) -> None:
    id = call(f"fit A.npy {LONG} --no-wait").stdout.strip()
    assert re.search(r"^state +(queued|running)", call(f"jobs {id}").stdout, re.MULTILINE)
    assert call(f"cancel {id}").stdout == "cancelled\n"
    assert json.loads(call("jobs --state cancelled --json").stdout)[0]["id"] == id


def test_what_the_service_refuses_is_1_and_what_is_not_there_3(folder: Path) -> None:
    refused = run(folder, "dictserve fit A.npy --name bad/name --nb-concepts 4", code=1)
    assert refused.stderr.startswith("dictserve: name: 'bad/name' is not a name")
    call("fit A.npy --name x --nb-concepts 4 --solver nonsense", code=1)
    for line in ("encode absent A.npy", "show absent", "rm absent --yes", "cancel absent", "export absent@3"):
        ended = call(line, code=3)
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1


def test_an_interrupt_is_130_and_says_that_the_job_goes_on(folder: Path) -> None:
    arguments = ["fit", "A.npy", *LONG.split()]
    fit = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    assert fit.stderr is not None
    assert "iteration" in fit.stderr.readline()
    time.sleep(0.2)
    fit.send_signal(signal.SIGINT)
    told = fit.stderr.read()
    assert fit.wait(20) == 130
    command = re.search(r"`(dictserve cancel \w+)`", told)
    assert command is not None, told
    assert call(command[1].removeprefix("dictserve ")).stdout == "cancelled\n"


def test_settings_are_printed_without_a_service(folder: Path) -> None:
    assert "DICTSERVE_PORT" in call("settings").stdout
