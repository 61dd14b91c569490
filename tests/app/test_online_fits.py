"""Online fits of files: what is read and checked, the fit itself, and what comes of interruptions."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from app.errors import DataChanged
from app.formats import npy_file
from app.jobs.data_files import DataFiles
from app.settings import Settings
from app.store import figures_file
from app.store.store import Store
from app.worker import fitting, frames
from app.worker.file_rows import FileRows
from app.worker.messages import CancelFit, Failed, Files, Fit, FitCancelled, FitStopped, Fitted, StopFit
from core import NMF, errors, online
from tests.app.test_checkpoints import begin, ended, fit, interrupt, iteration_of, same, worker
from tests.core.problems import planted

A = planted(3000, 30, 6)[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "models")
    store.workplace.open()
    yield store
    store.workplace.close()


# --- rows of files ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A's rows in three files of different kinds, as a data directory."""
    folder = tmp_path / "files"
    folder.mkdir()
    np.save(folder / "a.npy", A[:1200])
    np.save(folder / "b.npy", np.asfortranarray(A[1200:1300].astype(np.float64)))
    np.save(folder / "c.npy", A[1300:])
    return folder


def files(folder: Path, *, clip: bool = False, epochs: int = 3) -> Files:
    found = DataFiles(Settings(data_dir=folder))
    named = found.find(["*.npy"], clip=clip, stage_as="")
    return msgspec.structs.replace(found.in_place(named), epochs=epochs)


def test_slices_of_rows_are_those_of_the_files(folder: Path) -> None:
    rows = FileRows(files(folder), 30)
    assert rows.shape == A.shape
    for start, stop in ((0, 3000), (0, 1), (1199, 1201), (1150, 1350), (1200, 1300), (2999, 3000)):
        np.testing.assert_array_equal(rows[start:stop], A[start:stop])


def test_clip_makes_negatives_zero(folder: Path) -> None:
    np.save(folder / "b.npy", -A[1200:1300])
    assert not FileRows(files(folder, clip=True), 30)[1200:1300].any()


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_a_bad_value_is_told_with_its_file_and_row(store: Store, folder: Path, value: float) -> None:
    bad = A[1300:].copy()
    bad[77, 5] = value
    np.save(folder / "c.npy", bad)
    with worker(store) as turned:
        frames.send(turned.channel, message(store, folder))
        failed = turned.turn()[-1].message
    assert isinstance(failed, Failed)
    assert failed.error == ("NegativeValues" if value < 0 else "NotFinite")
    assert "of c.npy" in failed.detail
    assert "at row 77, column 5" in failed.detail


