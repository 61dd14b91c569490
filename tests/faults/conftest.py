"""Services that a test may break."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Service
from tests.faults.asked import put


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for a module's tests, each of which mends what it breaks; it does not outlive them."""
    service = Service(tmp_path_factory.mktemp("faults") / "models").start()
    yield service
    assert service.stop() == 0


@pytest.fixture
def service(started: Service) -> Iterator[Service]:
    """The module's service with the dictionary ``d`` and a log of this test's own, started where one has ended it."""
    assert started.process is not None
    if started.process.poll() is not None:
        started.start()
    os.truncate(started.log, 0)
    if started.client.get("/dictionaries/d").status_code == 404:
        assert put(started).status_code == 201
    yield started
    assert "unexpected error" not in started.log.read_text()
