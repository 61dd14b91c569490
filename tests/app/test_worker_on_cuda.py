"""The worker's loop on a CUDA device that the CPU stands in for."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from app.store import figures_file
from app.store.store import Store
from app.worker import frames, loop, solving, transfers
from app.worker.launch import channel
from app.worker.messages import CheckpointPlace, Failed, Fit, Fitted, Heartbeat, Key, Message, Solve, Solved
from app.worker.pace import SLICES_AHEAD
from core import Dictionary
from core.kernels.cuda.graphs import FEW_ROWS
from tests.app.conftest import D, publish
from tests.app.test_worker import A, Turned

if torch.cuda.is_available():
    pytest.skip("tests/gpu asks the device itself", allow_module_level=True)
from tests.core.shadow_cuda import TOTAL_BYTES, State, cuda


@pytest.fixture
def device() -> Iterator[State]:
    with cuda() as state:
        yield state


@pytest.fixture
def turned(tmp_path: Path, device: State) -> Iterator[Turned]:
    store = Store(tmp_path / "models")
    store.workplace.open()
    publish(store, "digits", D)
    ours, theirs = channel()
    with ours, theirs:
        yield Turned(store.root, ours, theirs, "cuda:0")
    store.workplace.close()


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
@pytest.mark.parametrize("start", [None, "digits@1"])
def test_a_fit_is_measured_and_told(turned: Turned, tmp_path: Path, solver: str, start: str | None) -> None:
    A.tofile(tmp_path / "A")
    place = CheckpointPlace(str(tmp_path / "kept"), str(tmp_path / "staged"), 1e-9)
    frames.send(
        turned.channel,
        Fit("job", str(tmp_path / "A"), 0, *A.shape, 2, solver, 8, 1e-4, "auto", 0, start, checkpoint=place),
    )
    *_, fitted = turned.turn()
    assert isinstance(fitted.message, Fitted), fitted.message
    assert json.loads(fitted.arrays[1].tobytes())["relative_error"] < 0.1
    assert fitted.arrays[0].shape == D.shape
    assert set(figures_file.read(fitted.arrays[3].tobytes(), 2, "it")) == set(figures_file.TENSORS)


@pytest.mark.parametrize("rows", [1, 20])  # in one slice, and in five by two lanes in turn, as they are recorded
def test_rows_are_solved_by_streams_that_wait_for_each_other(
    turned: Turned, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "SLICE_BYTES", 4 * A[:1].nbytes)
    expected = Dictionary(D).encode(A[:rows]).codes
    for _ in range(3):
        frames.send(turned.channel, Solve(1, Key("encode", "digits", 1, reconstruct=rows == 1)), A[:rows])
        (solved,) = turned.turn()
        assert isinstance(solved.message, Solved), solved.message
        np.testing.assert_allclose(solved.arrays[0], expected, rtol=1e-3, atol=1e-4)
    frames.send(turned.channel, Solve(2, Key("decode", "digits", 1)), expected.numpy())
    (decoded,) = turned.turn()
    np.testing.assert_allclose(decoded.arrays[0], A[:rows], rtol=1e-3, atol=1e-4)
    turned.worker._next_heartbeat = 0.0
    turned.worker._send_heartbeat()
    (told,) = turned.said()
    assert isinstance(told.message, Heartbeat)


def test_rows_that_the_cpu_encodes_for_a_device_take_turns(turned: Turned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "TURN_SECONDS", 0.0)
    answered = {}
    for dtype in ("float32", "float64"):
        frames.send(turned.channel, Solve(1, Key("encode", "digits", 1, dtype=dtype)), A[:20].astype(dtype))
        (solved,) = turned.turn()
        answered[dtype] = len(solved.arrays[0])
    assert answered == {"float32": 20, "float64": 1}


def test_rows_do_not_wait_for_what_a_fit_has_handed_over(turned: Turned, device: State) -> None:
    handed_over = torch.zeros(3, device="cuda") + 1  # on the stream where fits are
    for rows in (1, 1, 1, 20):  # the dictionary is prepared, the encode is recorded, and played
        assert solved(turned, rows) is not None
        assert not device.of(handed_over.on_cpu).is_awaited()  # type: ignore[attr-defined]
    frames.send(turned.channel, Solve(2, Key("decode", "digits", 1)), np.ones((1, len(D)), np.float32))
    turned.turn()
    assert not device.of(handed_over.on_cpu).is_awaited()  # type: ignore[attr-defined]
    torch.cuda.synchronize()
    assert device.of(handed_over.on_cpu).is_awaited()  # type: ignore[attr-defined]


def test_a_fit_is_handed_over_no_faster_than_the_device_comes_to_it(
    turned: Turned, tmp_path: Path, device: State
) -> None:
    """Meanwhile the worker serves, and says that it lives."""
    A.tofile(tmp_path / "A")
    frames.send(turned.channel, Fit("job", str(tmp_path / "A"), 0, *A.shape, 2, "hals", 20, 0.0, "auto", 0, None))
    turned.worker._serve_what_waits()
    fit = turned.worker._fit
    assert fit is not None
    device.looks_until_done = 10**6
    for _ in range(SLICES_AHEAD + 1):
        assert not fit.waits
        turned.worker._advance_fit()
    frame = fit._slices.gi_frame  # type: ignore[attr-defined]
    at = frame.f_lasti, frame.f_locals.get("latest")
    for _ in range(5):
        turned.worker._advance_fit()
        assert fit.waits
        frames.send(turned.channel, Solve(1, Key("encode", "digits", 1)), A[:1])
        turned.worker._serve_what_waits()
        assert isinstance(turned.said()[-1].message, Solved)
    turned.worker._next_heartbeat = 0.0
    turned.worker._send_heartbeat()
    assert any(isinstance(told.message, Heartbeat) for told in turned.said())
    assert (frame.f_lasti, frame.f_locals.get("latest")) == at
    device.looks_until_done = 0
    *_, fitted = turned.turn()
    assert isinstance(fitted.message, Fitted), fitted.message


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pytest keeps what is logged, and with an error what its frames refer to."""
    monkeypatch.setattr(loop.logger, "disabled", True)


