"""Checkpoints: written by the worker's loop, gone on from, ignored where they are no good, and removed."""

import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from app.store import checkpoint_file
from app.store.bucket import bucket_of
from app.store.checkpoint_file import CheckpointUnusable, Metadata, Rows
from app.store.checkpoints import Checkpoints, job_of
from app.store.object_store import ObjectStore
from app.store.shared_files import SharedFiles
from app.store.store import Store
from app.worker import fitting, frames
from app.worker.loop import WAITING_SECONDS
from app.worker.messages import (
    CancelFit,
    CheckpointPlace,
    Fit,
    FitBegun,
    FitCancelled,
    FitProgress,
    FitStopped,
    Fitted,
    Key,
    Solve,
    Solved,
    Solver,
    StopFit,
)
from core.progress import run
from tests.app.conftest import D, publish
from tests.app.test_worker import Turned
from tests.core.problems import planted

A = planted(400, 30, 6)[0]
MAX_ITER = 100
WAITING_SHARE = fitting.WAITING_SHARE


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints come one after the other, whatever share of the time they take."""
    monkeypatch.setattr(fitting, "WAITING_SHARE", 1e9)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "models")
    store.workplace.open()
    yield store
    store.workplace.close()


@contextmanager
def worker(store: Store) -> Iterator[Turned]:
    """A worker anew: what it knows of fits before is on the disk."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Turned(store.root, ours, theirs)


def fit(store: Store, *, solver: Solver = "hals", seconds: float = 1e-9, **changed: object) -> Fit:
    """A fit that is kept after each of its iterations, as far as time is concerned."""
    path = store.workplace.activations / "A"
    if not path.exists():
        A.tofile(path)
    checkpoints = Checkpoints(store.workplace)
    place = CheckpointPlace(str(checkpoints.path("job")), str(checkpoints.staged("job")), seconds)
    message = Fit("job", str(path), 0, *A.shape, 6, solver, MAX_ITER, 0, "auto", 0, None, "digest", place)
    return msgspec.structs.replace(message, **changed)


def begin(turned: Turned, message: Fit, until: Callable[[], bool]) -> None:
    """Turn the worker's loop by hand until so."""
    frames.send(turned.channel, message)
    turned.worker._serve_what_waits()
    deadline = time.monotonic() + 30
    while not until():
        assert turned.worker._fit is not None, "it has ended"
        assert time.monotonic() < deadline
        turned.worker._advance_fit()


def iteration_of(path: str) -> int:
    return int(run(checkpoint_file.read_steps(Path(path))).metadata.numbers["iteration"])


def interrupt(store: Store, message: Fit, after: int = 5) -> int:
    """Have a worker die on a fit with a checkpoint after that iteration or a later one; returns which."""
    assert message.checkpoint is not None
    path = message.checkpoint.path
    with worker(store) as turned:

        def kept() -> bool:
            fit = turned.worker._fit
            if fit is not None and fit._writing is not None:
                fit._writing.ended.wait()
            return os.path.exists(path) and iteration_of(path) >= after

        begin(turned, message, kept)
    return iteration_of(path)


def ended(store: Store, message: Fit) -> tuple[FitBegun, list[FitProgress], frames.Frame]:
    with worker(store) as turned:
        frames.send(turned.channel, message)
        begun, *told, fitted = turned.turn()
    assert isinstance(begun.message, FitBegun)
    assert isinstance(fitted.message, Fitted), fitted.message
    return begun.message, [frame.message for frame in told if isinstance(frame.message, FitProgress)], fitted


