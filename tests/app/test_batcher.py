"""The batcher: rows go out together and come back to whoever sent them."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.balance import IN_FLIGHT
from app.batcher import Batcher
from app.errors import Overloaded, WorkerUnavailable
from app.worker.messages import Key


class Recorder:
    """Answers each row with its double, and remembers the batches. ``poison`` is a value that it cannot take, and
    ``turn`` how many rows it comes to in a turn."""

    is_fitting = is_stuck = False

    def __init__(self, poison: float = -1, alive: bool = True, turn: int = 1000) -> None:
        self.batches: list[tuple[str, int]] = []
        self.poison = poison
        self.alive = alive
        self.turn = turn

    @property
    def is_ready(self) -> bool:
        return self.alive

    async def solve(self, key: Key, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        rows = np.concatenate(parts)
        self.batches.append((key.name, len(rows)))
        await asyncio.sleep(0)
        if not self.alive:
            raise WorkerUnavailable("gone")
        if (rows == self.poison).any():
            raise ValueError("poison")
        rows = rows[: self.turn]
        return [2 * rows, rows[:, 0].astype(np.uint8)]


class Held(Recorder):
    """Answers nothing until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = asyncio.Event()

    async def solve(self, key: Key, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        await self.goes_on.wait()
        return await super().solve(key, parts)


def key(name: str) -> Key:
    return Key("encode", name, 1)


requests = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 23)), min_size=1, max_size=30)


@given(requests, st.integers(1, 16), st.integers(1, 20), st.integers(1, 2))
def test_every_request_gets_its_own_rows_back(
    requests: list[tuple[str, int]], budget: int, turn: int, workers: int
) -> None:
    async def run() -> None:
        solver = Recorder(turn=turn)
        batcher = Batcher([solver] * workers, budget, queue_bytes=2**30, queue_rows=2**30)
        sent = [np.random.default_rng(i).random((rows, 3)) for i, (_, rows) in enumerate(requests)]
        calls = [batcher.solve(key(name), array, 3) for (name, _), array in zip(requests, sent, strict=True)]
        for array, (doubled, first) in zip(sent, await asyncio.gather(*calls), strict=True):
            np.testing.assert_array_equal(doubled, 2 * array)
            np.testing.assert_array_equal(first, array[:, 0].astype(np.uint8))
        assert all(rows <= budget for _, rows in solver.batches)
        assert sum(min(rows, turn) for _, rows in solver.batches) == sum(rows for _, rows in requests)
        assert batcher.waiting_bytes == 0
        await batcher.drain()

    asyncio.run(run())


def test_what_waits_for_one_dictionary_goes_together() -> None:
    async def run() -> None:
        solver = Recorder()
        batcher = Batcher([solver], 100, queue_bytes=2**30, queue_rows=2**30)
        names = ["a", "b", *"ababab"]
        await asyncio.gather(*(batcher.solve(key(name), np.ones((2, 3)), 3) for name in names))
        assert sorted(solver.batches) == [("a", 8), ("b", 8)]

    asyncio.run(run())


def test_what_comes_while_the_worker_is_busy_goes_together() -> None:
    async def run() -> None:
        solver = Recorder()
        batcher = Batcher([solver], 100, queue_bytes=2**30, queue_rows=2**30)
        first = [asyncio.create_task(batcher.solve(key("a"), np.ones((1, 3)), 3)) for _ in range(2)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert solver.batches == [("a", 2)]
        await asyncio.gather(*first, *(batcher.solve(key("a"), np.ones((2, 3)), 3) for _ in range(5)))
        assert solver.batches == [("a", 2), ("a", 10)]

    asyncio.run(run())


def test_a_large_request_does_not_hold_up_small_ones() -> None:
    async def run() -> list[str]:
        batcher = Batcher([Recorder()], 10, queue_bytes=2**30, queue_rows=2**30)
        done: list[str] = []

        async def send(name: str, rows: int) -> None:
            await batcher.solve(key(name), np.ones((rows, 3)), 3)
            done.append(name)

        await asyncio.gather(send("large", 1000), send("small", 1))
        return done

    assert asyncio.run(run()) == ["small", "large"]


@pytest.mark.parametrize("small", ["slow", "other"])
def test_rows_that_take_long_do_not_hold_up_others(small: str) -> None:
    """Not even others of the same dictionary, with whom they are sent."""

    async def run() -> list[str]:
        solver = Recorder(turn=2)
        batcher = Batcher([solver], 100, queue_bytes=2**30, queue_rows=2**30)
        done: list[str] = []

        async def send(id: str, name: str, rows: int) -> None:
            sent = np.random.default_rng(rows).random((rows, 3))
            np.testing.assert_array_equal((await batcher.solve(key(name), sent, 3))[0], 2 * sent)
            done.append(id)

        sends = [send("slow", "slow", 60), send("one", small, 1), send("two", small, 1), send("three", small, 2)]
        await asyncio.gather(*sends)
        assert len(solver.batches) < 40
        return done

    assert asyncio.run(run()) == ["one", "two", "three", "slow"]


@pytest.mark.parametrize("clients", [4, 50, 200])
def test_a_dictionary_waits_for_one_batch_of_each_other(clients: int) -> None:
    """However many ask again and again for slow rows of another, of which a turn has room for few."""

    async def run() -> tuple[list[int], list[int]]:
        solver = Recorder(turn=5)
        batcher = Batcher([solver], 100, queue_bytes=2**30, queue_rows=2**30)
        waits: dict[str, list[int]] = {"slow": [], "quick": []}

        async def ask(name: str, rows: int) -> None:
            while len(solver.batches) < 600:
                begun = len(solver.batches)
                await batcher.solve(key(name), np.ones((rows, 3)), 3)
                waits[name].append(len(solver.batches) - begun)

        await asyncio.gather(ask("quick", 1), *(ask("slow", 2) for _ in range(clients)))
        return waits["quick"], waits["slow"]

    quick, slow = asyncio.run(run())
    assert max(quick) <= IN_FLIGHT + 4
    assert len(quick) > 100
    assert max(slow) <= 4 * (2 * clients / 5 + IN_FLIGHT + 2)  # every other batch is of quick rows


def test_who_leaves_in_the_midst_of_a_turn_has_nothing_solved_any_more() -> None:
    async def run() -> None:
        solver = Recorder(turn=2)
        batcher = Batcher([solver], 100, queue_bytes=2**30, queue_rows=2**30)
        leaving = asyncio.create_task(batcher.solve(key("a"), np.ones((60, 3)), 3))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(begun := solver.batches[:]) < 29
        leaving.cancel()
        await asyncio.wait({leaving})
        await batcher.drain()
        assert 1 <= len(begun) <= len(solver.batches) <= len(begun) + 2
        assert (batcher.waiting_rows, batcher.waiting_bytes) == (0, 0)
        await batcher.solve(key("a"), np.ones((2, 3)), 3)

    asyncio.run(run())


def test_one_requests_fault_is_not_its_neighbours() -> None:
    async def run() -> list[object]:
        batcher = Batcher([Recorder(poison=7)], 100, queue_bytes=2**30, queue_rows=2**30)
        arrays = [np.full((2, 3), value) for value in (1, 2, 3, 7, 5)]
        return await asyncio.gather(*(batcher.solve(key("a"), x, 3) for x in arrays), return_exceptions=True)

    outcomes = asyncio.run(run())
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, False, False, True, False]


