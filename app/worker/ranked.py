"""One rank of a fit whose rows are shared out over several processes.

All ranks run this, over the same steps; rank 0 alone tells what comes of it. Its checkpoint is D: Z lies in pieces on
all ranks, and a fit that goes on takes the best Z for that D. It may so end at another dictionary than one that was
never interrupted, though at about the same loss.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch._C._distributed_c10d import Store as Meeting
from torch.distributed.rendezvous import rendezvous

import core.threads
from app.errors import StoreUnavailable
from app.store import checkpoint_file
from app.store.checkpoint_file import CheckpointUnusable, Metadata
from app.store.disk import fsync_directory
from app.store.references import Reference
from app.store.store import Store
from app.worker import frames
from app.worker.conversion import PROGRESS_SECONDS, fitted_of, mapped, nmf_of, rows_of
from app.worker.messages import CheckpointPlace, Configure, Fit, FitBegun, FitProgress, Message
from app.worker.outcomes import failed
from app.worker.watch import EXIT_CODE, Watch
from core import FitSteps, ProcessGroup
from core.errors import RankLost
from core.figures import figure_steps
from core.inputs import tensor
from core.metrics import codes_to_measure_steps, measure_steps
from core.progress import run

logger = logging.getLogger("dictserve.worker")

Tell = Callable[..., None]


def serve(channel: socket.socket, rank: int, size: int, meeting: str) -> None:
    """The rank of a service's job, which tells of it by the channel and ends with it."""
    configuration, fit = frames.receive(channel).message, frames.receive(channel).message
    if not isinstance(configuration, Configure) or not isinstance(fit, Fit):
        raise TypeError("the first messages to a rank must be Configure and Fit")

    def tell(message: Message, *arrays: np.ndarray) -> None:
        if rank == 0:
            frames.send(channel, message, *arrays)

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whatever its name resolves to
    device = device_of(configuration.device, rank, size)
    store = FileStore(meeting, size)
    try:
        with joined(store, rank, size, size, device, timedelta(seconds=configuration.patience_seconds)) as ranks:
            models = Store(Path(configuration.store), configuration.objects, was_opened=True)
            RankedFit(fit, ranks, device, models, tell).run(mapped(fit)[share_of(fit.rows, rank, size)])
    except RankLost as error:
        logger.error("job %s: %s", fit.job, error)  # whoever is at fault has told it, or is dead
        os._exit(EXIT_CODE)  # torch's threads may still wait for the lost one
    except Exception as error:
        frames.send(channel, failed(fit.job, error))
        os._exit(1)


@contextmanager
def joined(
    store: Meeting, rank: int, size: int, local_size: int, device: torch.device, patience: timedelta
) -> Iterator[ProcessGroup]:
    """Within: one of the ranks that meet at the store, with its share of this machine's cores, and watched.

    Args:
        local_size: how many of the ranks are on this machine.
        patience: how long ranks that are alive may wait for each other.

    Raises:
        RankLost: another one has ended, or does not come.
    """
    core.threads.limit_to_share_of_cores(local_size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except RuntimeError as error:  # torch's, whatever keeps the ranks apart
        raise RankLost(f"rank {rank} of {size} has not met the others: {error}") from error
    watch = Watch(store.clone(), rank, size)  # type: ignore[attr-defined] # torch has it, its stubs do not
    ranks = ProcessGroup(device)
    try:
        yield ranks
    finally:
        watch.end()
    ranks.all_sum(0)  # all have come so far: none needs another any more
    dist.destroy_process_group()


def joined_by_environment(
    rank: int, size: int, local_size: int, device: torch.device, patience: timedelta
) -> AbstractContextManager[ProcessGroup]:
    """The same, for ranks that torchrun has started or whoever else tells of them in its words."""
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=patience))
    except (RuntimeError, ValueError) as error:  # of names that do not resolve, of what the environment lacks
        raise RankLost(f"rank {rank} of {size}, as torchrun would start it, meets no others: {error}") from error
    return joined(store, rank, size, local_size, device, patience)


def device_of(told: str, local_rank: int, local_size: int) -> torch.device:
    """A GPU of its own for each rank on this machine, of those that are named where any are, else the CPU for all."""
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    named = there if told in ("auto", "cuda") else told.split(",")
    if told.startswith("cpu") or len(named) < local_size:
        return torch.device("cpu")
    device = torch.device(named[local_rank])
    torch.cuda.set_device(device)
    return device


