"""What a large body costs the HTTP process."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from demo.service import npy
from tests.e2e.conftest import Service

MOST_BODIES = 2.5  # of memory that an encode of one body may take


def memory(service: Service, field: str) -> int:
    """A field of the HTTP process's status, in bytes."""
    lines = Path(f"/proc/{service.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_ten_thousand_rows_take_little_more_memory_than_their_body(service: Service, form: str) -> None:
    rng = np.random.default_rng(0)
    D = rng.random((64, 768), np.float32) * (rng.random((64, 768)) < 0.3)
    A = rng.random((10_000, 64), np.float32) @ D
    assert service.client.put("/dictionaries/a", content=npy(D)).status_code == 201
    content = npy(A) if form == "npy" else save({"data": A})
    service.client.post("/encode?dictionary=a", content=npy(A[:10])).raise_for_status()
    rest = memory(service, "VmRSS")
    service.client.post("/encode?dictionary=a", content=content).raise_for_status()
    assert memory(service, "VmHWM") - rest <= MOST_BODIES * len(content)
