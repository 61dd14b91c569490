"""The worker's loop, turned by hand in this process: frames in, frames out."""

import logging
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
import torch

from app.errors import StoreUnavailable, error_by_name
from app.http.problems import answer_to
from app.store import figures_file
from app.store.store import Store
from app.worker import device, frames, loop
from app.worker.cache import OVERHEAD_BYTES, DictionaryCache
from app.worker.device import DeviceFailed
from app.worker.fitting import Fitting
from app.worker.launch import channel
from app.worker.loop import FIT_SHARE, Worker
from app.worker.messages import (
    Configure,
    DeviceMemory,
    Dtype,
    Failed,
    Fit,
    FitProgress,
    Fitted,
    Heartbeat,
    Key,
    Ready,
    Solve,
    Solved,
)
from app.worker.solving import GROWTH, TURN_SECONDS, _relative_errors, in_a_turn
from core import NMF, Dictionary
from core.dictionary import Encoded
from core.warm import warm_encodes
from tests.app.conftest import D, publish
from tests.core.problems import planted

MIB = 1 << 20
A = np.random.default_rng(0).random((50, 2), np.float32) @ D


class Turned:
    """A worker, and the service's end of its channel."""

    def __init__(self, store: Path, ours: socket.socket, theirs: socket.socket, device: str = "cpu") -> None:
        self.channel = ours
        frames.send(ours, Configure(str(store), device, cache_bytes=2**20, heartbeat_seconds=60.0))
        self.worker = Worker(theirs)

    def turn(self) -> list[frames.Frame]:
        """Serve what waits and advance the fit to its end; what the worker has said."""
        while select.select([self.worker._channel], [], [], 0)[0]:
            self.worker._serve_what_waits()
        while self.worker._fit is not None:
            self.worker._advance_fit()
        return self.said()

    def said(self) -> list[frames.Frame]:
        said = []
        while select.select([self.channel], [], [], 0)[0]:
            said.append(frames.receive(self.channel))
        return said


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "models")
    store.workplace.open()
    publish(store, "digits", D)
    yield store
    store.workplace.close()


@pytest.fixture
def turned(store: Store) -> Iterator[Turned]:
    ours, theirs = channel()
    with ours, theirs:
        yield Turned(store.root, ours, theirs)


class Slices:
    """A fit of slices of a hundredth of a second each."""

    job, waits, done = "job", False, 0

    def advance(self) -> bool:
        time.sleep(0.01)
        self.done += 1
        return True


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_relative_error_is_of_the_codes_that_are_answered(turned: Turned, dtype: Dtype) -> None:
    rows = A.astype(dtype)
    for top_k in (1, 2, 7):
        frames.send(turned.channel, Solve(1, Key("encode", "digits", 1, True, dtype, top_k)), rows)
        (answer,) = turned.turn()
        Z, _, errors = answer.arrays
        assert ((Z > 0).sum(axis=1) <= top_k).all()
        lost = np.linalg.norm(rows - Z @ D.astype(np.float64), axis=1) / np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(errors, lost, atol=1e-6)
        assert (errors.max() > 0.1) == (top_k == 1)


