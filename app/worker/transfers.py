"""Rows to the device, and what is computed of them back.

On a GPU they go in slices by two lanes in turn: while a slice is computed in one, the next is on its way there in the
other, and the one before on its way back. The host's ends of the copies are pinned, so that the GPU makes them by
itself. A fit hands over more than the GPU has done: lanes do not wait for that, and go before it. Not yet run on
a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch

from core.kernels import URGENT

SLICE_BYTES = 8 << 20  # of rows: a fraction of a millisecond on its way, and enough to be computed well

T = TypeVar("T")

Compute = Callable[[torch.Tensor], Sequence[torch.Tensor]]
Arrived = Callable[[], list[np.ndarray]]  # waits for what is on its way back


class Lane(Protocol):
    def upload(self, rows: np.ndarray) -> torch.Tensor:
        """The rows on the device, once what comes after them in this lane is done."""

    def compute(self, compute: Compute, there: torch.Tensor) -> Arrived:
        """Have it computed, and what it gives copied back."""


class CudaLane:
    """A stream of the GPU's work. Torch's allocators know, for the memory of either side, when a stream is done with
    it: what is let go of here is not given to others before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=URGENT)  # type: ignore[no-untyped-call]

    def prepare(self, make: Callable[[], T]) -> T:
        """What it makes on the device, once it is there: any stream may use it."""
        with torch.cuda.stream(self._stream):
            made = make()
        self._stream.synchronize()
        return made

    def upload(self, rows: np.ndarray) -> torch.Tensor:
        pinned = torch.empty(rows.shape, dtype=torch.from_numpy(rows).dtype, pin_memory=True)
        np.copyto(pinned.numpy(), rows)
        with torch.cuda.stream(self._stream):
            return pinned.to(self._device, non_blocking=True)

    def compute(self, compute: Compute, there: torch.Tensor) -> Arrived:
        with torch.cuda.stream(self._stream):
            coming = []
            for tensor in compute(there):
                pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                coming.append(pinned.copy_(tensor.detach(), non_blocking=True))
            copied = self._stream.record_event()

        def arrived() -> list[np.ndarray]:
            copied.synchronize()
            return [pinned.numpy() for pinned in coming]

        return arrived


class Transfers:
    """The way to one device and back."""

    def __init__(self, device: torch.device) -> None:
        self._lanes = [CudaLane(device) for _ in range(2)] if device.type == "cuda" else None

    def prepare(self, make: Callable[[], T]) -> T:
        """What ``make`` makes on the device, for what is computed `through` here."""
        return make() if self._lanes is None else self._lanes[0].prepare(make)

    def through(self, rows: np.ndarray, compute: Compute) -> list[np.ndarray]:
        """What ``compute`` makes of these rows, each of them by itself, on the device: arrays of as many rows."""
        if self._lanes is None:  # they are there already
            return [_array(tensor) for tensor in compute(torch.from_numpy(rows))]
        return in_lanes(self._lanes, rows, compute, max(1, SLICE_BYTES // max(1, rows[:1].nbytes)))


def in_lanes(lanes: Sequence[Lane], rows: np.ndarray, compute: Compute, slice_rows: int) -> list[np.ndarray]:
    """A slice's copy there is begun before the one ahead of it is computed, since computing may hold up the host;
    what comes back is awaited once the next slice's work has been handed over."""
    slices = [rows[start : start + slice_rows] for start in range(0, len(rows), slice_rows)] or [rows]
    parts: list[list[np.ndarray]] = []
    on_its_way: Arrived | None = None
    there = lanes[0].upload(slices[0])
    for number in range(len(slices)):
        lane, other = lanes[number % 2], lanes[(number + 1) % 2]
        following = other.upload(slices[number + 1]) if number + 1 < len(slices) else None
        arrived = lane.compute(compute, there)
        if on_its_way is not None:
            parts.append(on_its_way())
        on_its_way = arrived
        if following is not None:
            there = following
    assert on_its_way is not None  # noqa: S101 - there is one slice at least
    parts.append(on_its_way())
    return joined(parts)


def joined(parts: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    """The arrays of all parts, one below the other."""
    return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array
