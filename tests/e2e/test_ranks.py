"""Fits over several processes: from the service, and by torchrun without it. A rank that dies holds up nothing."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
import pytest
from safetensors.numpy import load_file

import app.distributed
from app.errors import StoreUnavailable
from demo.digits import split_digits
from demo.service import free_port, npy
from tests.e2e.conftest import Service, until_gone
from tests.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).parents[2]
FITTED, _ = split_digits()
NOISE = np.random.default_rng(0).random((3000, 300), np.float32)
ENDLESS = {
    "solver": "mu",
    "nb_concepts": 200,
    "tol": 0,
    "max_iter": 100_000,
}  # of noise: it does not settle for minutes
WITHIN_SECONDS = 30.0
T = TypeVar("T")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    store = tmp_path_factory.mktemp("ranks") / "models"
    service = Service(store, DICTSERVE_MAX_RANKS="2", DICTSERVE_CHECKPOINT_INTERVAL_SECONDS="0.2").start()
    yield service
    service.stop()


def process_of(parent: int, *words: str) -> int | None:
    """The descendant of a process whose command line or environment has these words."""
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            told = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
        except OSError:  # no process, or gone meanwhile
            continue
        is_meant = all(b"\0" + word.encode() + b"\0" in b"\0" + told + b"\0" for word in words)
        if is_meant and int(status[1]) == parent and status[0] != "Z":
            return int(entry.name)
    return None


def rank_of(service: Service, rank: int) -> int:
    return until(lambda: process_of(service.pid, "app.worker", str(rank), "2"))


def is_fitting(service: Service) -> bool:
    (worker,) = service.client.get("/readyz").json()["workers"]
    return bool(worker["is_fitting"])


def beyond(service: Service, job: str, iteration: int) -> dict | None:  # type: ignore[type-arg]
    told = service.job(job)
    assert told["state"] in ("queued", "running"), told
    return told if told["progress"]["iteration"] > iteration else None


@pytest.mark.slow
def test_a_fit_on_two_ranks_is_that_of_one(service: Service) -> None:
    losses = []
    for ranks in (1, 2):
        job = service.ended(service.fit(FITTED, name="digits", nb_concepts=32, max_iter=30, ranks=ranks))
        assert job["state"] == "succeeded", job
        assert job["parameters"]["ranks"] == ranks
        losses.append(job["progress"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    two = service.client.get("/dictionaries/digits@2").json()
    one = service.client.get("/dictionaries/digits@1").json()
    assert two["metrics"]["relative_error"] == pytest.approx(one["metrics"]["relative_error"], rel=1e-4)
    assert len(two["loss_history"]) == len(one["loss_history"]) == 30
    told = service.client.get("/dictionaries/digits@2/concepts/0").json()
    assert told["rows"] == len(FITTED) >= told["uses"] > 0 < told["largest"]
    assert sum(told["histogram"]) == told["uses"]
    row = told["top_rows"][0]["row"]
    assert told["top_rows"][0]["code"] == pytest.approx(told["largest"])
    codes = service.client.post("/encode?dictionary=digits@2", content=npy(FITTED[row : row + 1]))
    assert np.load(io.BytesIO(codes.content))[0, 0] == pytest.approx(told["largest"], rel=0.1)
    assert len(told["together"]) == 10


@pytest.mark.slow
def test_a_killed_rank_has_the_job_go_on_from_its_dictionary(service: Service) -> None:
    id = service.fit(NOISE, name="slow", **ENDLESS, ranks=2)
    until(lambda: beyond(service, id, 20))
    first, second = rank_of(service, 0), rank_of(service, 1)
    until(lambda: service.checkpoint(id))
    os.kill(second, signal.SIGKILL)
    resumed = until(lambda: told if (told := service.job(id))["attempts"] == 2 else None, WITHIN_SECONDS)
    assert resumed["state"] in ("queued", "running")
    until_gone(first)
    told = until(lambda: told if (told := service.job(id))["resumed_from"] else None)
    kept = [loss for iteration, loss in told["loss_history"] if iteration <= told["resumed_from"]][-1]
    later = until(lambda: told if (told := service.job(id))["progress"]["loss"] < kept else None)
    assert later["progress"]["iteration"] > told["resumed_from"] > 0
    assert [i for i, _ in later["loss_history"]] == sorted({i for i, _ in later["loss_history"]})
    ranks = [rank_of(service, rank) for rank in (0, 1)]
    assert is_fitting(service)
    assert service.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    for pid in ranks:
        until_gone(pid)
    until(lambda: not is_fitting(service))


@pytest.mark.slow
def test_more_ranks_than_are_allowed_are_refused(service: Service) -> None:
    answer = service.client.post("/fit", json={"name": "a", "nb_concepts": 1, "data": [[1, 2]], "ranks": 3})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"loc": ["ranks"], "msg": "at most 2 (DICTSERVE_MAX_RANKS of the service)"}]


@pytest.mark.slow
def test_wrong_parameters_that_only_a_rank_can_see_fail_the_job(service: Service) -> None:
    """A start from a dictionary that is gone by then."""
    weights = np.abs(FITTED[:32])
    service.client.put("/dictionaries/start", json={"data": weights.tolist()}).raise_for_status()
    slow = service.fit(NOISE, name="holds-up", **ENDLESS)
    id = service.fit(FITTED, name="late", nb_concepts=32, init="start", ranks=2)
    assert service.client.delete("/dictionaries/start").status_code == 204
    service.client.delete(f"/jobs/{slow}").raise_for_status()
    job = service.ended(id)
    assert job["state"] == "failed"
    assert job["error"]["type"] == "unknown-dictionary"


# -- without the service ----------------------------------------------------------------------------------


def distributed(*told: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*command, "-m", "app.distributed", *told],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", FITTED)
    return tmp_path / "a.npy"


@pytest.mark.slow
def test_torchrun_writes_the_dictionary_into_a_store(data: Path, tmp_path: Path) -> None:
    told = ("--data", str(data), "--nb-concepts", "16", "--max-iter", "20")
    run = distributed(*told, "--store", str(tmp_path / "models"), "--name", "digits")
    out, said = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 0, said
    record = json.loads(out)
    assert (record["dictionary"], record["ranks"], record["iterations"]) == ("digits@1", 2, 20)
    assert "iteration 20/20: loss" in said
    directory = tmp_path / "models" / "digits" / "1"
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["metrics"]["relative_error"] == record["metrics"]["relative_error"] < 0.5
    assert meta["software"].keys() == {"dictserve", "numba", "numpy", "torch"}  # as the service tells it
    assert None not in meta["parameters"].values()
    assert load_file(directory / "dictionary.safetensors")["dictionary"].shape == (16, FITTED.shape[1])


@pytest.mark.slow
def test_ranks_whose_files_differ_fit_nothing(data: Path, tmp_path: Path) -> None:
    np.save(fewer := tmp_path / "fewer.npy", FITTED[:-10])
    command = [sys.executable, "-m", "app.distributed", "--nb-concepts", "2"]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    runs = [
        subprocess.Popen(
            [*command, "--data", str(path), "--output", str(tmp_path / "d.safetensors")],
            cwd=ROOT,
            env=os.environ | meeting | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, path in enumerate((data, fewer))
    ]
    said = [run.communicate(timeout=PATIENCE_SECONDS)[1] for run in runs]
    assert [run.returncode for run in runs] == [1, 1], said
    told = f"rows is {len(FITTED) - 10} on rank 1 and {len(FITTED)} on rank 0; it must be the same on all"
    assert said == [f"app.distributed: rank 0: {told}\n", ""]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "x"}, "rank 0: RANK: 'x' of WORLD_SIZE '1' is no rank; torchrun sets both"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: '2' of WORLD_SIZE '2' is no rank"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_RANK: '0' of LOCAL_WORLD_SIZE '0' is no rank"),
        ({"WORLD_SIZE": "2"}, "rank 0: rank 0 of 2, as torchrun would start it, meets no others: .*MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "abc"}, "meets no others: .*abc"),
    ],
)
def test_what_torchrun_would_have_set_is_told(
    data: Path, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    """In a line."""
    command = [sys.executable, "-m", "app.distributed", "--data", str(data), "--nb-concepts", "2"]
    run = subprocess.run(
        [*command, "--output", str(tmp_path / "d")],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert re.search(said, line), line


@pytest.mark.slow
def test_torchrun_ends_when_a_rank_is_killed(tmp_path: Path) -> None:
    data, output = tmp_path / "noise.npy", tmp_path / "d.safetensors"
    np.save(data, NOISE)
    told = ["--data", str(data), *(f"--{name.replace('_', '-')}={value}" for name, value in ENDLESS.items())]
    run = distributed(*told, "--output", str(output))
    assert run.stderr is not None
    while "loss" not in (line := run.stderr.readline()):
        assert line, "it has ended"
    ranks = [until(lambda rank=rank: process_of(run.pid, f"RANK={rank}")) for rank in (0, 1)]
    os.kill(ranks[1], signal.SIGKILL)
    run.communicate(timeout=WITHIN_SECONDS)
    assert run.returncode != 0
    until_gone(ranks[0])
    assert not output.exists()


def test_a_place_that_cannot_be_written_is_told_before_the_fit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process, which costs most of a second, of the first of them."""

    def end(rank: int, told: str) -> NoReturn:
        raise SystemExit(told)

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "taken").write_text("")
    places = [
        (["--output", str(tmp_path / "none" / "d.safetensors")], "No such file or directory"),
        (["--output", str(tmp_path)], "Is a directory"),
        (["--store", str(tmp_path / "models"), "--name", "taken"], "'taken' that is no dictionary"),
    ]
    arguments = ["--data", str(data), "--nb-concepts", "4"]
    command = [sys.executable, "-m", "app.distributed", *arguments, *places[0][0]]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=os.environ | {"RANK": "0"}
    )
    assert run.returncode == 1
    assert places[0][1] in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    monkeypatch.setattr(app.distributed, "_end", end)
    monkeypatch.setenv("RANK", "0")
    for place, why in places:
        monkeypatch.setattr(sys, "argv", ["app.distributed", *arguments, *place])
        with pytest.raises(SystemExit) as ended:
            app.distributed.main()
        (line,) = str(ended.value).splitlines()
        assert why in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "models"]


def test_a_dictionary_waits_for_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app.distributed, "AGAIN_SECONDS", 0.0)
    failures = [StoreUnavailable("away"), OSError(errno.ENOSPC, "No space left on device")]

    def write() -> str:
        if failures:
            raise failures.pop()
        return "written"

    assert app.distributed._reached(write) == "written"
    said = capsys.readouterr().err
    assert said.count("the dictionary waits for its place: ") == 2
    monkeypatch.setattr(app.distributed, "REACH_SECONDS", -1.0)
    failures.append(StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable):
        app.distributed._reached(write)
