"""A rank that has lost another ends untold: the job goes on with new ranks, and nobody's request was wrong."""

import socket
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import app.distributed
import core
from app.errors import KINDS, WorkerFailed, error_by_name, kind_of
from app.settings import Settings
from app.store.checkpoints import Checkpoints
from app.store.object_store import ObjectStore
from app.store.shared_files import SharedFiles
from app.store.store import Store
from app.worker import frames, launch, ranked
from app.worker.messages import CheckpointPlace, Configure, Fit
from app.worker.watch import EXIT_CODE
from core import ProcessGroup
from core.errors import CoreError, InvalidParameter, OutOfRange, RankLost
from core.ranks import Ranks

import torch  # isort: skip


class Ended(Exception):
    pass


@pytest.mark.parametrize(
    ("told", "ranks", "devices"),
    [
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda:2,cuda:3", 2, ["cuda:2", "cuda:3"]),
        ("cuda:1", 2, ["cpu", "cpu"]),  # no GPU that is not named
        ("auto", 5, 5 * ["cpu"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_ranks_have_the_gpus_that_are_named(
    told: str, ranks: int, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert [str(ranked.device_of(told, rank, ranks)) for rank in range(ranks)] == devices


@pytest.mark.parametrize("error", [*core.errors.__dict__, *(cls.__name__ for cls in KINDS), "Unheard"])
def test_whatever_a_worker_tells_is_an_error(error: str) -> None:
    assert isinstance(error_by_name(error, "why"), Exception)


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The service's end and a rank's, which has been told of a fit."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(ranked.os, "_exit", end)
    monkeypatch.setattr(ranked.core.threads, "limit_to_share_of_cores", lambda among: None)
    np.zeros((4, 2), np.float32).tofile(tmp_path / "a")
    ours, theirs = launch.channel()
    with ours, theirs:
        settings = Settings(store=tmp_path / "models")
        told = {"cache_bytes": 0, "heartbeat_seconds": 0, "patience_seconds": 1.0}
        frames.send(ours, Configure(store=str(settings.store), objects=None, device="cpu", **told))
        fit = {"rows": 4, "n_features": 2, "nb_concepts": 1, "max_iter": 1, "data_offset": 0}
        fit |= {"init": "auto", "solver": "hals", "tol": 0.0, "seed": 0}
        frames.send(ours, Fit(job="j", path=str(tmp_path / "a"), **fit))
        yield ours, theirs


def test_one_that_meets_nobody_ends_untold(
    channel: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("connection closed by peer")  # as torch says it

    monkeypatch.setattr(ranked.dist, "init_process_group", lost)
    _is_untold(channel, tmp_path)


def test_one_that_loses_another_in_the_fit_ends_untold(
    channel: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RankLost("rank 1 of 2 has lost another")

    monkeypatch.setattr(ranked, "joined", lost)
    _is_untold(channel, tmp_path)


def _is_untold(channel: tuple[socket.socket, socket.socket], folder: Path) -> None:
    ours, theirs = channel
    with pytest.raises(Ended) as ended:
        ranked.serve(theirs, 1, 2, str(folder / "meeting"))
    assert ended.value.args == (EXIT_CODE,)
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)


@pytest.fixture
def second(channel: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`app.distributed` as rank 1, which ends as if something were wrong."""
    np.save(tmp_path / "a.npy", np.ones((4, 2), np.float32))
    np.save(tmp_path / "flat.npy", np.ones(4, np.float32))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def run(*told: str) -> None:
        output = ["--output", str(tmp_path / "d"), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["app.distributed", *output, *(word.format(tmp_path) for word in told)])
        with pytest.raises(Ended) as ended:
            app.distributed.main()
        assert ended.value.args == (1,)

    return run


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["--data", "{}/flat.npy", "--nb-concepts", "1"], "must hold (rows, n_features)"),
        (["--data", "{}/a.npy", "--nb-concepts", "0"], "nb_concepts"),
        (["--data", "{}/a.npy", "--nb-concepts", "1", "--solver", "x"], "solver"),
    ],
)
def test_each_rank_tells_what_it_refuses_before_it_has_met_the_others(
    told: list[str], words: str, second: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever ends first has torchrun end the others, untold."""
    second(*told)
    said = capsys.readouterr().err
    assert said.startswith("app.distributed: rank 1: ")
    assert words in said


@pytest.mark.parametrize(("error", "is_told"), [(InvalidParameter("x"), False), (RankLost("x"), True)])
def test_what_all_ranks_have_agreed_on_is_told_by_the_first(
    error: Exception,
    is_told: bool,
    second: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(*_: object) -> None:
        raise error

    ranks = SimpleNamespace(rank=1, require_same=lambda numbers: None)
    monkeypatch.setattr(ranked, "joined_by_environment", lambda *_: nullcontext(ranks))
    monkeypatch.setattr(ranked.RankedFit, "run", wrong)
    second("--data", "{}/a.npy", "--nb-concepts", "1")
    assert capsys.readouterr().err == ("app.distributed: rank 1: x\n" if is_told else "")


def test_what_is_wrong_as_a_fit_is_measured_is_for_all_ranks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one alone raised it, the others would wait for its figures."""
    agreed_on = []

    class Hearing(Ranks):
        def agreed(self, work: Generator[Any, None, Any]) -> Generator[Any, None, Any]:
            try:
                return (yield from work)
            except CoreError as error:
                agreed_on.append(error)
                raise

    def wrong(*_: object) -> Iterator[None]:
        yield
        raise OutOfRange("x")

    monkeypatch.setattr(ranked, "codes_to_measure_steps", wrong)
    fit, ranks = Fit("job", "a", 0, 4, 2, 1, "hals", 1, 0.0, "auto", 0), cast(ProcessGroup, Hearing())
    with pytest.raises(OutOfRange) as raised:
        ranked.RankedFit(fit, ranks, torch.device("cpu"), Store(tmp_path), lambda *_: None).run(np.ones((4, 2), "f"))
    assert agreed_on == [raised.value]


def test_no_message_makes_a_lost_rank_of_a_clients_request() -> None:
    error = error_by_name("RankLost", "rank 1 of 2 has lost another")
    assert (type(error), kind_of(error).status) == (WorkerFailed, 500)


def test_the_object_of_its_checkpoint_replaces_those_of_earlier_attempts(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", ObjectStore(f"memory://{tmp_path}"))
    store.workplace.open()
    assert store.bucket is not None
    store.bucket.put(".dictserve/checkpoints/dead.job.safetensors", b"an earlier one")
    checkpoints = Checkpoints(store.workplace, SharedFiles(store.bucket, "checkpoints"))
    before, shared_as = checkpoints.adopt("job"), checkpoints.shared_as("job")
    place = CheckpointPlace(str(checkpoints.path("job")), str(checkpoints.staged("job")), 1.0, shared_as, before)
    fit = Fit("job", "a", 0, 4, 2, 1, "hals", 1, 0.0, "auto", 0, checkpoint=place)
    ranks: Any = SimpleNamespace(rank=0)
    steps: Any = SimpleNamespace(state=lambda: {"D": torch.ones(1, 2), "losses": torch.ones(3)})
    assert ranked.RankedFit(fit, ranks, torch.device("cpu"), store, lambda *_: None)._keep(steps, place)
    assert set(store.bucket.entries(".dictserve/checkpoints")) == {shared_as}
    store.workplace.close()
