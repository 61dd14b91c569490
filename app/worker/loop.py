"""The worker's loop: one thread that serves what waits, advances the fit by a slice, and again.

A fit therefore never holds up an encode for longer than a slice, nothing needs a lock, and a cancel takes effect
between two slices. The heartbeat comes from this same loop: while it comes, the loop turns.
"""

import gc
import logging
import select
import socket
import threading
import time
from pathlib import Path

import numpy as np
import torch

from app.errors import StoreAway, StoreUnavailable
from app.outage import Outage
from app.store.store import Store
from app.worker import device, frames
from app.worker.cache import DictionaryCache
from app.worker.device import DeviceFailed
from app.worker.fitting import Fitting
from app.worker.messages import (
    CancelFit,
    Configure,
    Dtype,
    Failed,
    Fit,
    FitCancelled,
    Heartbeat,
    Message,
    Ready,
    Solve,
    Solved,
    StopFit,
)
from app.worker.outcomes import failed, software
from app.worker.solving import Solving
from app.worker.transfers import Transfers
from core import Dictionary
from core.threads import limit_to_share_of_cores
from core.warm import warm, warm_encodes, warm_on

logger = logging.getLogger("dictserve.worker")

# However fast encodes come, a fit gets its slice and the supervisor its heartbeat after so many.
FRAMES_A_TURN = 8
# However long these take, a fit has this share of their time: at least a slice.
FIT_SHARE = 0.25
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}
LOADING_SECONDS = 2.0  # that kernels take which were compiled before, and more
WAITING_SECONDS = 0.005  # between two looks whether a fit that waits can go on


