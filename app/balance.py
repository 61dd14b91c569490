"""Which worker takes the next batch."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.worker.messages import Key

IN_FLIGHT = 2  # batches with a worker: one that it solves, one that it finds when it is done


class RowSolver(Protocol):
    """A worker, as those see it who have rows for it."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def is_stuck(self) -> bool:
        """Whether it should take work and is not heard of. Of one that has none to take, `solve` raises."""

    @property
    def is_fitting(self) -> bool: ...

    def solve(self, key: Key, rows: Sequence[np.ndarray]) -> Awaitable[list[np.ndarray]]:
        """Of the first of these rows, as many as it comes to in a turn: of one at least, where there is any."""


@dataclass(eq=False, slots=True)
class Load:
    """A worker, and what is under way with it."""

    solver: RowSolver
    batches: int = 0
    rows: int = 0
    solved_batches: int = 0
    solved_rows: int = 0


def least_loaded(loads: Sequence[Load], key: Key) -> Load | None:
    """The one with the fewest rows of those that take work; None where these are all busy, so that what waits
    gathers. Where none takes work, one that says so.

    Of equals, one without a fit; of those, always the same for one dictionary, so that not each prepares them all.
    """
    if len(loads) == 1:  # the only one needs no comparing
        return loads[0] if loads[0].batches < IN_FLIGHT else None
    able = [load for load in loads if load.solver.is_ready] or loads
    free = [load for load in able if load.batches < IN_FLIGHT]
    dictionary = f"{key.name} {key.version} {key.dtype}"
    return min(free, key=lambda load: (load.rows, load.solver.is_fitting, _weight(load, dictionary)), default=None)


def _weight(load: Load, dictionary: str) -> int:
    """Of ``dictionary`` on ``load``: the lowest has it (rendezvous hashing, Thaler and Ravishankar 1998).

    The hash of one string: that of a tuple differs by nearly the same between two loads whatever the dictionary is,
    so that one of three could have 2 % of all dictionaries.
    """
    return hash(f"{id(load)} {dictionary}")
