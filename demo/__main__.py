"""``make demo``: the main job on real data, end to end over HTTP, with real clients.

Trains a small network on scikit-learn's digits, starts the service on a free port with a temporary store, fits its
hidden activations, follows the job, encodes held-out rows with curl and as npy, decodes, and prints how good it is
beside scikit-learn's own NMF.
"""

import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import httpx
import numpy as np
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from demo.digits import digits_activations, split_digits
from demo.service import npy, running_service

NB_CONCEPTS = 64
PEER_ITERATIONS = 200

TRY_NEXT = """Try next, with `make serve` in another terminal:

  curl localhost:8000/fit -H 'Prefer: wait=30' \\
    -d '{"name": "toy", "nb_concepts": 2, "data": [[1, 0, 2, 0], [0, 3, 0, 1], [1, 3, 2, 1], [2, 3, 4, 1]]}'
  curl localhost:8000/encode -d '{"dictionary": "toy", "data": [[3, 3, 6, 1]]}'
  curl localhost:8000/dictionaries/toy

and http://localhost:8000/docs in a browser."""


def main() -> None:
    started = time.perf_counter()
    fitted_on, held_out = split_digits()
    print(f"Activations: {digits_activations().shape} of a ReLU network trained on digits, {_since(started)}")

    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        started_service = time.perf_counter()
        with running_service(scratch / "models") as client:
            print(f"Service: ready at {client.base_url} after {_since(started_service)}")
            _fit(client, fitted_on)
            codes = _encode(client, held_out, scratch)
            decoded = _decode(client, codes, scratch)
            _report(client, fitted_on, held_out, codes, decoded)
    print(f"\nThe service has stopped. {_since(started)} in all.\n\n{TRY_NEXT}")


def _fit(client: httpx.Client, A: np.ndarray) -> None:
    parameters = {"name": "digits", "nb_concepts": NB_CONCEPTS}
    answer = client.post("/fit", params=parameters, content=npy(A)).raise_for_status()
    job = answer.json()
    with tqdm(total=job["progress"]["max_iter"], desc="Fit", unit="it", file=sys.stdout) as bar:
        while job["state"] in ("queued", "running"):
            time.sleep(0.05)
            job = client.get(answer.headers["location"]).raise_for_status().json()
            progress = job["progress"]
            bar.set_postfix(relative_error=progress["relative_error"], refresh=False)
            bar.update(progress["iteration"] - bar.n)
    if job["state"] != "succeeded":
        sys.exit(f"the fit {job['state']}: {job['error']}")
    print(
        f"Fit: digits@{job['version']} after {job['progress']['iteration']} iterations in {progress['seconds']:.2f} s"
    )


def _encode(client: httpx.Client, A: np.ndarray, scratch: Path) -> np.ndarray:
    """Codes of held-out rows: three as JSON by curl, all of them as npy."""
    request = scratch / "request.json"
    request.write_text(json.dumps({"dictionary": "digits", "data": A[:3].tolist()}))
    command = ["curl", "--silent", "--show-error", "--fail", f"{client.base_url}/encode", "-d", f"@{request}"]
    started = time.perf_counter()
    by_curl = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    print(f"Encode: 3 held-out rows as JSON with curl in {_since(started)}, converged: {by_curl['converged']}")

    started = time.perf_counter()
    answer = client.post("/encode", params={"dictionary": "digits"}, content=npy(A)).raise_for_status()
    converged = answer.headers["dictserve-converged"]
    print(f"Encode: {len(A)} held-out rows as npy in {_since(started)}, converged: {converged}")
    codes = np.load(io.BytesIO(answer.content), allow_pickle=False)
    if not np.allclose(by_curl["codes"], codes[:3], rtol=1e-4, atol=1e-5 * codes.max()):
        sys.exit("curl and npy were given different codes")

    row = npy(A[:1])
    times = []
    for _ in range(200):
        started = time.perf_counter()
        client.post("/encode", params={"dictionary": "digits"}, content=row).raise_for_status()
        times.append(time.perf_counter() - started)
    print(f"Encode: one row as npy, {1e3 * float(np.median(times)):.1f} ms at the median of {len(times)}")
    return codes


def _decode(client: httpx.Client, codes: np.ndarray, scratch: Path) -> np.ndarray:
    decoded = scratch / "activations.npy"
    (scratch / "codes.npy").write_bytes(npy(codes))
    command = ["curl", "--silent", "--show-error", "--fail", f"{client.base_url}/decode?dictionary=digits"]
    started = time.perf_counter()
    subprocess.run([*command, "--data-binary", f"@{scratch / 'codes.npy'}", "-o", decoded], check=True)
    print(f"Decode: {len(codes)} rows as npy with curl in {_since(started)}")
    return np.load(decoded)


def _report(
    client: httpx.Client, fitted_on: np.ndarray, held_out: np.ndarray, codes: np.ndarray, decoded: np.ndarray
) -> None:
    """How good the dictionary is, beside the library that people would use instead."""
    metrics = client.get("/dictionaries/digits").raise_for_status().json()["metrics"]
    ours = _relative_error(held_out, decoded)

    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer = NMF(NB_CONCEPTS, init="nndsvda", solver="cd", max_iter=PEER_ITERATIONS, random_state=0).fit(fitted_on)
        theirs = _relative_error(held_out, peer.transform(held_out) @ peer.components_)
    seconds = _since(started)

    print(f"\nRelative error on {len(held_out)} held-out rows, {NB_CONCEPTS} concepts:")
    print(f"  dictserve                                       {ours:.5f}")
    print(f"  scikit-learn NMF (cd, nndsvda, {PEER_ITERATIONS} iterations)  {theirs:.5f}   ({seconds})")
    print(f"Dead concepts: {metrics['dead_concepts']}; coherence {metrics['coherence']:.2f}; R² {metrics['r2']:.4f}")
    used = (codes > 0).sum(axis=1).mean()
    print(f"Codes: {used:.1f} of {NB_CONCEPTS} non-zero; Hoyer sparsity {metrics['sparsity']:.2f}")
    if ours > theirs or metrics["dead_concepts"]:
        sys.exit("the dictionary is worse than it should be")


def _relative_error(A: np.ndarray, approximation: np.ndarray) -> float:
    return float(np.linalg.norm(A - approximation) / np.linalg.norm(A))


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.2f} s"


if __name__ == "__main__":
    main()
