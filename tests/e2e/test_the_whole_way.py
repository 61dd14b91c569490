"""Fit, encode and decode on real activations, with real clients."""

import io
import json
import subprocess
import time
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest
from scipy.optimize import nnls

from app.worker.messages import Solver
from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service

FITTED, HELD_OUT = split_digits()


@pytest.fixture(scope="module")
def digits(shared: Service) -> Service:
    job = shared.ended(shared.fit(FITTED, name="digits", nb_concepts=64))
    assert job["state"] == "succeeded", job
    return shared


def encode(service: Service, rows: np.ndarray) -> np.ndarray:
    answer = service.client.post("/encode?dictionary=digits", content=npy(rows))
    assert answer.status_code == 200, answer.text
    assert answer.headers["dictserve-converged"] == "true"
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def test_the_job_tells_how_it_went(digits: Service) -> None:
    listed = digits.client.get("/jobs").json()["jobs"][-1]
    job = digits.job(listed["id"])
    assert job["state"] == "succeeded"
    assert job["progress"] == listed["progress"]
    assert 0 < job["progress"]["iteration"] <= job["progress"]["max_iter"]
    losses = [loss for _, loss in job["loss_history"]]
    assert len(losses) > 5
    assert losses[-1] < losses[0]


def test_the_dictionary_tells_how_good_it_is(digits: Service) -> None:
    told = digits.client.get("/dictionaries/digits").json()
    metrics = told["metrics"]
    assert metrics["dead_concepts"] == 0
    assert 0.05 < metrics["relative_error"] < 0.13
    assert 0.9 < metrics["r2"] < 1
    assert len(metrics["energy"]) == 64
    assert sum(metrics["energy"]) == pytest.approx(1)
    assert told["data"] == {"rows": len(FITTED), "n_features": 512, "sha256": told["data"]["sha256"]}
    assert told["software"]["torch"].startswith("2.")
    (listed,) = digits.client.get("/dictionaries").json()["dictionaries"]
    assert "energy" not in listed["metrics"]


def test_codes_are_the_exact_non_negative_least_squares(digits: Service) -> None:
    Z = encode(digits, HELD_OUT[:20])
    D = np.asarray(encode_dictionary(digits), np.float64)
    for a, z in zip(HELD_OUT[:20].astype(np.float64), Z.astype(np.float64), strict=True):
        exact = nnls(D.T, a)[1] ** 2
        assert z.min() >= 0
        assert np.sum((a - z @ D) ** 2) - exact <= 1e-5 * max(exact, 1e-3 * a @ a)


def encode_dictionary(service: Service) -> np.ndarray:
    """D itself: what one-hot codes decode to."""
    answer = service.client.post("/decode?dictionary=digits", content=npy(np.eye(64, dtype=np.float32)))
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def test_curl_and_npy_clients_get_the_same_numbers(digits: Service, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"dictionary": "digits", "data": HELD_OUT[:3].tolist()}))
    curl = ["curl", "--silent", "--fail", f"{digits.url}/encode", "--data-binary", f"@{request}"]
    answer = json.loads(subprocess.run(curl, check=True, capture_output=True, timeout=30).stdout)
    assert (answer["dictionary"], answer["version"], answer["converged"]) == ("digits", 1, True)
    codes = encode(digits, HELD_OUT[:3])
    np.testing.assert_allclose(answer["codes"], codes, rtol=1e-6)

    decoded = tmp_path / "activations.npy"
    (tmp_path / "codes.npy").write_bytes(npy(codes))
    curl = ["curl", "--silent", "--fail", f"{digits.url}/decode?dictionary=digits", "--output", str(decoded)]
    subprocess.run([*curl, "--data-binary", f"@{tmp_path / 'codes.npy'}"], check=True, timeout=30)
    D = encode_dictionary(digits)
    np.testing.assert_allclose(np.load(decoded), codes @ D, rtol=1e-4, atol=1e-5)


def test_a_row_gets_the_same_codes_alone_and_in_company(digits: Service) -> None:
    together = encode(digits, HELD_OUT)
    for index in (0, 7, 359):
        alone = encode(digits, HELD_OUT[index])
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5 * together[index].max())


