"""Ranks that watch each other through a store; no process is started."""

import queue

import pytest
import torch.distributed as dist

from app.worker import watch
from app.worker.watch import Watch
from tests.waiting import until

Lost = "queue.Queue[str]"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watch, "LOST_SECONDS", 1.0)


@pytest.fixture
def lost() -> Lost:
    return queue.Queue()


def test_a_rank_that_falls_silent_is_lost_to_all(lost: Lost) -> None:
    store = dist.HashStore()
    first, _, third = (Watch(store, rank, 3, lost.put) for rank in range(3))
    third._ended.set()  # as a thread of a machine that is gone: without a word
    said = {lost.get(timeout=30) for _ in range(2)}
    assert said == {"rank 0 ends: rank 2 was not heard of for 1 s", "rank 1 ends: another rank was lost"}
    first.end()


def test_the_others_miss_rank_0(lost: Lost) -> None:
    Watch(dist.HashStore(), 1, 2, lost.put)
    assert lost.get(timeout=30) == "rank 1 ends: rank 0 was not heard of for 1 s"


def test_ranks_hear_each_other_and_may_leave(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOST_SECONDS", 60.0)
    store = dist.HashStore()
    first, second = (Watch(store, rank, 2, lost.put) for rank in range(2))
    until(lambda: min(first._heard[1][0], second._heard[0][0]) >= 5, every=0.01)
    first.end()
    beats = store.add(watch._key(1), 0)
    until(lambda: store.add(watch._key(1), 0) >= beats + 3, every=0.01)  # each time it hears of losses
    assert lost.empty()
    second.end()


def test_a_store_whose_host_is_gone_is_a_loss(lost: Lost) -> None:
    class Gone(dist.Store):
        def add(self, key: str, amount: int) -> int:
            raise RuntimeError("connection reset")

    Watch(Gone(), 1, 2, lost.put)
    assert "the store of the ranks is gone: connection reset" in lost.get(timeout=30)