class Worker:
    """Serves one channel until its other side is gone.

    Raises:
        DeviceFailed: by any method: the device cannot be used any more, and the process is to end.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        first = frames.receive(channel).message
        if not isinstance(first, Configure):
            raise TypeError(f"the first message must be Configure, not {type(first).__name__}")
        self._device, self._name, self._devices = device.named(first.device)
        if (among := max(first.among, self._devices)) > 1:
            limit_to_share_of_cores(among)
        self._store = Store(Path(first.store), first.objects, was_opened=True)
        self._unread: dict[str, Outage] = {}  # of the dictionaries that cannot be
        self._cache = DictionaryCache(first.cache_bytes, self._prepare)
        self._transfers = Transfers(self._device)
        self._solving = Solving(self._cache, self._device, self._transfers)
        self._heartbeat_seconds = first.heartbeat_seconds
        self._next_heartbeat = 0.0
        self._float64 = _Kernels(torch.float64)
        self._fit: Fitting | None = None

    def run(self) -> None:
        warm()
        self._warm_device()
        gc.freeze()  # what is there now stays: a collection that looked through it would hold encodes up
        self._send(Ready(self._name, software(), self._devices))
        while True:
            self._advance_fit_for(FIT_SHARE * self._serve_what_waits())
            self._send_heartbeat()

    def _warm_device(self) -> None:
        """Before there are requests: it compiles for seconds, during which a worker that served would look dead."""
        try:
            warm_on(self._device)
        except Exception as error:
            lacks_memory = isinstance(error, torch.OutOfMemoryError)
            if device.has_failed(error) or (self._device.type == "cuda" and not lacks_memory):
                # What cannot be compiled now (there is no C compiler, or nowhere to keep what it makes) never can.
                why = f"{self._name} cannot be used: {type(error).__name__}: {error}"
                raise DeviceFailed(why, self._devices) from error
            logger.warning("what %s is to do was not compiled in advance", self._name, exc_info=error)

    def _serve_what_waits(self) -> float:
        """Handle the frames that are there; with no fit to get on with, wait for one (or for a heartbeat's time).
        Returns the seconds that handling took."""
        if self._fit is None:
            patience = max(0.0, self._next_heartbeat - time.monotonic())
        else:
            patience = WAITING_SECONDS if self._fit.waits else 0.0
        taken = 0.0
        for _ in range(FRAMES_A_TURN):
            if not select.select([self._channel], [], [], patience)[0]:
                break
            begun = time.monotonic()
            self._handle_next()
            taken += time.monotonic() - begun
            patience = 0.0
        return taken

    def _handle_next(self) -> None:
        try:
            frame = frames.receive(self._channel)
        except frames.Unmapped as error:
            if not isinstance(error.message, Solve):
                raise
            self._send(failed(error.message.id, error))
        else:
            self._handle(frame)

    def _handle(self, frame: frames.Frame) -> None:
        match frame.message:
            case Solve() as solve:
                self._solve(solve, frame.arrays[0])
            case Fit() as fit:
                self._fit = Fitting(fit, self._device, self._store, self._send)
            case CancelFit(job) if self._fit is not None and self._fit.job == job:
                self._leave_fit()
                self._send(FitCancelled(job))
            case StopFit(job) if self._fit is not None and self._fit.job == job:
                self._fit.stop()
            case CancelFit() | StopFit():
                pass  # it ended while the message was on its way, and its end has been told
            case unknown:
                raise TypeError(f"no message of the service's: {type(unknown).__name__}")

    # -- encode and decode --------------------------------------------------------------------------------

    def _solve(self, solve: Solve, rows: np.ndarray) -> None:
        if solve.key.dtype == "float64" and not self._float64.is_ready():
            self._send(Failed(solve.id, "WorkerCompiles", "the kernels for float64 are being compiled"))
            return
        try:
            answer = self._solving.answer(solve.key, rows)
        except Exception as error:
            self._send(failed(solve.id, error))
        else:
            self._send(Solved(solve.id), *answer)

    def _prepare(self, name: str, version: int, dtype: Dtype) -> Dictionary:
        weights = torch.from_numpy(self._load(name, version))
        return self._transfers.prepare(lambda: Dictionary(weights, device=self._device, dtype=DTYPES[dtype]))

    def _load(self, name: str, version: int) -> np.ndarray:
        """From the store. That this cannot be read is told here, once: the service does not log each 503."""
        reference = f"{name}@{version}"
        try:
            weights = self._store.load(name, version)
        except StoreAway:  # which the line to it has told
            raise
        except StoreUnavailable as error:
            outage = Outage(f"{reference} cannot be loaded", logging.WARNING)
            self._unread.setdefault(reference, outage).note(error)
            raise
        if (over := self._unread.pop(reference, None)) is not None:
            over.end()
        return weights

    # -- fit ----------------------------------------------------------------------------------------------

    def _advance_fit_for(self, seconds: float) -> None:
        """By a slice, and by more until so much time is over."""
        until = time.monotonic() + seconds
        while self._fit is not None:
            self._advance_fit()
            if time.monotonic() >= until or (self._fit is not None and self._fit.waits):
                break

    def _advance_fit(self) -> None:
        assert self._fit is not None  # noqa: S101 - the caller looked
        job = self._fit.job
        try:
            if not self._fit.advance():
                self._fit = None
        except Exception as error:
            self._leave_fit()
            self._send(failed(job, error))

    def _leave_fit(self) -> None:
        if self._fit is not None:
            self._fit.close()
        self._fit = None

    # -- telling ------------------------------------------------------------------------------------------

    def _send_heartbeat(self) -> None:
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._heartbeat_seconds
            self._send(Heartbeat(len(self._cache), self._cache.nbytes, device.memory(self._device)))

    def _send(self, message: Message, *arrays: np.ndarray) -> None:
        frames.send(self._channel, message, *arrays)


class _Kernels:
    """Those for encodes in a dtype that few ask for, made at the first request."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._thread: threading.Thread | None = None

    def is_ready(self) -> bool:
        """From the disk cache they are there at once; else a thread compiles them, while the loop goes on."""
        if self._thread is None:
            self._thread = threading.Thread(target=warm_encodes, args=(self._dtype,), daemon=True)
            self._thread.start()
            self._thread.join(LOADING_SECONDS)
        return not self._thread.is_alive()
