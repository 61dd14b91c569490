"""The fit under way in the worker: advanced a slice at a time by the loop, kept in checkpoints, ended or stopped.

A checkpoint is written by a thread of its own, between two iterations. The fit waits until its state has been copied
into the file, while the loop goes on serving; it does not wait until the disk has it.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

import core
from app.errors import StoreUnavailable
from app.store import checkpoint_file
from app.store.bucket import Bucket
from app.store.checkpoint_file import CheckpointUnusable, Metadata, Rows
from app.store.disk import fsync_directory
from app.store.references import Reference
from app.store.store import Store
from app.worker.conversion import PROGRESS_SECONDS, fitted_of, mapped, nmf_of, rows_of
from app.worker.file_rows import FileRows
from app.worker.messages import CheckpointPlace, Files, Fit, FitBegun, FitProgress, FitStopped
from app.worker.pace import Pace
from core import NMF
from core.batches import opened
from core.checks import activations_form
from core.errors import InvalidParameter
from core.figures import figure_steps
from core.metrics import Measured, codes_to_measure_steps, measure_online_steps, measure_steps
from core.online import batch_rows_for
from core.state import State

logger = logging.getLogger("dictserve.worker")

# Of a fit's time, that it may wait for its checkpoints at most: where they are large they are written less often.
WAITING_SHARE = 0.05
# Of what is free on the disk, that a checkpoint may take at most: the fit's dictionary and uploads need room, too.
FREE_SHARE = 0.5


class Fitting:
    """One fit. ``send`` tells the service what comes of it.

    Attributes:
        waits: whether there is nothing to advance just now, so that the loop need not turn for it.
    """

    def __init__(self, fit: Fit, device: torch.device, store: Store, send: Callable[..., None]) -> None:
        self.job = fit.job
        self.waits = False
        self._fit = fit
        self._device = device
        self._store = store
        self._send = send
        self._begun = time.monotonic()
        self._seconds_before = 0.0  # that the fit had taken at the checkpoint from which it goes on
        self._stopping = False
        self._writing: Writing | None = None
        self._kept = 0  # the iteration of the last checkpoint
        self._next_checkpoint = self._begun + (fit.checkpoint.interval_seconds if fit.checkpoint else 0.0)
        self._pace = Pace(device)
        self._slices = self._run()

    def advance(self) -> bool:
        """Do a slice, if the device has come that far; False where the fit has come to its end."""
        self.waits = self._pace.is_too_far()
        if self.waits:
            return True
        try:
            next(self._slices)
        except StopIteration:
            return False
        self._pace.handed_over()
        return True

    def stop(self) -> None:
        """Have it end after this iteration, with a checkpoint. Past its last, it goes on to its end."""
        self._stopping = True

    def close(self) -> None:
        """Leave it, with nothing more written."""
        if self._writing is not None:
            self._writing.abandon()
        self._slices.close()

    def _run(self) -> Generator[None, None, None]:
        fit = self._fit
        data = Mapped(fit) if fit.online is None else InPlace(fit, fit.online)
        nmf = nmf_of(fit, self._device)
        steps = (yield from self._resumed(nmf, data)) or self._from_start(nmf, data)
        latest = None
        next_telling = self._begun
        for latest in steps:
            if time.monotonic() >= next_telling:
                next_telling = time.monotonic() + PROGRESS_SECONDS
                self._send(self._progress(latest))
            yield
            if self._stopping or self._is_due():
                yield from self._keep(steps, latest.iteration)
            if self._stopping and (fit.checkpoint is None or latest.iteration == self._kept):
                yield from self._settled()
                self._send(FitStopped(self.job))
                return
        measured = yield from data.measure(nmf)
        if latest is not None:
            self._send(self._progress(latest))
        if self._writing is not None:
            self._writing.abandon()
        losses = np.array(nmf.loss_history_, np.float64)
        self._send(*fitted_of(fit, nmf, measured, losses, self._seconds()))

    def _from_start(self, nmf: NMF, data: "Data") -> core.FitSteps:
        start = self._fit.start
        D = None if start is None else self._store.load(*Reference.parse(start).pinned)
        steps = data.steps(nmf, D, None)
        self._send(FitBegun(self.job, 0, 0.0), np.zeros(0))
        return steps

    def _resumed(self, nmf: NMF, data: "Data") -> Generator[None, None, core.FitSteps | None]:
        """The fit from its checkpoint on; None where there is none that can be used."""
        place = self._fit.checkpoint
        if place is None or not os.path.exists(place.path):
            return None
        try:
            checkpoint = yield from checkpoint_file.read_steps(Path(place.path))
            _check_of(checkpoint.metadata, self._fit)
            tensors = {name: torch.from_numpy(array) for name, array in checkpoint.arrays.items()}
            steps = data.steps(nmf, None, {**checkpoint.metadata.numbers, **tensors})
        except (CheckpointUnusable, InvalidParameter, OSError) as error:
            logger.warning("job %s starts again, for its checkpoint cannot be used: %s", self.job, error)
            return None
        self._kept = int(checkpoint.metadata.numbers["iteration"])
        self._seconds_before = checkpoint.metadata.seconds
        self._send(FitBegun(self.job, self._kept, self._seconds_before), checkpoint.arrays["losses"])
        logger.info("job %s goes on from its checkpoint after iteration %d", self.job, self._kept)
        return steps

    # -- checkpoints --------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        on_its_way = self._writing is not None and not self._writing.ended.is_set()
        return self._fit.checkpoint is not None and time.monotonic() >= self._next_checkpoint and not on_its_way

    def _keep(self, steps: core.FitSteps, iteration: int) -> Generator[None, None, None]:
        """Begin a checkpoint where the fit is between two iterations, and wait until its state may change again."""
        place = self._fit.checkpoint
        if place is None or iteration == self._kept or (state := steps.state()) is None:
            return
        yield from self._settled()
        begun = time.monotonic()
        metadata = Metadata(
            format=checkpoint_file.FORMAT,
            job=self.job,
            of=_of(self._fit),
            numbers={name: float(x) for name, x in state.items() if not isinstance(x, torch.Tensor)},
            seconds=self._seconds_before + self._seconds(),
        )
        tensors = {name: rows_of(x) for name, x in state.items() if isinstance(x, torch.Tensor)}
        self._kept = iteration
        self._writing = Writing(place, metadata, tensors, self._store.bucket)
        yield from self._until(self._writing.copied)
        waited = time.monotonic() - begun
        self._next_checkpoint = time.monotonic() + max(place.interval_seconds, waited / WAITING_SHARE)

    def _settled(self) -> Generator[None, None, None]:
        """Wait for the checkpoint that is on its way, if one is."""
        if self._writing is not None:
            yield from self._until(self._writing.ended)

    def _until(self, event: threading.Event) -> Generator[None, None, None]:
        while not event.is_set():
            self.waits = True
            yield

    # -- telling ------------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    def _progress(self, told: core.FitProgress) -> FitProgress:
        return FitProgress(
            self.job,
            told.iteration,
            told.max_iter,
            told.loss,
            told.relative_error,
            told.kkt_residual,
            self._seconds(),
        )


class Data(Protocol):
    """The activations of a fit, and how they are fitted."""

    def steps(self, nmf: NMF, D: np.ndarray | None, state: State | None) -> core.FitSteps: ...

    def measure(self, nmf: NMF) -> Generator[None, None, Measured]:
        """Metrics and figures of the dictionary, once it is fitted."""


class Mapped:
    """One file, all of it at once."""

    def __init__(self, fit: Fit) -> None:
        self._max_iter = fit.max_iter
        self._A = torch.from_numpy(mapped(fit))

    def steps(self, nmf: NMF, D: np.ndarray | None, state: State | None) -> core.FitSteps:
        return nmf.fit_steps(self._A, max_iter=self._max_iter, D=D, state=state)

    def measure(self, nmf: NMF) -> Generator[None, None, Measured]:
        Z = yield from codes_to_measure_steps(nmf, self._A)
        measured = yield from measure_steps(self._A, Z, nmf.get_dictionary())
        return replace(measured, figures=(yield from figure_steps(Z, measured.figures)))


class InPlace:
    """Many files, a batch of rows at a time."""

    def __init__(self, fit: Fit, files: Files) -> None:
        self._epochs = files.epochs
        self._rows = FileRows(files, fit.n_features)

    def steps(self, nmf: NMF, D: np.ndarray | None, state: State | None) -> core.FitSteps:
        return nmf.fit_online_steps(self._rows, self._epochs, D=D, state=state)

    def measure(self, nmf: NMF) -> Generator[None, None, Measured]:
        D = nmf.get_dictionary()
        batches = opened(self._rows, activations_form(D.shape[1]), batch_rows_for(D.shape[1], len(D)))
        measured = yield from measure_online_steps(batches, D)
        self._rows.check_scale()  # by now all rows have been read
        return measured


class Writing:
    """A checkpoint on its way to the disk, by a thread of its own.

    Attributes:
        copied: set once the state's tensors are not read any more.
        ended: set once it is durable in its place, or was given up.
    """

    def __init__(
        self, place: CheckpointPlace, metadata: Metadata, tensors: dict[str, Rows], bucket: Bucket | None = None
    ) -> None:
        self.copied = threading.Event()
        self.ended = threading.Event()
        self._place = place
        self._bucket = bucket
        self._metadata = metadata
        self._tensors = tensors
        self._abandoned = False
        self._renaming = threading.Lock()
        try:
            threading.Thread(target=self._write, name="checkpoint", daemon=True).start()
        except RuntimeError as error:  # the system has no thread to spare
            self._give_up(error)

    def abandon(self) -> None:
        """From now on nothing comes into its place. An object that is on its way comes, unless its job has ended by
        then: the job may go on from it."""
        with self._renaming:
            self._abandoned = True

    def _write(self) -> None:
        staged, path = Path(self._place.staged), Path(self._place.path)
        try:
            self._require_room(staged.parent)
            with staged.open("wb", buffering=0) as file:
                checkpoint_file.write(file, self._metadata, self._tensors, lambda: self._abandoned)
                self._tensors = {}
                self.copied.set()
                if not self._abandoned:
                    os.fsync(file.fileno())
            with self._renaming:
                if not self._abandoned:
                    staged.replace(path)
                    fsync_directory(path.parent)
            _remove(lambda: staged.unlink(missing_ok=True))  # there only where it did not come to its place
            self._share(path)
            self._leave()
        except Exception as error:  # whatever it is, the fit goes on without
            _remove(lambda: staged.unlink(missing_ok=True))
            self._give_up(error)

    def _share(self, path: Path) -> None:
        """Make it an object, too, where others may go on from it; they go on from an older one without."""
        bucket, key = self._bucket, self._place.shared_as
        if bucket is None or key is None or self._abandoned:
            return
        try:
            bucket.upload(path, key)
        except StoreUnavailable as error:
            logger.warning("a checkpoint of job %s is on this machine alone: %s", self._metadata.job, error)
            return
        if self._abandoned and not path.exists():  # the service has removed what there was of it: its job has ended
            _remove(partial(bucket.delete, key))
        for earlier in self._place.replaces:
            _remove(partial(bucket.delete, earlier))

    def _give_up(self, error: Exception) -> None:
        logger.warning("job %s goes on without a checkpoint, for none can be written: %s", self._metadata.job, error)
        self._leave()

    def _leave(self) -> None:
        self._tensors = {}
        self.copied.set()
        self.ended.set()

    def _require_room(self, directory: Path) -> None:
        needed, free = checkpoint_file.size(self._metadata, self._tensors), shutil.disk_usage(directory).free
        if needed > FREE_SHARE * free:
            raise OSError(f"it takes {needed} bytes of the store's disk, which has {free} to spare")


def _remove(remove: Callable[[], None]) -> None:
    try:
        remove()
    except (OSError, StoreUnavailable) as error:
        logger.warning("a checkpoint that nobody needs stays until it can be removed: %s", error)


def _of(fit: Fit) -> dict[str, Any]:
    """What a checkpoint must be of to serve this fit."""
    told: dict[str, Any] = msgspec.to_builtins(fit)
    return {name: x for name, x in told.items() if name not in ("type", "path", "data_offset", "checkpoint")}


def _check_of(metadata: Metadata, fit: Fit) -> None:
    expected = _of(fit)
    for name in expected.keys() | metadata.of.keys():
        if metadata.of.get(name) != expected.get(name):
            found, wanted = metadata.of.get(name), expected.get(name)
            raise CheckpointUnusable(f"it is that of a fit with {name} {found!r}; this one has {wanted!r}")