def same(one: frames.Frame, other: frames.Frame) -> bool:
    """Whether two fits have the same dictionary and losses, to the bit."""
    return all(np.array_equal(one.arrays[i], other.arrays[i]) for i in (0, 2))


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd", "anls"])
def test_a_fit_goes_on_from_its_checkpoint_to_the_same_dictionary(store: Store, solver: Solver) -> None:
    whole = ended(store, fit(store, solver=solver, checkpoint=None))[2]
    message = fit(store, solver=solver)
    kept = interrupt(store, message)
    begun, told, resumed = ended(store, message)
    assert begun.iteration == kept >= 5
    assert begun.seconds > 0
    assert min(progress.iteration for progress in told) >= kept
    assert told[0].loss == whole.arrays[2][kept - 1]
    assert same(resumed, whole)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def replace_with_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the header": (lambda path: flip(path, 30), "SHA-256"),
    "a bit of Z": (lambda path: flip(path, -1000), "SHA-256"),
    "a bit of the digest": (lambda path: flip(path, -1), "SHA-256"),
    "cut short": (lambda path: os.truncate(path, path.stat().st_size - 100), "SHA-256"),
    "empty": (lambda path: os.truncate(path, 0), "SHA-256"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "directory|no regular file"),
    "a link": (replace_with_link, "symbolic links"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "no regular file"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_told_of_and_ignored(
    store: Store, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], words: str
) -> None:
    message = fit(store, seconds=3600)
    whole = ended(store, message)[2]
    path = Path(message.checkpoint.path)  # type: ignore[union-attr] - it has one
    interrupt(store, fit(store))
    damage(path)
    begun, _, again = ended(store, message)
    assert (begun.iteration, begun.seconds) == (0, 0)
    assert same(again, whole)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "job job starts again, for its checkpoint cannot be used" in record.getMessage()
    assert re.search(words, record.getMessage())


STALE = {
    "data_sha256": "other",
    "nb_concepts": 5,
    "solver": "mu",
    "max_iter": 99,
    "tol": 1e-3,
    "init": "random",
    "seed": 1,
}


@pytest.mark.parametrize("changed", STALE)
def test_a_checkpoint_of_other_data_or_parameters_is_ignored(
    store: Store, caplog: pytest.LogCaptureFixture, changed: str
) -> None:
    interrupt(store, fit(store))
    assert ended(store, fit(store, seconds=3600, **{changed: STALE[changed]}))[0].iteration == 0
    assert f"it is that of a fit with {changed}" in caplog.text


def test_a_full_disk_does_not_fail_the_fit(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ended(store, fit(store, checkpoint=None))[2]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_file, "write", full)
        assert same(ended(store, fit(store))[2], whole)
    assert "goes on without a checkpoint, for none can be written: [Errno 28] No space left" in caplog.text
    caplog.clear()
    with monkeypatch.context() as patch:  # room for it, but for nothing beside it
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 20_000))
        assert same(ended(store, fit(store))[2], whole)
    assert "bytes of the store's disk, which has 20000 to spare" in caplog.text
    assert list(store.workplace.checkpoints.iterdir()) == list(store.workplace.staging.iterdir()) == []


@pytest.mark.parametrize("seconds", [1e-9, 3600.0])
def test_a_stop_keeps_the_fit_as_it_is(store: Store, seconds: float) -> None:
    """Whether or not a checkpoint would have been due."""
    whole = ended(store, fit(store, checkpoint=None))[2]
    message = fit(store, seconds=seconds)
    with worker(store) as turned:
        begin(turned, message, lambda: True)
        for _ in range(40):  # well into the iterations
            turned.worker._advance_fit()
        frames.send(turned.channel, StopFit("job"))
        assert turned.turn()[-1].message == FitStopped("job")
    begun, _, resumed = ended(store, message)
    assert begun.iteration > 0
    assert same(resumed, whole)


def test_a_stop_before_the_first_iteration_or_without_checkpoints_ends_the_fit_at_once(store: Store) -> None:
    for message, slices in ((fit(store), 1), (fit(store, checkpoint=None), 40)):
        with worker(store) as turned:
            begin(turned, message, lambda: True)
            for _ in range(slices):
                turned.worker._advance_fit()
            frames.send(turned.channel, StopFit("job"))
            turned.worker._serve_what_waits()
            turned.worker._advance_fit()
            assert turned.worker._fit is None
            assert turned.turn()[-1].message == FitStopped("job")
    assert list(store.workplace.checkpoints.iterdir()) == []


def test_a_stop_of_a_fit_that_goes_on_leaves_the_checkpoint_as_it_was(store: Store) -> None:
    message = fit(store, seconds=3600)
    kept = interrupt(store, fit(store))
    with worker(store) as turned:
        begin(turned, message, lambda: True)
        frames.send(turned.channel, StopFit("job"))
        assert turned.turn()[-1].message == FitStopped("job")
    assert iteration_of(message.checkpoint.path) == kept  # type: ignore[union-attr] - it has one