def solved(turned: Turned, rows: int) -> list[np.ndarray] | None:
    """None where memory does not suffice."""
    frames.send(turned.channel, Solve(1, Key("encode", "digits", 1, reconstruct=True)), A[:rows])
    (said,) = turned.turn()
    if isinstance(said.message, Failed):
        assert said.message.error == "DeviceOutOfMemory", said.message
        return None
    return said.arrays


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1])  # so many are not recorded, but halves of them are
def test_an_encode_that_memory_ends_for_harms_none_that_follow(
    turned: Turned, device: State, rows: int, unlogged: None
) -> None:
    """Wherever it ends: another process may take what was free, at any time."""
    expected = solved(turned, rows)
    assert expected is not None
    for before in range(3 if rows <= FEW_ROWS else 2):  # as it is first asked, as it is recorded, and recorded
        most = 0  # that it takes
        for share in (None, 0.2, 0.5, 0.8):
            turned.worker._cache.clear()
            for _ in range(before):
                solved(turned, rows)
            least = device.allocated
            if share is None:
                device.reset_peak()
                assert solved(turned, rows) is not None
                most = device.peak - least
                continue
            device.left = least + int(share * most)
            solved(turned, rows)  # in halves, or not at all
            device.left = TOTAL_BYTES
            for array, whole in zip(solved(turned, rows) or [], expected, strict=True):
                np.testing.assert_allclose(array, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["hals", "pgd"])
def test_a_fit_that_memory_ends_for_fails_and_leaves_nothing(
    turned: Turned, device: State, tmp_path: Path, solver: str, unlogged: None
) -> None:
    A.tofile(tmp_path / "A")

    def fitted() -> Message:
        fit = Fit("job", str(tmp_path / "A"), 0, *A.shape, 2, solver, 3, 0.0, "auto", 0, None)
        frames.send(turned.channel, fit)
        return turned.turn()[-1].message

    before = device.allocated
    assert isinstance(fitted(), Fitted)
    assert device.allocated == before
    for share in (0.2, 0.5, 0.8):
        device.left = before + int(share * (device.peak - before))
        told = fitted()
        assert isinstance(told, Failed)
        assert told.error == "DeviceOutOfMemory"
        assert "fewer rows or concepts" in told.detail
        assert device.allocated == before
    device.left = TOTAL_BYTES
    assert isinstance(fitted(), Fitted)
