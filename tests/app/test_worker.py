"""The worker's loop, turned by hand in this process: frames in, frames out."""

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.store import Store
from app.worker import frames
from app.worker.loop import Worker
from app.worker.messages import Configure, Failed, Fit, FitProgress, Fitted
from tests.app.conftest import D, publish

A = np.random.default_rng(0).random((50, 2), np.float32) @ D


class Turned:
    """A worker, and the service's end of its channel."""

    def __init__(self, store: Path, ours: socket.socket, theirs: socket.socket) -> None:
        self.channel = ours
        frames.send(ours, Configure(str(store), "cpu", cache_bytes=2**20, heartbeat_seconds=60.0))
        self.worker = Worker(theirs)

    def turn(self) -> list[frames.Frame]:
        """Serve what waits and advance the fit to its end; what the worker has said."""
        while select.select([self.worker._channel], [], [], 0)[0]:
            self.worker._serve_what_waits()
        while self.worker._fit is not None:
            self.worker._advance_fit()
        said = []
        while select.select([self.channel], [], [], 0)[0]:
            said.append(frames.receive(self.channel))
        return said


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "models")
    store.open()
    publish(store, "digits", D)
    yield store
    store.close()


@pytest.fixture
def turned(store: Store) -> Iterator[Turned]:
    ours, theirs = frames.channel()
    with ours, theirs:
        yield Turned(store.root, ours, theirs)


def fit(path: Path, start: str | None) -> Fit:
    A.tofile(path)
    return Fit("job", str(path), 0, *A.shape, 2, "hals", 500, 1e-4, "auto", 0, start)


def test_a_warm_start_begins_where_its_dictionary_is(turned: Turned, tmp_path: Path) -> None:
    losses = {}
    for start in (None, "digits@1"):
        frames.send(turned.channel, fit(tmp_path / "A", start))
        *_, told, fitted = turned.turn()
        assert isinstance(told.message, FitProgress)
        assert isinstance(fitted.message, Fitted)
        losses[start] = fitted.arrays[2]
    assert losses["digits@1"][0] < 1e-3 * losses[None][0]  # the data is made of that very dictionary


def test_a_start_that_was_removed_meanwhile_fails_the_job(turned: Turned, store: Store, tmp_path: Path) -> None:
    publish(store, "digits", D)
    store.remove("digits", [1])
    frames.send(turned.channel, fit(tmp_path / "A", "digits@1"))
    (said,) = turned.turn()
    assert said.message == Failed("job", "UnknownDictionary", "'digits' has no version 1; it has 2")
