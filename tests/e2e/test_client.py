"""The client against a real service."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from app.client import AsyncClient, BodyTooLarge, Client, InvalidRequest, JobCancelled, StillRunning
from demo.digits import split_digits
from tests.e2e.conftest import Service

FITTED, HELD_OUT = split_digits()


def test_a_dictionary_from_first_to_last(shared: Service, tmp_path: Path) -> None:
    np.save(tmp_path / "A.npy", FITTED)
    with Client(shared.url) as client:
        digits = client.fit(tmp_path / "A.npy", nb_concepts=16, name="digits", seed=1)
        again = client.fit(FITTED, nb_concepts=16, name="digits", seed=1)
        assert (digits.version, again.version) == (1, 2)
        np.testing.assert_array_equal(digits.get_dictionary(), again.get_dictionary())
        full = digits.encode(HELD_OUT, full=True)
        assert full.converged
        Z = client.encode(HELD_OUT, "digits@1")
        np.testing.assert_allclose(Z, full.codes, rtol=1e-4, atol=1e-5)
        error = np.linalg.norm(HELD_OUT - digits.decode(Z), axis=1) / np.linalg.norm(HELD_OUT, axis=1)
        np.testing.assert_allclose(error, full.relative_error, rtol=1e-3, atol=1e-4)
        assert np.allclose(digits.encode(HELD_OUT, sparse=True).toarray(), Z, rtol=1e-4, atol=1e-5)
        with pytest.raises(InvalidRequest, match="negative"):
            digits.encode(-HELD_OUT)


def test_a_fit_is_followed_waited_for_and_cancelled(shared: Service) -> None:
    with Client(shared.url) as client:
        job = client.fit(FITTED, nb_concepts=64, name="long", solver="mu", tol=0, max_iter=100_000, wait=False)
        with pytest.raises(StillRunning):
            job.wait(timeout=0.5)
        events = job.events()
        first, second = next(events), next(events)
        assert 0 <= first.iteration < second.iteration
        job.cancel()
        with pytest.raises(JobCancelled):
            job.wait()


def test_many_at_once_from_asyncio(shared: Service) -> None:
    async def encoded() -> list[np.ndarray]:
        async with AsyncClient(shared.url) as client:
            many = await client.fit(FITTED, nb_concepts=8, name="many")
            return await asyncio.gather(*(many.encode(row) for row in HELD_OUT[:50]))

    with Client(shared.url) as client:
        rows = asyncio.run(encoded())
        np.testing.assert_allclose(np.concatenate(rows), client.encode(HELD_OUT[:50], "many"), rtol=1e-4, atol=1e-5)


def test_a_restart_under_a_waiting_client(service: Service) -> None:
    """The stream breaks, connections are refused for a while, and the fit's end still comes."""
    with Client(service.url, retries=20) as client:
        job = client.fit(FITTED, nb_concepts=32, name="x", solver="mu", tol=0, max_iter=400, wait=False)
        events = job.events()
        next(events)
        service.kill()
        service.start()
        for _ in events:
            pass
        assert job.state == "succeeded"
        assert client.dictionary("x").version == 1


def test_a_body_over_the_limit_is_told_so(tmp_path: Path) -> None:
    service = Service(tmp_path / "models", DICTSERVE_MAX_BODY_BYTES="1000000").start()
    try:
        with Client(service.url) as client, pytest.raises(BodyTooLarge):
            client.encode(np.ones((100_000, 100), np.float32), "x")
    finally:
        service.stop()