def test_a_fit_has_its_share_of_the_time_beside_rows_that_take_long(
    turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slice after eight batches of a second each was none in 20 s."""
    monkeypatch.setattr(turned.worker, "_handle", lambda frame: time.sleep(0.1))
    turned.worker._fit = slices = Slices()  # type: ignore[assignment]
    for _ in range(4):
        frames.send(turned.channel, Solve(1, Key("encode", "digits", 1)), A[:1])
    taken = turned.worker._serve_what_waits()
    assert taken >= 0.4
    turned.worker._advance_fit_for(FIT_SHARE * taken)
    assert 2 <= slices.done <= 1 + FIT_SHARE * taken / 0.01
    turned.worker._advance_fit_for(FIT_SHARE * turned.worker._serve_what_waits())
    assert slices.done <= 2 + FIT_SHARE * taken / 0.01  # of no time, a slice


def fit(path: Path, start: str | None) -> Fit:
    A.tofile(path)
    return Fit("job", str(path), 0, *A.shape, 2, "hals", 500, 1e-4, "auto", 0, start)


def test_a_warm_start_begins_where_its_dictionary_is(turned: Turned, tmp_path: Path) -> None:
    losses = {}
    for start in (None, "digits@1"):
        frames.send(turned.channel, fit(tmp_path / "A", start))
        *_, told, fitted = turned.turn()
        assert isinstance(told.message, FitProgress)
        assert isinstance(fitted.message, Fitted)
        losses[start] = fitted.arrays[2]
    assert losses["digits@1"][0] < 1e-3 * losses[None][0]  # the data is made of that very dictionary


def test_the_figures_of_a_fit_are_those_of_its_codes(turned: Turned, tmp_path: Path) -> None:
    frames.send(turned.channel, fit(tmp_path / "A", None))
    *_, fitted = turned.turn()
    figures = figures_file.read(fitted.arrays[3].tobytes(), 2, "it")
    assert set(figures) == set(figures_file.TENSORS)
    Z, D = NMF(2, seed=0).fit(A)
    Z, D = Z.numpy(), D.numpy().astype(np.float64)
    np.testing.assert_array_equal(fitted.arrays[0], D)
    np.testing.assert_array_equal(figures["uses"], (Z > 0).sum(0))
    np.testing.assert_array_equal(figures["largest"], Z.max(0))
    np.testing.assert_array_equal(figures["histogram"].sum(1), (Z > 0).sum(0))
    np.testing.assert_array_equal(figures["top_codes"], -np.sort(-Z, axis=0)[:10].T)
    np.testing.assert_array_equal(Z[figures["top_rows"], np.arange(2)[:, None]], figures["top_codes"])
    cosine = D[0] @ D[1] / np.linalg.norm(D, axis=1).prod()
    np.testing.assert_allclose(figures["cosines"][:, 0], cosine, atol=1e-4)
    used = Z > 0
    overlap = (used[:, 0] & used[:, 1]).sum() / (used[:, 0] | used[:, 1]).sum()
    np.testing.assert_allclose(figures["overlap"][:, 0], overlap, atol=1e-4)


def test_the_figures_of_a_fit_by_mu_are_those_of_exact_codes(turned: Turned, tmp_path: Path) -> None:
    """Its own never reach zero: each concept would be in every row."""
    rows = planted(300, 20, 6, density=0.3)[0]
    rows.tofile(tmp_path / "A")
    frames.send(turned.channel, Fit("job", str(tmp_path / "A"), 0, 300, 20, 6, "mu", 500, 1e-4, "auto", 0))
    *_, fitted = turned.turn()
    figures = figures_file.read(fitted.arrays[3].tobytes(), 6, "it")
    exact = Dictionary(fitted.arrays[0]).encode(rows).codes.numpy()
    np.testing.assert_array_equal(figures["uses"], (exact > 0).sum(axis=0))
    assert (figures["uses"] < 300).all()


def test_a_start_that_was_removed_meanwhile_fails_the_job(turned: Turned, store: Store, tmp_path: Path) -> None:
    publish(store, "digits", D)
    store.remove("digits", [1])
    frames.send(turned.channel, fit(tmp_path / "A", "digits@1"))
    (said,) = turned.turn()
    assert said.message == Failed("job", "UnknownDictionary", "digits@1 has been removed")


def test_what_is_told_to_the_service_is_for_it_to_log_and_what_nobody_expects_with_where_it_came_from(
    turned: Turned, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request for a damaged dictionary was two lines, and the worker's had no request's id."""
    caplog.set_level(logging.INFO)

    def failure(name: str) -> Failed:
        frames.send(turned.channel, Solve(1, Key("encode", name, 1)), A)
        (said,) = turned.turn()
        assert isinstance(said.message, Failed)
        return said.message

    assert failure("absent").error == "UnknownDictionary"
    (store.root / "digits" / "1" / "dictionary.safetensors").write_bytes(b"x")
    damaged = failure("digits")
    assert damaged.error == "DictionaryDamaged"
    assert damaged.detail.startswith("dictionary.safetensors of digits@1")
    assert not caplog.records
    monkeypatch.setattr(turned.worker._cache, "get", lambda *_: 1 / 0)
    assert failure("digits").error == "ZeroDivisionError"
    (line,) = caplog.records
    assert (line.levelno, line.getMessage(), line.exc_info is not None) == (logging.ERROR, "task 1 failed", True)


def test_a_store_that_is_not_mounted_any_more_is_no_empty_one(turned: Turned, store: Store) -> None:
    """As the service takes it, which looked a moment before."""
    elsewhere = store.root.rename(store.root.with_name("elsewhere"))
    store.root.mkdir()
    frames.send(turned.channel, Solve(1, Key("encode", "digits", 1)), A)
    (said,) = turned.turn()
    assert said.message == Failed(1, "StoreUnavailable", "the store cannot be used: No such file or directory")
    store.root.rmdir()
    elsewhere.rename(store.root)


def test_each_dictionary_that_cannot_be_read_for_a_while_is_told_twice(
    turned: Turned, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The service answers with a 503, of which it logs none. Each request for one was a line."""
    publish(store, "faces", D)

    def encode(name: str) -> frames.Message:
        frames.send(turned.channel, Solve(1, Key("encode", name, 1)), A)
        (said,) = turned.turn()
        return said.message

    def withheld(name: str, version: int) -> None:
        raise StoreUnavailable(f"dictionary.safetensors of {name}@{version} cannot be read: Permission denied")

    with monkeypatch.context() as denied:
        denied.setattr(turned.worker._store, "load", withheld)
        for name in 3 * ["digits", "faces"]:
            refused = encode(name)
            assert isinstance(refused, Failed)
            assert refused.error == "StoreUnavailable"
    for name in 2 * ["digits", "faces"]:
        assert isinstance(encode(name), Solved)
    told = "{0}@1 cannot be loaded: dictionary.safetensors of {0}@1 cannot be read: Permission denied"
    assert [record.getMessage() for record in caplog.records] == [
        *(told.format(name) for name in ("digits", "faces")),
        *(f"over after 0 s: {name}@1 cannot be loaded" for name in ("digits", "faces")),
    ]


def test_a_heartbeat_tells_of_a_gpus_memory(turned: Turned, monkeypatch: pytest.MonkeyPatch) -> None:
    def beat() -> Heartbeat:
        turned.worker._next_heartbeat = 0.0
        turned.worker._send_heartbeat()
        (said,) = turned.turn()
        assert isinstance(said.message, Heartbeat)
        return said.message

    assert beat().device_memory is None
    turned.worker._device = torch.device("cuda:1")
    asked: list[torch.device] = []

    def told(value: object) -> Callable[[torch.device], object]:
        return lambda device: (asked.append(device), value)[1]

    monkeypatch.setattr(torch.cuda, "memory_allocated", told(1))
    monkeypatch.setattr(torch.cuda, "memory_reserved", told(2))
    monkeypatch.setattr(torch.cuda, "get_device_properties", told(SimpleNamespace(total_memory=3)))
    assert beat().device_memory == DeviceMemory(allocated=1, reserved=2, total=3)
    assert asked == [torch.device("cuda:1")] * 3


@pytest.mark.parametrize("rows", [50, 7, 2, 1])
def test_rows_that_memory_does_not_suffice_for_are_solved_in_halves(
    turned: Turned, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Until all that was kept has been let go of, and for more than half of the rows even then."""
    encode = Dictionary.encode
    asked: list[int] = []

    def scarce(dictionary: Dictionary, given: torch.Tensor) -> Encoded:
        asked.append(len(given))
        if len(asked) == 1 or len(given) > (rows + 1) // 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(dictionary, given)

    def answer() -> list[np.ndarray]:
        frames.send(turned.channel, Solve(1, Key("encode", "digits", 1, reconstruct=True)), A[:rows])
        (said,) = turned.turn()
        assert isinstance(said.message, Solved)
        return said.arrays

    expected = answer()
    before = turned.worker._cache.get("digits", 1, "float32")
    monkeypatch.setattr(Dictionary, "encode", scarce)
    for array, whole in zip(answer(), expected, strict=True):
        np.testing.assert_array_equal(array, whole)
    assert asked == [rows, *([(rows + 1) // 2, rows // 2] if rows > 1 else [1])]
    assert turned.worker._cache.get("digits", 1, "float32") is not before


@pytest.mark.parametrize("rows", [50, 1])
def test_rows_that_memory_never_suffices_for_are_refused(
    turned: Turned, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    def none_left(dictionary: Dictionary, given: torch.Tensor) -> Encoded:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Dictionary, "encode", none_left)
    frames.send(turned.channel, Solve(1, Key("encode", "digits", 1)), A[:rows])
    (said,) = turned.turn()
    assert isinstance(said.message, Failed)
    assert said.message.error == "DeviceOutOfMemory"
    assert said.message.detail.endswith("send fewer rows at a time (RuntimeError: CUDA error: out of memory)")


DEVICE_ERRORS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
]


@pytest.mark.parametrize("error", DEVICE_ERRORS, ids=str)
def test_an_error_of_the_device_ends_the_worker(
    turned: Turned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(Dictionary, "encode", failing)
    frames.send(turned.channel, Solve(1, Key("encode", "digits", 1)), A)
    with pytest.raises(DeviceFailed, match="task 1"):
        turned.turn()
    frames.send(turned.channel, fit(tmp_path / "A", None))
    monkeypatch.setattr(Fitting, "advance", failing)
    with pytest.raises(DeviceFailed, match="task job"):
        turned.turn()


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("CUDA error"), KeyError(1)])
def test_other_errors_do_not(error: Exception) -> None:
    assert not device.has_failed(error)


def test_a_device_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(DeviceFailed, match="cuda:99 cannot be used"):
        device.named("cuda:99")


def test_who_fails_on_the_first_of_several_gpus_tells_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(DeviceFailed, match="cuda:0 cannot be used") as failed:
        device.named("auto")
    assert failed.value.devices == 3


def test_workers_on_the_cpu_have_a_number_and_their_part_of_the_cores(store: Store) -> None:
    count = torch.get_num_threads()
    ours, theirs = channel()
    with ours, theirs:
        frames.send(ours, Configure(str(store.root), "cpu:1", 2**20, 60.0, among=64))
        try:
            worker = Worker(theirs)
            assert torch.get_num_threads() == 1
            assert (worker._name, worker._device) == ("cpu:1", torch.device("cpu"))
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
            torch.set_num_threads(count)


@pytest.fixture
def loads(turned: Turned, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions that the worker reads from the store, as it does."""
    read: list[int] = []
    load = turned.worker._store.load

    def counted(name: str, version: int) -> np.ndarray:
        read.append(version)
        return load(name, version)

    monkeypatch.setattr(turned.worker._store, "load", counted)
    return read


def test_a_dictionary_is_loaded_for_the_first_of_many_requests(turned: Turned, loads: list[int]) -> None:
    for number in range(50):
        frames.send(turned.channel, Solve(number, Key("encode", "digits", 1, reconstruct=number % 2 == 0)), A)
        frames.send(turned.channel, Solve(100 + number, Key("decode", "digits", 1)), A[:, :2].copy())
    said = turned.turn()
    assert len(said) == 100
    assert all(isinstance(frame.message, Solved) for frame in said)
    assert loads == [1]


def test_a_device_is_warmed_before_the_worker_is_ready(turned: Turned, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stub in its place; what it lacks memory for is left, and a device that has failed ends the worker."""
    asked: list[torch.device] = []
    errors: list[Exception] = [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: 700"),
        RuntimeError("Failed to find C compiler"),
    ]

    def warm_on(device: torch.device) -> None:
        asked.append(device)
        if device.type == "cuda":
            raise errors.pop(0)

    monkeypatch.setattr("app.worker.loop.warm", lambda: None)
    monkeypatch.setattr("app.worker.loop.warm_on", warm_on)
    monkeypatch.setattr(turned.worker, "_serve_what_waits", lambda: (_ for _ in ()).throw(EOFError))
    with pytest.raises(EOFError):
        turned.worker.run()
    turned.worker._device = torch.device("cuda:0")
    with pytest.raises(EOFError):
        turned.worker.run()
    for told in ("700", "C compiler"):
        with pytest.raises(DeviceFailed, match=told):
            turned.worker.run()
    assert [device.type for device in asked] == ["cpu", "cuda", "cuda", "cuda"]
    assert [type(frame.message) for frame in turned.said()] == [Ready, Ready]


def test_who_comes_before_kernels_are_compiled_is_told_when_to_come_back(
    turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "warm_encodes", lambda dtype: time.sleep(30.0))
    monkeypatch.setattr(loop, "LOADING_SECONDS", 0.01)
    frames.send(turned.channel, Solve(1, Key("encode", "digits", 1, dtype="float64")), A.astype(np.float64))
    (said,) = turned.turn()
    assert isinstance(said.message, Failed)
    answer = answer_to(error_by_name(said.message.error, said.message.detail))
    assert (answer.problem.status, answer.problem.type) == (503, "worker-unavailable")
    assert int(answer.headers["Retry-After"]) >= 10  # it may take a minute: who asks again soon may give up too soon


def test_each_dtype_has_a_preparation_of_its_own(turned: Turned, loads: list[int]) -> None:
    warm_encodes(torch.float64)  # else the first request may find the kernels being compiled
    dtypes: list[Dtype] = ["float32", "float64"]
    codes = {}
    for dtype in dtypes * 2:
        frames.send(turned.channel, Solve(1, Key("encode", "digits", 1, True, dtype)), A.astype(dtype))
        (said,) = turned.turn()
        assert isinstance(said.message, Solved)
        codes[dtype], converged, errors = said.arrays
        assert (codes[dtype].dtype, errors.dtype) == (dtype, dtype)
        assert converged.all()
    assert loads == [1, 1]
    assert len(turned.worker._cache) == 2
    exact = np.linalg.lstsq(D.T.astype(np.float64), A.T.astype(np.float64), rcond=None)[0].T  # all positive here
    assert np.abs(codes["float64"] - exact).max() < 1e-12
    assert np.abs(codes["float32"] - exact).max() > 1e-12


def test_what_a_dictionary_comes_to_take_is_counted() -> None:
    """One on a GPU, once a row had to be ended by the CPU."""
    made: dict[str, Any] = {name: SimpleNamespace(nbytes=4 * MIB) for name in "abc"}
    cache = DictionaryCache(10 * MIB, lambda name, version, dtype: made[name])
    for name in "ab":
        cache.get(name, 1, "float32")
    made["b"].nbytes = 7 * MIB
    assert (len(cache), cache.nbytes) == (2, 11 * MIB + 2 * OVERHEAD_BYTES)
    cache.get("c", 1, "float32")
    assert (len(cache), cache.nbytes) == (1, 4 * MIB + OVERHEAD_BYTES)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_what_was_used_longest_ago_goes_first() -> None:
    made: list[str] = []

    def prepare(name: str, version: int, dtype: str) -> Any:
        made.append(name)
        return SimpleNamespace(nbytes=4 * MIB)

    cache = DictionaryCache(9 * MIB, prepare)  # of room for two
    for name in "abacab":
        cache.get(name, 1, "float32")
    assert made == ["a", "b", "c", "b"]


def test_what_is_kept_is_counted_once_however_much_there_is() -> None:
    """Each measured anew at each request for another, thousands held up every encode for as many milliseconds."""
    asked: Counter[int] = Counter()

    class Small:
        def __init__(self, number: int) -> None:
            self.number = number

        @property
        def nbytes(self) -> int:
            asked[self.number] += 1
            return 100

    cache = DictionaryCache(50 * (100 + OVERHEAD_BYTES), lambda _, version, __: Small(version))  # type: ignore[arg-type, return-value]
    for version in range(200):
        cache.get("a", version, "float32")
    assert (len(cache), cache.nbytes) == (50, 50 * (100 + OVERHEAD_BYTES))
    assert max(asked.values()) <= 3


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.4])
def test_a_turn_ends_whatever_rows_cost(seconds: float) -> None:
    """Of a hundred rows all are answered, or as many as fit, and in the order of what was asked."""

    def answer(rows: np.ndarray) -> list[np.ndarray]:
        asked.append(len(rows))
        time.sleep(seconds * len(rows))
        return [2 * rows, rows]

    asked: list[int] = []
    rows = np.arange(100.0)[:, None]
    begun = time.monotonic()
    doubled, same = in_a_turn(rows, answer, 2)
    taken = time.monotonic() - begun
    np.testing.assert_array_equal(same, rows[: len(same)])
    np.testing.assert_array_equal(doubled, 2 * same)
    assert asked[0] == 2
    assert all(later <= GROWTH * earlier for earlier, later in pairwise(asked))
    assert sum(asked) == len(same)
    assert len(same) == 100 if seconds == 0 else taken < TURN_SECONDS + 1  # of which one for a busy machine


def test_a_turn_for_no_rows() -> None:
    assert len(in_a_turn(np.empty((0, 3)), lambda rows: [rows], 5)[0]) == 0


@pytest.mark.parametrize("scale", [1e-310, 1e-170, 1, 1e160, 1e300])
def test_errors_are_relative_at_any_scale(scale: float) -> None:
    A = torch.tensor([[3.0, 0, 2, 1], [0, 0, 0, 0]], dtype=torch.float64) * scale
    errors = _relative_errors(A, A / 2)
    torch.testing.assert_close(errors, torch.tensor([0.5, 0], dtype=torch.float64), rtol=1e-6, atol=0)
