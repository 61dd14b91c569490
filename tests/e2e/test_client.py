"""The client against a real service."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed

from app.client import AsyncClient, BodyTooLarge, Client, InvalidRequest, JobCancelled, StillRunning, config
from demo.digits import split_digits
from tests.e2e.conftest import Service
from tests.waiting import PATIENCE_SECONDS

FITTED, HELD_OUT = split_digits()
MOST_BYTES = 8_000_000  # of a body: more than that of all digits


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("client")
    service = Service(folder / "models", DICTSERVE_MAX_BODY_BYTES=str(MOST_BYTES)).start()
    yield service
    assert service.stop() == 0


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


FORKED = """
import os, sys
import numpy as np
from app.client import Client

client = Client(sys.argv[1])
rows = np.load(sys.argv[2])
expected = client.encode(rows, "forked")
children = []
for child in range(3):
    if (pid := os.fork()) == 0:
        own = rows[child : child + 1]
        wrong = sum(not np.array_equal(client.encode(own, "forked"), expected[child : child + 1]) for _ in range(40))
        os._exit(wrong)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""


def test_forked_processes_are_answered_each_for_itself(shared: Service, tmp_path: Path) -> None:
    """On one connection, as a child has its parent's, each would take what the other is answered for its own."""
    with Client(shared.url) as client:
        client.fit(FITTED, nb_concepts=8, name="forked")
    np.save(tmp_path / "rows.npy", HELD_OUT[:3])
    command = [sys.executable, "-c", FORKED, shared.url, str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    assert done.stdout.strip() == "[0, 0, 0]", done.stderr


def test_processes_of_joblib_encode_with_the_dictionary_that_they_are_given(shared: Service) -> None:
    with Client(shared.url) as client:
        digits = client.fit(FITTED, nb_concepts=8, name="parallel")
        expected = digits.encode(HELD_OUT[:60])
        parts = Parallel(n_jobs=2)(delayed(digits.encode)(part) for part in np.split(HELD_OUT[:60], 3))
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-4, atol=1e-5)


def test_one_client_serves_one_loop_after_another(shared: Service) -> None:
    client = AsyncClient(shared.url)

    async def encoded(closes: bool) -> list[np.ndarray]:
        try:
            return await asyncio.gather(*(client.encode(row, "loops") for row in HELD_OUT[:20]))
        finally:
            if closes:
                await client.aclose()

    with Client(shared.url) as blocking:
        blocking.fit(FITTED, nb_concepts=8, name="loops")
    first, second = (np.concatenate(asyncio.run(encoded(closes))) for closes in (False, True))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_who_waits_for_many_fits_can_still_encode(shared: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is followed holds a connection: it is none of those of calls."""
    monkeypatch.setattr(config, "MAX_CONNECTIONS", 2)

    async def run() -> None:
        async with AsyncClient(shared.url, timeout=20) as client:
            known = await client.fit(FITTED, nb_concepts=8, name="known")
            options = {"nb_concepts": 64, "solver": "mu", "tol": 0, "max_iter": 100_000, "wait": False}
            jobs = [await client.fit(FITTED, name="slow", **options) for _ in range(4)]  # type: ignore[arg-type]
            waits = [asyncio.create_task(job.wait()) for job in jobs]
            await asyncio.sleep(0.5)
            await known.encode(HELD_OUT[:1])
            for job in jobs:
                await job.cancel()
            ends = await asyncio.gather(*waits, return_exceptions=True)
            assert {type(end) for end in ends} == {JobCancelled}

    asyncio.run(run())


def test_a_gather_of_many_calls_holds_up_nobody(shared: Service) -> None:
    """Of a thousand the caller's loop stood still for seconds, in the pool of connections."""

    async def run() -> None:
        busy = []  # between two looks, in the time that only this loop's thread counts as its own

        async def watch() -> None:
            while True:
                before = time.thread_time()
                await asyncio.sleep(0.01)
                busy.append(time.thread_time() - before)

        async with AsyncClient(shared.url) as client:
            digits = await client.fit(FITTED, nb_concepts=8, name="gathered")
            rows = np.tile(HELD_OUT, (2, 1))[:700]
            expected = await digits.encode(rows)
            watching = asyncio.create_task(watch())
            codes = await asyncio.gather(*(digits.encode(row) for row in rows))
            watching.cancel()
            np.testing.assert_array_equal(np.concatenate(codes), expected)
        assert max(busy) < sum(busy) / 2

    asyncio.run(run())


def test_a_restart_under_a_waiting_client(mortal: Service) -> None:
    """The stream breaks, connections are refused for a while, and the fit's end still comes."""
    with Client(mortal.url, retries=20) as client:
        job = client.fit(FITTED, nb_concepts=32, name="x", solver="mu", tol=0, max_iter=150, wait=False)
        events = job.events()
        next(events)
        mortal.kill()
        mortal.start()
        for _ in events:
            pass
        assert job.state == "succeeded"
        assert client.dictionary("x").version == 1


def test_a_body_over_the_limit_is_told_so(shared: Service) -> None:
    with Client(shared.url) as client, pytest.raises(BodyTooLarge):
        client.encode(np.ones((MOST_BYTES // 40, 100), np.float32), "x")