def test_a_request_larger_than_a_batch_comes_back_in_order(digits: Service) -> None:
    rows = np.tile(HELD_OUT, (9, 1))  # 3240 rows, in batches of 1024
    Z = encode(digits, rows)
    first = Z[:360]
    for start in range(360, len(Z), 360):
        np.testing.assert_allclose(Z[start : start + 360], first, atol=1e-4 * first.max())


@pytest.mark.parametrize(
    "content", [b"{", b'{"dictionary": "digits", "data": [[1, NaN]]}', npy(-HELD_OUT[:2]), b"\x93NUMPY"]
)
def test_bad_input_harms_nobody(digits: Service, content: bytes) -> None:
    answer = digits.client.post("/encode", params={"dictionary": "digits"}, content=content)
    assert 400 <= answer.status_code < 500
    assert encode(digits, HELD_OUT[:1]).shape == (1, 64)


def test_every_solver_that_http_names_is_one_of_cores() -> None:
    from core.solvers import SOLVERS

    assert set(get_args(Solver)) == set(SOLVERS)


@pytest.mark.parametrize("solver", get_args(Solver))
def test_every_solver_fits(digits: Service, solver: str) -> None:
    job = digits.ended(digits.fit(FITTED[:500], name=f"by-{solver}", nb_concepts=16, solver=solver, max_iter=100))
    assert (job["state"], job["parameters"]["solver"]) == ("succeeded", solver)
    metrics = digits.client.get(f"/dictionaries/by-{solver}").json()["metrics"]
    assert metrics["relative_error"] < 0.3
    assert metrics["dead_concepts"] == 0


def test_degenerate_data_works(digits: Service) -> None:
    """Degenerate data: zeros, one row, more concepts than rows or features, a constant column, mixed scales."""
    rng = np.random.default_rng(0)
    cases = {
        "zeros": (np.zeros((10, 6), np.float32), 3),
        "one-row": (np.ones((1, 6), np.float32), 3),
        "wide": (rng.random((5, 6), np.float32), 20),
        "constant": (np.c_[np.ones(50), rng.random((50, 3))].astype(np.float32), 2),
        "one-feature": (rng.random((20, 1), np.float32), 2),
        "large": (rng.random((20, 6), np.float32) * np.float32(1e30), 2),
        "small": (rng.random((20, 6), np.float32) * np.float32(1e-30), 2),
    }
    for name, (A, k) in cases.items():
        job = digits.ended(digits.fit(A, name=name, nb_concepts=k))
        assert job["state"] == "succeeded", (name, job)
        answer = digits.client.post(f"/encode?dictionary={name}", content=npy(A))
        Z = np.load(io.BytesIO(answer.content))
        assert Z.shape == (len(A), k)
        assert np.isfinite(Z).all()
        assert Z.min() >= 0
    assert digits.client.get("/dictionaries/zeros").json()["metrics"]["relative_error"] == 0


def test_during_a_large_fit_encodes_are_answered_and_a_cancel_is_obeyed(digits: Service) -> None:
    rng = np.random.default_rng(0)
    A = (rng.random((20_000, 40), np.float32) ** 8) @ (rng.random((40, 512), np.float32) ** 4)
    id = digits.fit(A, name="cancelled", nb_concepts=256, tol=0, max_iter=10_000)
    digits.until(id, "running", iteration=1)
    body = npy(HELD_OUT[:1])
    times = []
    while len(times) < 50:
        begun = time.perf_counter()
        digits.client.post("/encode?dictionary=digits", content=body).raise_for_status()
        times.append(time.perf_counter() - begun)
    assert digits.job(id)["state"] == "running"
    assert np.median(times) < 0.5
    begun = time.perf_counter()
    assert digits.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert time.perf_counter() - begun < 5
    assert digits.client.get("/dictionaries/cancelled").status_code == 404


def test_concurrent_requests_get_their_own_answers(digits: Service) -> None:
    import asyncio

    expected = encode(digits, HELD_OUT[:64])

    async def all_at_once() -> list[np.ndarray]:
        async with httpx.AsyncClient(base_url=digits.url, timeout=60) as client:
            answers = await asyncio.gather(
                *(client.post("/encode?dictionary=digits", content=npy(row)) for row in HELD_OUT[:64])
            )
        return [np.load(io.BytesIO(answer.content)) for answer in answers]

    for row, wanted in zip(asyncio.run(all_at_once()), expected, strict=True):
        np.testing.assert_allclose(row[0], wanted, atol=1e-5 * wanted.max())
