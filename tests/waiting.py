"""Waiting for what must come to be, however busy the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 200.0  # of a loaded machine; pytest's own limit is longer
SOON_SECONDS = 15.0  # for what takes one or two on an idle machine, and half a minute or more if it is wrong


def until(
    holds: Callable[[], T | None],
    seconds: float = PATIENCE_SECONDS,
    *,
    every: float = 0.05,
    told: Callable[[], object] = str,
) -> T:
    """What `holds` returns, once that is neither false nor None; else what `told` tells is the error's."""
    deadline = time.monotonic() + seconds
    while not (it := holds()):
        assert time.monotonic() < deadline, f"not so after {seconds} s: {told()}"
        time.sleep(every)
    return it
