"""How far the host may be ahead of a GPU with a fit.

What is handed over to a GPU returns at once; what is asked of it, the loss at the end of an iteration, waits for all
that was handed over before. Of a large fit that is an iteration, and seconds in which the worker would hear of
nothing. So a slice is handed over once the GPU has done all but one of those before: it is never without work, and
nothing that is asked of it waits longer than two of them take, some tens of milliseconds each (core/chunks.py).
"""

from collections import deque

import torch

SLICES_AHEAD = 2


class Pace:
    """Of the slices of one fit, on the stream that is the device's current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._under_way: deque[torch.cuda.Event] = deque()  # the ends of slices, in the order in which they come

    def handed_over(self) -> None:
        """A slice has been; the CPU has done it."""
        if self._device.type == "cuda":
            self._under_way.append(torch.cuda.current_stream(self._device).record_event())

    def is_too_far(self) -> bool:
        """Whether the next slice is to wait."""
        while self._under_way and self._under_way[0].query():  # type: ignore[no-untyped-call]
            self._under_way.popleft()
        return len(self._under_way) >= SLICES_AHEAD
