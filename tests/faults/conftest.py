"""Services that a test may break."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Service
from tests.faults.asked import put


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service of the test's own with the dictionary ``d``; whatever becomes of it, it does not outlive the test."""
    service = Service(tmp_path / "models").start()
    assert put(service).status_code == 201
    yield service
    if service.process is not None and service.process.poll() is None:
        service.kill()
    assert "unexpected error" not in service.log.read_text()
