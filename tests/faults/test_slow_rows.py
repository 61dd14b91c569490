"""Rows that take long: nobody else waits for all of them, and the worker is not taken for dead meanwhile."""

import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np

from demo.service import npy
from tests.e2e.conftest import Service

CONCEPTS = 512
random = np.random.default_rng(0)
D = random.random((CONCEPTS, CONCEPTS), np.float32)
SLOW = random.random((2500, CONCEPTS), np.float32) @ D  # every concept has its part in each: seconds


def test_rows_that_take_long_hold_up_nobody(service: Service) -> None:
    """Neither those of the same dictionary nor those of another."""
    quick = {"wide": D[:2], "small": D[:2, :6]}
    for name, weights in (("wide", D), ("small", D[:4, :6])):
        assert service.client.put(f"/dictionaries/{name}", content=npy(weights)).status_code == 201
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=service.url, timeout=120) as client:
        slow = pool.submit(client.post, "/encode?dictionary=wide", content=npy(SLOW))
        answered = 0
        while not slow.done():
            for name, rows in quick.items():
                answer = service.client.post(f"/encode?dictionary={name}", content=npy(rows))
                assert answer.status_code == 200
            answered += not slow.done()
            assert service.client.get("/readyz").status_code == 200
    assert slow.result().status_code == 200
    codes = np.load(io.BytesIO(slow.result().content))
    assert (np.linalg.norm(codes @ D - SLOW, axis=1) <= 1e-4 * np.linalg.norm(SLOW, axis=1)).all()
    assert answered >= 3
