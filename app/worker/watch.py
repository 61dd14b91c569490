"""Whether the ranks of a fit are all alive, whatever each of them is at.

A collective operation that waits for a rank whose machine is gone, or that is stopped, waits for its whole timeout,
which has to be longer than any slice of work. So each rank has a thread that tells of itself every other second,
through the store by which the ranks have met. Rank 0 hears all of them, the others hear rank 0, and a process that
has lost one ends at once.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from torch._C._distributed_c10d import Store

logger = logging.getLogger("dictserve.worker")

BEAT_SECONDS = 2.0
LOST_SECONDS = 15.0  # of silence; the others hear of it a beat later
EXIT_CODE = 75  # of a process that has lost another: EX_TEMPFAIL
LOST = "lost"


class Watch:
    """Beats and listens from now on, until it is ended.

    Args:
        store: a connection of its own: one that waits for something else would hold up its beats.
        lose: called, once, with what has been lost; ends the process.
    """

    def __init__(self, store: Store, rank: int, size: int, lose: Callable[[str], None] | None = None) -> None:
        self._store = store
        self._rank = rank
        self._heard = {other: (0, time.monotonic()) for other in (range(1, size) if rank == 0 else [0])}
        self._lose = lose or _end_the_process
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def end(self) -> None:
        """Before the ranks part: who leaves first is not lost."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                lost = self._beat()
            except RuntimeError as error:  # torch's error where the store's host is gone
                lost = f"the store of the ranks is gone: {error}"
            if lost and not self._ended.is_set():
                self._lose(f"rank {self._rank} ends: {lost}")
                return

    def _beat(self) -> str | None:
        """One beat; what has been lost, if anything has."""
        self._store.add(_key(self._rank), 1)
        for rank, (beats, at) in self._heard.items():
            told = self._store.add(_key(rank), 0)
            if told > beats:
                self._heard[rank] = (told, time.monotonic())
            elif time.monotonic() - at > LOST_SECONDS:
                self._store.add(LOST, 1)
                return f"rank {rank} was not heard of for {LOST_SECONDS:.0f} s"
        return "another rank was lost" if self._store.add(LOST, 0) else None


def _key(rank: int) -> str:
    return f"beats of rank {rank}"


def _end_the_process(told: str) -> None:
    logger.error(told)
    os._exit(EXIT_CODE)  # the main thread may be waiting in a collective operation, which nothing else interrupts