def test_nothing_comes_after_a_cancel(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even from a checkpoint that was half written just then."""
    begun, go_on = threading.Event(), threading.Event()
    write = checkpoint_file.write

    def slowly(*told: object) -> None:
        begun.set()
        go_on.wait()
        write(*told)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_file, "write", slowly)
    with worker(store) as turned:
        begin(turned, fit(store), begun.is_set)
        assert turned.worker._fit is not None
        writing = turned.worker._fit._writing
        frames.send(turned.channel, CancelFit("job"))
        assert turned.turn()[-1].message == FitCancelled("job")
        Checkpoints(store.workplace).discard("job")
        go_on.set()
        assert writing is not None
        assert writing.ended.wait(10)
    assert list(store.workplace.checkpoints.iterdir()) == list(store.workplace.staging.iterdir()) == []


class Host:
    """One of several replicas, each with a disk of its own and what it says to the bucket that they share."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.store.workplace.open()
        self.bucket = bucket_of(ObjectStore(f"memory://{folder.parent}"))
        self.checkpoints = Checkpoints(self.store.workplace, SharedFiles(self.bucket, "checkpoints"))

    def writes(self, iteration: int, replaces: Sequence[str] = (), job: str = "1") -> fitting.Writing:
        there = self.checkpoints
        place = CheckpointPlace(
            str(there.path(job)), str(there.staged(job)), 30.0, there.shared_as(job), list(replaces)
        )
        rows = Rows("F32", (4, 4), lambda rows: np.ones((rows.stop - rows.start, 4), np.float32))
        metadata = Metadata(checkpoint_file.FORMAT, job, {}, {"iteration": float(iteration)}, 0.0)
        return fitting.Writing(place, metadata, {"Z": rows}, self.bucket)

    def keeps(self, iteration: int, replaces: Sequence[str] = (), job: str = "1") -> None:
        assert self.writes(iteration, replaces, job).ended.wait(10)

    @contextmanager
    def keeps_slowly(self, iteration: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[fitting.Writing]:
        """Within, the checkpoint is on its way to the bucket."""
        begun, may_go_on = threading.Event(), threading.Event()
        upload = self.bucket.upload

        def slow(path: Path, key: str) -> None:
            begun.set()
            assert may_go_on.wait(10)
            upload(path, key)

        with monkeypatch.context() as slowly:
            slowly.setattr(self.bucket, "upload", slow)
            writing = self.writes(iteration)
            assert begun.wait(10)
            yield writing
            may_go_on.set()
            assert writing.ended.wait(10)

    def goes_on_from(self) -> int:
        self.checkpoints.adopt("1")
        return iteration_of(str(self.checkpoints.path("1")))

    def objects(self) -> set[str]:
        return {key.rpartition("/")[2] for key in self.bucket.entries(".dictserve/checkpoints")}


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host, Host]]:
    hosts = Host(tmp_path / "a"), Host(tmp_path / "b"), Host(tmp_path / "c")
    yield hosts
    for host in hosts:
        host.store.workplace.close()


@pytest.mark.parametrize("hears_of_it", [False, True])
def test_an_attempt_that_was_lost_costs_the_one_after_it_no_object(
    hosts: tuple[Host, Host, Host], monkeypatch: pytest.MonkeyPatch, hears_of_it: bool
) -> None:
    lost, holder, third = hosts
    with lost.keeps_slowly(10, monkeypatch) as writing:
        holder.keeps(500)
        if hears_of_it:
            writing.abandon()
    assert third.goes_on_from() == 500