def share_of(n_rows: int, rank: int, size: int) -> slice:
    return slice(n_rows * rank // size, n_rows * (rank + 1) // size)


class RankedFit:
    """The fit of one rank's rows."""

    def __init__(self, fit: Fit, ranks: ProcessGroup, device: torch.device, store: Store, tell: Tell) -> None:
        self._fit = fit
        self._ranks = ranks
        self._device = device
        self._store = store
        self._tell = tell
        self._begun = time.monotonic()
        self._iteration_before = 0  # the iterations, losses and seconds of the attempts before
        self._losses_before = np.zeros(0)
        self._seconds_before = 0.0

    def run(self, A: np.ndarray) -> None:
        fit, place = self._fit, self._fit.checkpoint
        nmf = nmf_of(fit, self._device)
        start = self._kept(place)
        if start is None and fit.start is not None:
            start = self._store.load(*Reference.parse(fit.start).pinned)
        steps = nmf.fit_steps(A, fit.max_iter - self._iteration_before, D=start, ranks=self._ranks)
        self._tell(FitBegun(fit.job, self._iteration_before, self._seconds_before), self._losses_before)
        next_telling = self._begun
        next_checkpoint = self._begun + (place.interval_seconds if place else 0.0)
        latest = core.FitProgress(0, fit.max_iter)
        for latest in steps:
            if time.monotonic() >= next_telling:
                next_telling = time.monotonic() + PROGRESS_SECONDS
                self._tell(self._progress(latest))
            if place is not None and time.monotonic() >= next_checkpoint and self._keep(steps, place):
                next_checkpoint = time.monotonic() + place.interval_seconds
        Z = run(self._ranks.agreed(codes_to_measure_steps(nmf, _tensor(A))))
        measured = run(measure_steps(_tensor(A), Z, nmf.get_dictionary(), self._ranks))
        measured = replace(measured, figures=run(figure_steps(Z, measured.figures, self._ranks)))
        self._tell(self._progress(latest))
        losses = np.concatenate([self._losses_before, nmf.loss_history_])
        self._tell(*fitted_of(fit, nmf, measured, losses, self._seconds()))

    def _kept(self, place: CheckpointPlace | None) -> np.ndarray | None:
        """The D of a checkpoint, which every rank reads; None where there is none that can be used."""
        if place is None or not os.path.exists(place.path):
            return None
        try:
            checkpoint = run(checkpoint_file.read_steps(Path(place.path)))
            D, iteration = checkpoint.arrays["D"], int(checkpoint.metadata.numbers["iteration"])
            if checkpoint.metadata.job != self._fit.job or D.shape != (self._fit.nb_concepts, self._fit.n_features):
                raise CheckpointUnusable("it is that of another fit")
            self._losses_before = checkpoint.arrays["losses"]
        except (CheckpointUnusable, KeyError, OSError) as error:
            logger.warning("job %s starts again, for its checkpoint cannot be used: %s", self._fit.job, error)
            return None
        self._iteration_before, self._seconds_before = iteration, checkpoint.metadata.seconds
        if self._ranks.rank == 0:
            logger.info("job %s goes on from the dictionary after iteration %d", self._fit.job, iteration)
        return D

    def _keep(self, steps: FitSteps, place: CheckpointPlace) -> bool:
        """Write a checkpoint, on rank 0; False in the midst of an iteration."""
        state = steps.state()
        if state is None:
            return False
        if self._ranks.rank > 0:
            return True
        losses = np.concatenate([self._losses_before, torch.as_tensor(state["losses"]).numpy()])
        tensors = {"D": torch.as_tensor(state["D"]), "losses": torch.from_numpy(losses)}
        metadata = Metadata(
            format=checkpoint_file.FORMAT,
            job=self._fit.job,
            of={},  # the job's, whose data and parameters never change
            numbers={"iteration": float(len(losses))},
            seconds=self._seconds_before + self._seconds(),
        )
        try:
            staged = Path(place.staged)
            with staged.open("wb", buffering=0) as file:
                rows = {name: rows_of(tensor) for name, tensor in tensors.items()}
                checkpoint_file.write(file, metadata, rows, stopped=lambda: False)
                os.fsync(file.fileno())
            staged.replace(place.path)
            fsync_directory(Path(place.path).parent)
            if self._store.bucket is not None and place.shared_as is not None:
                self._store.bucket.upload(Path(place.path), place.shared_as)
                for earlier in place.replaces:
                    self._store.bucket.delete(earlier)
        except (OSError, StoreUnavailable) as error:
            logger.warning("job %s goes on without a checkpoint, for none can be written: %s", self._fit.job, error)
        return True

    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    def _progress(self, told: core.FitProgress) -> FitProgress:
        loss = told.loss
        if loss is None and len(self._losses_before):
            loss = float(self._losses_before[-1])
        return FitProgress(
            self._fit.job,
            self._iteration_before + told.iteration,
            self._fit.max_iter,
            loss,
            told.relative_error,
            told.kkt_residual,
            self._seconds(),
        )


def _tensor(A: np.ndarray) -> torch.Tensor:
    return tensor(np.ascontiguousarray(A, np.float32))
