"""Rows by two lanes to a device: the order of things, with lanes that do nothing before they must."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from app.worker.transfers import Arrived, Compute, Transfers, in_lanes

ROWS = np.random.default_rng(0).random((23, 3), np.float32)


class LateLane:
    """A queue of work, as a stream is: each piece is done only once somebody waits for a later one's end."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log
        self._queue: list[Callable[[], object]] = []

    def upload(self, rows: np.ndarray) -> torch.Tensor:
        self._log.append(f"up {self._name}")
        there = torch.full(rows.shape, torch.nan)
        self._queue.append(lambda: there.copy_(torch.from_numpy(rows)))
        return there

    def compute(self, compute: Compute, there: torch.Tensor) -> Arrived:
        self._log.append(f"compute {self._name}")
        back: list[np.ndarray] = []
        self._queue.append(lambda: back.extend(tensor.numpy().copy() for tensor in compute(there)))

        def arrived() -> list[np.ndarray]:
            self._log.append(f"back {self._name}")
            while self._queue:
                self._queue.pop(0)()
            return back

        return arrived


def doubled(A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * A, A[:, 0] > 0.5


@pytest.mark.parametrize("slice_rows", [1, 5, 22, 23, 100])
def test_all_rows_come_back_in_their_order(slice_rows: int) -> None:
    log: list[str] = []
    twice, large = in_lanes([LateLane("a", log), LateLane("b", log)], ROWS, doubled, slice_rows)
    np.testing.assert_array_equal(twice, 2 * ROWS)
    np.testing.assert_array_equal(large, ROWS[:, 0] > 0.5)


def test_copies_are_under_way_while_a_slice_is_computed() -> None:
    log: list[str] = []
    in_lanes([LateLane("a", log), LateLane("b", log)], ROWS, doubled, 8)
    assert log == ["up a", "up b", "compute a", "up a", "compute b", "back a", "compute a", "back b", "back a"]


def test_no_rows_give_no_rows() -> None:
    twice, _ = in_lanes([LateLane("a", []), LateLane("b", [])], ROWS[:0], doubled, 8)
    assert twice.shape == (0, 3)


def test_on_the_cpu_nothing_is_copied() -> None:
    (same,) = Transfers(torch.device("cpu")).through(ROWS, lambda A: (A,))
    assert np.shares_memory(same, ROWS)