def lead_out(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere.npy")
    path.symlink_to(path.parents[1] / "elsewhere.npy")


CHANGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "touched": lambda path: os.utime(path, ns=(0, 0)),
    "cut short": lambda path: os.truncate(path, 5000),
    "other values": lambda path: np.save(path, A[1301:]),
    "led out": lead_out,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_in_the_midst_of_a_fit_ends_it(
    store: Store, folder: Path, change: Callable[[Path], object]
) -> None:
    with worker(store) as turned:
        begin(turned, message(store, folder), lambda: kept(turned, 2))
        change(folder / "c.npy")
        failed = turned.turn()[-1].message
    assert isinstance(failed, Failed)
    assert (failed.error, failed.detail[:5]) == ("DataChanged", "c.npy")


def test_a_file_that_is_cut_short_while_it_is_read_is_told_as_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = FileRows(files(folder), 30)
    fill = npy_file.NpyFile._fill

    def cut(self: npy_file.NpyFile, values: np.ndarray, offset: int) -> None:
        os.truncate(folder / "a.npy", 1000)
        fill(self, values, offset)

    monkeypatch.setattr(npy_file.NpyFile, "_fill", cut)
    with pytest.raises(DataChanged, match="has become shorter"):
        rows[0:100]


# --- the fit ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches, and checkpoints one after the other."""
    monkeypatch.setattr(online, "BATCH_ROWS", 256)
    monkeypatch.setattr(fitting, "WAITING_SHARE", 1e9)


def message(store: Store, folder: Path, **changed: object) -> Fit:
    return fit(store, path="", data_sha256="", online=files(folder), **changed)


def kept(turned: object, iteration: int) -> bool:
    """Whether the fit has come to that iteration."""
    return turned.worker._fit._kept >= iteration  # type: ignore[attr-defined]


def test_the_dictionary_is_that_of_fit_online(store: Store, folder: Path) -> None:
    told = ended(store, message(store, folder, checkpoint=None))[1:]
    D, metrics, losses, figures = told[1].arrays
    model = NMF(6, seed=0, tol=0)
    np.testing.assert_array_equal(D, model.fit_online(A, 3).numpy())
    np.testing.assert_array_equal(losses, model.loss_history_)
    assert told[0][-1].max_iter == len(losses) == told[0][-1].iteration
    measured = msgspec.json.decode(metrics.tobytes())
    assert measured["metrics_rows"] == len(A)
    Z = model.encode(A).double()
    error = torch.linalg.norm(torch.from_numpy(A).double() - Z @ model.get_dictionary().double())
    assert measured["relative_error"] == pytest.approx(float(error) / np.linalg.norm(A.astype(np.float64)), rel=1e-4)
    known = figures_file.read(figures.tobytes(), 6, "it")
    assert set(known) == {"nearest", "cosines", "uses", "largest"}
    np.testing.assert_array_equal(known["uses"], (Z > 0).sum(dim=0))
    np.testing.assert_allclose(known["largest"], Z.amax(dim=0), rtol=1e-4)


def test_it_starts_from_a_dictionary(store: Store, folder: Path) -> None:
    D = planted(3000, 30, 6)[2]
    store.publish("first", D, parameters={}, data={}, metrics={}, seconds=1.0, software={}, job="none")
    fitted = ended(store, message(store, folder, checkpoint=None, start="first@1"))[2]
    np.testing.assert_array_equal(fitted.arrays[0], NMF(6, seed=0, tol=0).fit_online(A, 3, D=D).numpy())


def test_it_goes_on_from_its_checkpoint_to_the_same_dictionary(store: Store, folder: Path) -> None:
    whole = ended(store, message(store, folder, checkpoint=None))[2]
    going_on = message(store, folder)
    at = interrupt(store, going_on, after=15)
    begun, told, resumed = ended(store, going_on)
    assert begun.iteration == at >= 15
    assert told[0].loss == whole.arrays[2][at - 1]
    assert same(resumed, whole)


def test_a_checkpoint_of_files_that_have_changed_is_ignored(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(store, message(store, folder), after=3)
    os.utime(folder / "a.npy", ns=(0, 0))  # and the job was sent again
    assert ended(store, message(store, folder))[0].iteration == 0
    assert "it is that of a fit with online" in caplog.text


def test_it_is_stopped_with_a_checkpoint_and_cancelled_with_none(store: Store, folder: Path) -> None:
    going_on = message(store, folder, seconds=3600)
    assert going_on.checkpoint is not None
    with worker(store) as turned:
        begin(turned, going_on, lambda: True)
        for _ in range(450):  # well into the batches
            turned.worker._advance_fit()
        frames.send(turned.channel, StopFit("job"))
        assert turned.turn()[-1].message == FitStopped("job")
    at = iteration_of(going_on.checkpoint.path)
    assert at > 0
    begun, _, resumed = ended(store, going_on)
    assert begun.iteration == at
    assert same(resumed, ended(store, message(store, folder, checkpoint=None))[2])
    with worker(store) as turned:
        begin(turned, going_on, lambda: True)
        frames.send(turned.channel, CancelFit("job"))
        assert turned.turn()[-1].message == FitCancelled("job")


def test_files_of_zeros_give_a_dictionary_of_zeros(store: Store, folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((1200, 30)))
    np.save(folder / "b.npy", np.zeros((100, 30)))
    np.save(folder / "c.npy", np.zeros((1700, 30)))
    fitted = ended(store, message(store, folder))[2]
    assert isinstance(fitted.message, Fitted)
    assert not fitted.arrays[0].any()


def test_files_of_what_float32_cannot_hold_are_refused(store: Store, folder: Path) -> None:
    for name in ("a", "b", "c"):
        np.save(folder / f"{name}.npy", np.full((1000, 30), 1e-300))
    with worker(store) as turned:
        frames.send(turned.channel, message(store, folder))
        failed = turned.turn()[-1].message
    assert isinstance(failed, Failed)
    assert failed.error == "OutOfRange"
    assert "reach 1e-300" in failed.detail


def test_core_refuses_what_float32_cannot_hold() -> None:
    with pytest.raises(errors.OutOfRange, match="reach 1e-300"):
        NMF(6).fit_online(np.full((3000, 30), 1e-300))
    rows = np.full((3000, 30), 1e-300)
    rows[1234, 5] = 1.0  # of one batch alone
    NMF(6).fit_online(rows, 1)


def test_core_refuses_what_files_would_not_hold() -> None:
    with pytest.raises(errors.WrongShape):
        NMF(6).fit_online(np.zeros((0, 4)))
