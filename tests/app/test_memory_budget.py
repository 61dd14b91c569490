"""Shares of the memory for bodies."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.batcher import Batcher
from app.errors import Overloaded
from app.memory_budget import FREE_BYTES, MemoryBudget, RequestOver, Share
from demo.service import npy
from tests.app.conftest import D

MIB = 1024 * 1024


def test_a_share_that_has_ended_holds_nothing_more() -> None:
    """A thread that inflates a body goes on for a while after its client has left."""
    budget = MemoryBudget(4 * MIB)
    share = Share(budget)
    share.hold(3 * MIB)
    assert budget.held_bytes == 3 * MIB - FREE_BYTES
    share.end()
    for nbytes in (0, 100, 5 * MIB):
        with pytest.raises(RequestOver):
            share.hold(nbytes)
    assert budget.held_bytes == 0


def test_what_finds_no_room_is_not_counted() -> None:
    budget = MemoryBudget(4 * MIB)
    first, second = Share(budget), Share(budget)
    first.hold(3 * MIB)
    with pytest.raises(Overloaded):
        second.hold(2 * MIB)
    second.hold(2 * MIB, anyhow=True)
    first.end()
    second.end()
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("path", "headers", "growth"),
    [
        ("/encode?dictionary=digits", {}, 1),
        ("/encode?dictionary=digits", {"accept": "application/json"}, 3),
        ("/encode?dictionary=digits&encoding_format=base64", {"accept": "application/json"}, 2),
        ("/encode?dictionary=digits&sparse=true", {"accept": "application/json"}, 1),
        ("/decode?dictionary=digits", {"accept": "text/csv"}, 6),  # four features of two concepts
    ],
)
def test_an_answer_has_its_share_before_it_is_computed(
    client: TestClient, digits: str, monkeypatch: pytest.MonkeyPatch, path: str, headers: dict[str, str], growth: int
) -> None:
    """Those that are computed, or wait to be written, are as much in memory as those that are read."""
    answers: MemoryBudget = client.app.state.services.answers  # type: ignore[attr-defined]
    held, real = [], Batcher.solve

    async def solve(self: Batcher, *args: object, **told: object) -> list[np.ndarray]:
        held.append(answers.held_bytes)
        return await real(self, *args, **told)  # type: ignore[arg-type]

    monkeypatch.setattr(Batcher, "solve", solve)
    rows = np.ones((100_000, 4 if "encode" in path else 2), np.float32)
    assert client.post(path, content=npy(rows), headers=headers).status_code == 200
    assert held == [growth * len(rows) * len(D) * 4 - FREE_BYTES]
    assert answers.held_bytes == 0
