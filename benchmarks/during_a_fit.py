"""What a large fit does to others: one-row encodes at rest and while it runs, a cancel, a worker's replacement.

``python -m benchmarks.during_a_fit`` starts the service on loopback and writes benchmarks/during_a_fit.json.
"""

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from demo.digits import split_digits
from demo.service import npy, running_service

RESULTS = Path(__file__).with_suffix(".json")
ROWS, N_FEATURES, NB_CONCEPTS = 20_000, 512, 256
ENCODES = 500


def main() -> None:
    fitted_on, held_out = split_digits()
    rng = np.random.default_rng(0)
    planted = (rng.random((ROWS, 64), np.float32) ** 8) @ (rng.random((64, N_FEATURES), np.float32) ** 4)
    row = npy(held_out[:1])

    with tempfile.TemporaryDirectory() as directory, running_service(Path(directory) / "models", "error") as client:
        small = client.post(
            "/fit?name=digits&nb_concepts=64", content=npy(fitted_on), headers={"prefer": "wait=120"}, timeout=130
        )
        assert small.json()["state"] == "succeeded", small.text
        results: dict[str, object] = {
            "cores": os.cpu_count(),
            "fit": {"rows": ROWS, "n_features": N_FEATURES, "nb_concepts": NB_CONCEPTS},
            "at_rest_ms": _encode_times(client, row),
        }
        large = client.post(
            f"/fit?name=large&nb_concepts={NB_CONCEPTS}&tol=0&max_iter=100000", content=npy(planted)
        ).headers["location"]
        while client.get(large).json()["progress"]["iteration"] < 1:
            time.sleep(0.05)
        results["during_the_fit_ms"] = _encode_times(client, row)

        begun = time.perf_counter()
        assert client.delete(large).json()["state"] == "cancelled"
        results["cancel_ms"] = round(1e3 * (time.perf_counter() - begun), 1)

        os.kill(client.get("/readyz").json()["worker"]["pid"], signal.SIGKILL)
        begun = time.perf_counter()
        while client.post("/encode?dictionary=digits", content=row).status_code != 200:
            time.sleep(0.01)
        results["encode_after_the_worker_was_killed_ms"] = round(1e3 * (time.perf_counter() - begun), 1)

    print(json.dumps(results, indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _encode_times(client: httpx.Client, row: bytes) -> dict[str, float]:
    times = []
    for _ in range(ENCODES):
        begun = time.perf_counter()
        client.post("/encode?dictionary=digits", content=row).raise_for_status()
        times.append(1e3 * (time.perf_counter() - begun))
    median, late = np.percentile(times, [50, 99])
    return {"median": round(float(median), 2), "p99": round(float(late), 2)}


if __name__ == "__main__":
    main()