def test_an_object_whose_successor_is_abandoned_on_the_way_stays(
    hosts: tuple[Host, Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit leaves its checkpoint so where its files are away, and at its end: it is not published yet."""
    mine, other, _ = hosts
    mine.keeps(400)
    with mine.keeps_slowly(500, monkeypatch) as writing:
        writing.abandon()
        assert other.goes_on_from() == 400
    assert other.goes_on_from() == 500


def test_an_object_that_comes_after_its_job_has_ended_here_does_not_stay(
    hosts: tuple[Host, Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _, _ = hosts
    with mine.keeps_slowly(1, monkeypatch) as writing:
        writing.abandon()
        mine.checkpoints.discard("1")
    assert mine.objects() == set()


def test_an_object_that_comes_after_its_job_s_end_is_swept_however_new_it_is(
    hosts: tuple[Host, Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ended it, elsewhere, has removed what there was of it by then."""
    mine, other, _ = hosts
    mine.keeps(1, job="unended")
    with mine.keeps_slowly(1, monkeypatch) as writing:
        writing.abandon()
        other.checkpoints.discard("1")
    assert len(other.objects()) == 2
    other.checkpoints.sweep_shared(lambda: {"unended"})
    assert other.objects() == {f"{mine.store.workplace.owner}.unended.safetensors"}


def test_the_first_object_of_an_attempt_replaces_those_before_it(hosts: tuple[Host, Host, Host]) -> None:
    """However far they are: the fit may have begun again, for they could not be used."""
    first, second, third = hosts
    first.bucket.put(".dictserve/checkpoints/1.safetensors", b"an earlier version's, which names no owner")
    first.keeps(500)
    second.keeps(1, job="other")
    before = second.checkpoints.adopt("1")
    assert len(before) == 2
    assert first.objects() >= {"1.safetensors", f"{first.store.workplace.owner}.1.safetensors"}
    second.keeps(30, before)
    assert third.goes_on_from() == 30
    mine = f"{second.store.workplace.owner}.1.safetensors"
    assert first.objects() == {mine, f"{second.store.workplace.owner}.other.safetensors"}
    assert second.checkpoints.adopt("1") == []  # it replaces its own anyway
    assert third.checkpoints.adopt("1") == [f".dictserve/checkpoints/{mine}"]


def test_an_object_that_cannot_be_had_is_left_to_others(
    hosts: tuple[Host, Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit starts again here, and what it comes to is not to be instead of what was further on."""
    first, second, third = hosts
    first.keeps(500)

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        before = second.checkpoints.adopt("1")
    second.keeps(10, before)
    assert third.goes_on_from() == 500


def test_an_earlier_version_s_object_is_gone_on_from_and_swept(hosts: tuple[Host, Host, Host]) -> None:
    first, second, _ = hosts
    first.keeps(7)
    first.bucket.upload(first.checkpoints.path("1"), ".dictserve/checkpoints/1.safetensors")
    first.bucket.delete(str(first.checkpoints.shared_as("1")))
    assert second.checkpoints.exists("1")
    assert second.goes_on_from() == 7
    second.checkpoints.sweep_shared(set)
    assert second.objects() == set()


def test_the_loop_serves_on_while_a_checkpoint_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(checkpoint_file, "write", lambda *_: (begun.set(), go_on.wait()))
    publish(store, "digits", D)
    with worker(store) as turned:
        begin(turned, fit(store), begun.is_set)
        for number in range(3):
            frames.send(turned.channel, Solve(number, Key("encode", "digits", 1)), np.ones((1, 4), np.float32))
            turned.worker._serve_what_waits()
        assert turned.worker._fit is not None
        assert turned.worker._fit.waits
        begun_at = time.monotonic()
        turned.worker._serve_what_waits()  # with nothing there it waits a little: no core is burnt
        assert time.monotonic() - begun_at > 0.9 * WAITING_SECONDS
        go_on.set()
        said = [frame.message for frame in turned.turn()]
    assert [message.id for message in said if isinstance(message, Solved)] == [0, 1, 2]
    assert isinstance(said[-1], Fitted)


def test_large_checkpoints_are_written_less_often(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a fit spends no more than a twentieth of its time waiting for them."""
    written = []
    monkeypatch.setattr(fitting, "WAITING_SHARE", WAITING_SHARE)
    monkeypatch.setattr(checkpoint_file, "write", lambda *told: (written.append(told), time.sleep(0.5)))
    begun = time.monotonic()
    ended(store, fit(store, max_iter=200))
    assert 1 <= len(written) <= 1 + (time.monotonic() - begun) / 10


# --- the file ---------------------------------------------------------------------------------------------------

METADATA = Metadata(checkpoint_file.FORMAT, "job", {"rows": 3}, {"iteration": 2.0, "energy": 0.1}, 1.5)


def rows_of(array: np.ndarray) -> Rows:
    return Rows({4: "F32", 8: "F64"}[array.itemsize], array.shape, array.__getitem__)


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    tensors = {name: rows_of(array) for name, array in arrays.items()}
    with path.open("wb", buffering=0) as file:
        checkpoint_file.write(file, METADATA, tensors, lambda: False)
    assert path.stat().st_size == checkpoint_file.size(METADATA, tensors)
    return path


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several pieces, and as any reader of safetensors has it, too."""
    monkeypatch.setattr(checkpoint_file, "PIECE_BYTES", 100)
    arrays = {"Z": A, "D": A[:6].T, "losses": np.arange(33.0)}
    path = written(tmp_path / "file", arrays)
    checkpoint = run(checkpoint_file.read_steps(path))
    assert checkpoint.metadata == METADATA
    theirs = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], array)
        np.testing.assert_array_equal(theirs[name], array)
        assert checkpoint.arrays[name].ctypes.data % checkpoint_file.ALIGNMENT == 0


@settings(max_examples=50)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_no_flipped_bit_and_no_cut_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int, cut: bool
) -> None:
    path = written(tmp_path_factory.mktemp("bits") / "file", {"Z": A[:20], "losses": np.arange(3.0)})
    content = bytearray(path.read_bytes())
    position %= len(content)
    if cut:
        del content[position:]
    else:
        content[position] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(CheckpointUnusable):
        run(checkpoint_file.read_steps(path))


def test_a_checkpoint_of_another_format_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "METADATA", msgspec.structs.replace(METADATA, format=2))
    path = written(tmp_path / "file", {"Z": A})
    with pytest.raises(CheckpointUnusable, match="format 2"):
        run(checkpoint_file.read_steps(path))


# --- where they lie ---------------------------------------------------------------------------------------------


def put(store: Store, owner: str, iteration: int, *, age: int = 0, job: str = "job") -> None:
    metadata = msgspec.structs.replace(METADATA, numbers={"iteration": float(iteration)})
    path = store.workplace.checkpoints / f"{owner}.{job}.safetensors"
    with path.open("wb", buffering=0) as file:
        checkpoint_file.write(file, metadata, {}, lambda: False)
    os.utime(path, (0, 10**9 - age))


@pytest.mark.parametrize("furthest", ["1-old", "2-new", "mine"])
def test_who_takes_a_job_up_takes_the_checkpoint_over_that_is_furthest_on(store: Store, furthest: str) -> None:
    """Not the newest: an attempt that was lost may have written that."""
    checkpoints = Checkpoints(store.workplace)
    for name, age in (("2-new", 1), ("mine", 2), ("1-old", 3)):
        owner = store.workplace.owner if name == "mine" else name
        put(store, owner, 500 if name == furthest else 10 - age, age=age)
    put(store, "1-old", 900, job="other")
    assert checkpoints.exists("job")
    assert checkpoints.adopt("job") == []
    assert iteration_of(str(checkpoints.path("job"))) == 500
    assert sorted(job_of(path.name) for path in store.workplace.checkpoints.iterdir()) == ["job", "other"]
    checkpoints.discard("job")
    assert not checkpoints.exists("job")
    assert checkpoints.exists("other")


def test_a_sweep_takes_what_is_no_unended_job_s_whoever_is_alive(store: Store) -> None:
    """A job that was this process's may have ended on another replica, which has a disk of its own."""
    for owner in (store.workplace.owner, "1-dead"):
        for job in ("unended", "ended"):
            put(store, owner, 1, job=job)

    def unended() -> set[str]:
        put(store, store.workplace.owner, 1, job="added")  # since its files were listed
        return {"unended"}

    Checkpoints(store.workplace).sweep(unended)
    left = {path.name for path in store.workplace.checkpoints.iterdir()}
    of_mine = {f"{store.workplace.owner}.{job}.safetensors" for job in ("unended", "added")}
    assert left == of_mine | {"1-dead.unended.safetensors"}