def test_a_dead_worker_is_told_to_all_and_nothing_stays() -> None:
    async def run() -> None:
        solver = Recorder(alive=False)
        batcher = Batcher([solver], 10, queue_bytes=2**30, queue_rows=2**30)
        calls = [batcher.solve(key("a"), np.ones((25, 3)), 3) for _ in range(5)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {(type(outcome), str(outcome)) for outcome in outcomes} == {(WorkerUnavailable, "gone")}  # as it says
        assert batcher.waiting_bytes == 0
        solver.alive = True
        await batcher.solve(key("a"), np.ones((25, 3)), 3)

    asyncio.run(run())


def test_nobody_queues_behind_a_worker_that_is_stuck() -> None:
    """Who was there before waits for what becomes of it."""

    async def run() -> None:
        solver = Held()
        batcher = Batcher([solver], 1, queue_bytes=2**30, queue_rows=2**30)
        before = [asyncio.create_task(batcher.solve(key("a"), np.ones((1, 3)), 3)) for _ in range(IN_FLIGHT + 1)]
        await asyncio.sleep(0)
        solver.is_stuck = True
        for _ in range(2):  # they wait; all but one are with the worker
            with pytest.raises(WorkerUnavailable, match="heard of lately"):
                await batcher.solve(key("a"), np.ones((1, 3)), 3)
            await asyncio.sleep(0)
        solver.goes_on.set()
        await asyncio.gather(*before)
        await batcher.solve(key("a"), np.ones((1, 3)), 3)

    asyncio.run(run())


def test_nobody_waits_for_a_worker_that_is_stuck_with_rows_of_who_has_left() -> None:
    """Nor do clients that come one after another, and leave after a while: the first alone tries it."""

    async def run() -> None:
        solver = Held()
        solver.is_stuck = True
        batcher = Batcher([solver], 1, queue_bytes=2**30, queue_rows=2**30)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.solve(key("a"), np.ones((1, 3)), 3), 0.01)
        for _ in range(2):
            with pytest.raises(WorkerUnavailable, match="heard of lately"):
                await asyncio.wait_for(batcher.solve(key("a"), np.ones((1, 3)), 3), 10)

    asyncio.run(run())


def test_the_queue_is_bounded_in_bytes() -> None:
    async def run() -> None:
        batcher = Batcher([Recorder()], 1, queue_bytes=1000, queue_rows=2**30)
        first = asyncio.create_task(batcher.solve(key("a"), np.ones((100, 3)), 3))  # more than the queue, alone
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.solve(key("a"), np.ones((1, 3)), 3)
        await first
        await batcher.solve(key("a"), np.ones((1, 3)), 3)

    asyncio.run(run())


def test_the_queue_is_bounded_in_rows() -> None:
    async def run() -> None:
        batcher = Batcher([Recorder()], 1, queue_bytes=2**30, queue_rows=10)
        first = asyncio.create_task(batcher.solve(key("a"), np.ones((100, 3)), 3))  # more than the queue, alone
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="100 rows wait"):
            await batcher.solve(key("b"), np.ones((1, 3)), 3)
        await first
        taken = [asyncio.create_task(batcher.solve(key("a"), np.ones((5, 3)), 3)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.solve(key("a"), np.ones((1, 3)), 3)
        await asyncio.gather(*taken)
        assert batcher.waiting_rows == 0

    asyncio.run(run())


def test_an_abandoned_request_is_not_solved_further() -> None:
    async def run() -> None:
        solver = Recorder()
        batcher = Batcher([solver], 1, queue_bytes=2**30, queue_rows=2**30)
        abandoned = asyncio.create_task(batcher.solve(key("a"), np.ones((1000, 3)), 3))
        await asyncio.sleep(0)
        abandoned.cancel()
        await batcher.solve(key("b"), np.ones((1, 3)), 3)
        await batcher.drain()
        assert len(solver.batches) < 10
        assert batcher.waiting_bytes == 0

    asyncio.run(run())
