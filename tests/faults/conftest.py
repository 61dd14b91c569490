"""Services that a test may break."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Service, mortal, shared
from tests.faults.asked import put

__all__ = ["mortal", "shared"]  # fixtures


@pytest.fixture
def service(mortal: Service) -> Iterator[Service]:
    """The module's service, whose tests each mend what they break, with the dictionary ``d`` and a log of this test's
    own."""
    os.truncate(mortal.log, 0)
    if mortal.client.get("/dictionaries/d").status_code == 404:
        assert put(mortal).status_code == 201
    yield mortal
    assert "unexpected error" not in mortal.log.read_text()
