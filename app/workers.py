"""The workers: one for each device, as one thing to start, stop and ask."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat

from app.settings import Settings
from app.supervisor import Supervisor
from app.worker.launch import Launched

Begin = Callable[[Supervisor], None]


class Workers:
    """A supervisor for each of ``settings.devices``. All methods belong to one event loop.

    Which GPUs ``auto`` means is torch's to say, thus the first worker's: the files in /dev tell neither whether torch
    can use what they stand for, nor which of them CUDA_VISIBLE_DEVICES leaves, or into how many parts. The workers of
    the other GPUs join once the first one has told of them.

    Args:
        supervisors: take the place of those of the settings (tests).
        first: the first worker's process, where it has been launched already.
    """

    def __init__(
        self, settings: Settings, supervisors: Sequence[Supervisor] = (), first: Launched | None = None
    ) -> None:
        devices = settings.device_names
        self._settings = settings
        self._all = list(supervisors) or [
            Supervisor(settings, device, len(devices), launched)
            for device, launched in zip(devices, chain([first], repeat(None)), strict=False)
        ]
        self._begins: list[Begin] = []
        self._finding: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Supervisor]:
        return iter(list(self._all))

    def each(self, begin: Begin) -> None:
        """Call this with each worker: those that there are, and those that join."""
        self._begins.append(begin)
        for worker in self:
            begin(worker)

    @property
    def is_ready(self) -> bool:
        """Whether one of them takes work."""
        return any(worker.is_ready for worker in self._all)

    async def wait_ready(self) -> None:
        """Wait for one of them."""
        waits = [asyncio.ensure_future(worker.wait_ready()) for worker in self]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def start(self) -> None:
        for worker in self:
            await worker.start()
        if self._settings.devices == "auto":
            self._finding = asyncio.create_task(self._find_others(), name="devices")

    async def stop(self) -> None:
        if self._finding is not None:
            self._finding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._finding
        await asyncio.gather(*(worker.stop() for worker in self))

    async def _find_others(self) -> None:
        first = self._all[0]
        await first.wait_counted()  # its own may have failed, and the others be well
        for number in range(1, first.devices):
            worker = Supervisor(self._settings, f"cuda:{number}", first.devices)
            await worker.start()
            self._all.append(worker)
            for begin in self._begins:
                begin(worker)
