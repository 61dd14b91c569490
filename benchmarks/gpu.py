"""``make gpu``: encode and fit on a GPU, beside the floor that the device's own rates set.

The rates are measured first: the largest matrix products in TF32 and float32, and a copy. The floor of a case is the
larger of its products' operations over the rate and its bytes over the bandwidth; `ratio` is time over floor. Every
case is written as soon as it is done, so that a run that is cut off keeps what it has; one that would begin after
``--seconds`` is left out, and said to be.

``--quick --device cpu`` shows that everything runs, on tiny data and without Triton.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import core.threads  # noqa: F401 - before torch

import torch  # isort: skip
from core import Dictionary, kernels
from core.chunks import Chunks
from core.dictionary import ENCODE_MAX_ITER, ENCODE_TOL
from core.kernels import URGENT
from core.kernels.precision import Precision, product
from core.progress import run
from core.solvers import hals

RESULTS = Path(__file__).parent / "gpu.json"
ACTIVE = 20  # concepts in a row of the planted data
ROWS_MADE = 8192  # at once
NOISE = 0.01
LARGEST, SHORT_NAME = 12, 60  # kernels that are told of each by itself; characters of a name, at least
WARM_UP_ROWS = 40_000  # enough for the tiles of a large fit

Figures = dict[str, Any]


@dataclass
class Bench:
    """One run: the device, what it can do, and what has been measured on it."""

    device: torch.device
    quick: bool
    deadline: float
    output: Path | None
    told: Figures = field(default_factory=dict)

    def seconds(self, work: Callable[[], object], *, repeats: int = 5, limit: float = 20) -> float:
        """Median of some runs after one to warm up, fewer where they take long."""
        work()
        times: list[float] = []
        while len(times) < repeats and sum(times) < limit:
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begun)
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def record(self, name: str, figures: Figures) -> None:
        self.told[name] = figures
        print(f"{name}: {json.dumps(figures)}", flush=True)
        if self.output is not None:
            self.output.write_text(json.dumps(self.told, indent=1, ensure_ascii=False) + "\n")

    def floor(self, *, tf32: float = 0, float32: float = 0, numbers: float = 0) -> float:
        """Seconds, for so many operations of either kind and so many float32 numbers read or written."""
        rates = self.told["rates"]
        compute = tf32 / rates["tf32_operations_per_second"] + float32 / rates["float32_operations_per_second"]
        return max(compute, 4 * numbers / rates["copied_bytes_per_second"])


# --- data ---------------------------------------------------------------------------------------------------------


def concepts(bench: Bench, nb_concepts: int, n_features: int) -> torch.Tensor:
    generator = torch.Generator(bench.device).manual_seed(0)
    D = torch.empty(nb_concepts, n_features, device=bench.device).exponential_(generator=generator)
    return D * (torch.rand(D.shape, generator=generator, device=bench.device) < 0.3)


def activations(bench: Bench, rows: int, D: torch.Tensor) -> torch.Tensor:
    """Z·D for planted Z of about ACTIVE concepts a row, and 1 % of noise."""
    generator = torch.Generator(bench.device).manual_seed(1)
    A = torch.empty(rows, D.shape[1], device=bench.device)
    for start in range(0, rows, ROWS_MADE):
        part = A[start : start + ROWS_MADE]
        Z = torch.empty(len(part), len(D), device=bench.device).exponential_(generator=generator)
        Z *= torch.rand(Z.shape, generator=generator, device=bench.device) < ACTIVE / len(D)
        planted = product(Z, D, Precision.TF32)
        noise = torch.randn(planted.shape, generator=generator, device=bench.device)
        noise *= NOISE * torch.linalg.vector_norm(planted) / planted.numel() ** 0.5
        torch.add(planted, noise, out=part).clamp_(min=0)
    return A


# --- cases --------------------------------------------------------------------------------------------------------


def rates(bench: Bench) -> Figures:
    """What the device reaches: operations and bytes (read and written) a second."""
    n, numbers = (256, 1 << 20) if bench.quick else (8192, 1 << 30)
    X, Y = torch.rand(n, n, device=bench.device), torch.rand(n, n, device=bench.device)
    here, there = torch.rand(numbers, device=bench.device), torch.empty(numbers, device=bench.device)
    return {
        "tf32_operations_per_second": 2 * n**3 / bench.seconds(lambda: product(X, Y, Precision.TF32)),
        "float32_operations_per_second": 2 * n**3 / bench.seconds(lambda: product(X, Y, Precision.FLOAT32)),
        "split_operations_per_second": 2 * n**3 / bench.seconds(lambda: product(X, Y, Precision.SPLIT)),
        "copied_bytes_per_second": 8 * numbers / bench.seconds(lambda: there.copy_(here)),
    }


def encode(bench: Bench, rows: int, nb_concepts: int, n_features: int) -> Figures:
    """The floor is one product in TF32, to begin with, and one in float32, which certifies."""
    D = concepts(bench, nb_concepts, n_features)
    A = activations(bench, rows, D)
    dictionary = Dictionary(D, device=bench.device)
    dictionary.encode(A[:1000])
    encoded = dictionary.encode(A)
    taken = bench.seconds(lambda: dictionary.encode(A), repeats=3, limit=15)
    operations = 2.0 * rows * nb_concepts * n_features
    floor = bench.floor(
        tf32=operations, float32=operations, numbers=A.numel() + D.numel() + float(rows) * nb_concepts
    )
    return {
        "rows": rows, "nb_concepts": nb_concepts, "n_features": n_features,
        "seconds": taken, "floor_seconds": floor, "ratio": taken / floor, "rows_per_second": rows / taken,
        "converged_share": float(encoded.converged.double().mean()),
        "worst_kkt_residual": float(encoded.kkt_residual.amax()),
        "active_concepts": float((encoded.codes > 0).sum(dim=1).double().mean()),
        "milliseconds_by_kernel": largest(by_kernel(bench, lambda: dictionary.encode(A))),
    }  # fmt: skip


def encode_one(bench: Bench, nb_concepts: int, n_features: int) -> Figures:
    D = concepts(bench, nb_concepts, n_features)
    rows = activations(bench, 20, D)
    dictionary = Dictionary(D, device=bench.device)
    dictionary.encode(rows)
    taken, unrecorded = (
        sorted(bench.seconds(partial(solve, row), repeats=20, limit=1) for row in rows.split(1))[len(rows) // 2]
        for solve in (dictionary.encode, partial(unrecorded_encode, dictionary))
    )
    floor = bench.floor(float32=2.0 * D.numel(), numbers=D.numel())
    of_kernels = by_kernel(bench, lambda: dictionary.encode(rows[:1]))
    return {
        "nb_concepts": nb_concepts, "n_features": n_features,
        "microseconds": 1e6 * taken, "floor_microseconds": 1e6 * floor, "ratio": taken / floor,
        "microseconds_unrecorded": 1e6 * unrecorded,
        "microseconds_on_the_device": 1e3 * sum(of_kernels.values()), "milliseconds_by_kernel": largest(of_kernels),
    }  # fmt: skip


def encode_one_beside(bench: Bench, nb_concepts: int, n_features: int) -> Figures:
    """On a stream as the worker has them, while the device has a second of products to do on another, as of a fit."""
    D = concepts(bench, nb_concepts, n_features)
    rows = activations(bench, 20, D).split(1)
    dictionary = Dictionary(D, device=bench.device)
    n = 256 if bench.quick else 8192
    X, Y = torch.rand(n, n, device=bench.device), torch.rand(n, n, device=bench.device)
    products = 1 if bench.quick else round(bench.told["rates"]["tf32_operations_per_second"] / (2 * n**3))

    def each(stays: Callable[[], bool]) -> list[float]:
        taken = []
        for row in rows:
            begun = time.perf_counter()
            dictionary.encode(row).codes.cpu()
            if not stays():
                break
            taken.append(time.perf_counter() - begun)
        return sorted(1e6 * seconds for seconds in taken)

    on_gpu = bench.device.type == "cuda"
    stream = torch.cuda.Stream(bench.device, priority=URGENT) if on_gpu else None  # type: ignore[no-untyped-call]
    bench.wait()
    with torch.cuda.stream(stream) if on_gpu else nullcontext():
        each(lambda: True)
        times = each(lambda: True)
        alone = times[len(times) // 2]
    begun = time.perf_counter()
    for _ in range(products):
        product(X, Y, Precision.TF32)
    done = torch.cuda.current_stream(bench.device).record_event() if on_gpu else None
    with torch.cuda.stream(stream) if on_gpu else nullcontext():
        times = each(lambda: done is None or not done.query())
        beside = times[len(times) // 2] if times else None  # none where even the first had to wait for all
    bench.wait()
    return {
        "nb_concepts": nb_concepts, "n_features": n_features,
        "microseconds": beside, "microseconds_alone": alone, "ratio": None if beside is None else beside / alone,
        "of_rows": len(times), "seconds_of_products": time.perf_counter() - begun,
    }  # fmt: skip


def unrecorded_encode(dictionary: Dictionary, row: torch.Tensor) -> torch.Tensor:
    """Launch by launch, for comparison with what `core.kernels.cuda.graphs` plays."""
    return kernels.solve(row, dictionary._prepared, tol=ENCODE_TOL, max_sweeps=ENCODE_MAX_ITER)[0]


def by_kernel(bench: Bench, work: Callable[[], object]) -> Counter[str]:
    """Milliseconds on the device in each kernel; on the CPU, of operations."""
    on_gpu = bench.device.type == "cuda"
    # the one for devices loads torch's compiler as it starts, which takes seconds
    cuda = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[cuda]) if on_gpu else torch.autograd.profiler.profile() as profile:
        work()
        bench.wait()
    times: Counter[str] = Counter()
    for event in profile.key_averages():
        times[event.key] += 1e-3 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
    return times


def largest(times: Counter[str]) -> Figures:
    """Those that take most of the time, by as much of their names as tells them apart, and the others together."""
    most = dict(times.most_common(LARGEST))

    def shortened(name: str) -> str:
        starts = (name[:length] for length in range(SHORT_NAME, len(name)))
        return next((start for start in starts if sum(other.startswith(start) for other in most) == 1), name)

    return {shortened(name): time for name, time in most.items()} | {"others": times.total() - sum(most.values())}


def fit(bench: Bench, rows: int, n_features: int, nb_concepts: int, iterations: int, peer_seconds: float) -> Figures:
    """A few iterations of ours, beside a loop over columns from the same start until its time is up.

    The floor of an iteration: its products with A and of Z, three of TF32 each, and its sweeps' products with the
    gram in TF32; Z read and written once a sweep. `seconds_to_its_loss` is None where ours did not get there.
    """
    A = activations(bench, rows, concepts(bench, min(nb_concepts, 4 * n_features), n_features))
    energy = float(torch.linalg.vector_norm(A, dtype=torch.float64)) ** 2
    peer_at, peer_loss, peer_iterations = column_loop(bench, A, nb_concepts, energy, peer_seconds)

    few = surveyed(A[:WARM_UP_ROWS], nb_concepts)  # compiles
    run(progress for progress in hals.solve(few, *start(bench, few.A, nb_concepts), tol=0, max_iter=1))
    Z, D = start(bench, A, nb_concepts)
    chunks = surveyed(A, nb_concepts)
    losses: list[float] = []
    ends: list[float] = []
    bench.wait()
    begun = time.perf_counter()
    for progress in hals.solve(chunks, Z, D, tol=0, max_iter=iterations):
        if progress.loss is not None and progress.iteration > len(losses):
            bench.wait()
            losses.append(progress.loss)
            ends.append(time.perf_counter() - begun)
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    to_its_loss = next((end for end, loss in zip(ends, losses, strict=True) if loss <= peer_loss), None)
    k, d, n = nb_concepts, n_features, rows
    sweeps = hals.CODE_SWEEPS * n + hals.CONCEPT_SWEEPS * d
    operations = 2.0 * k * (3 * (2 * n * d + 2 * n * k) + sweeps * k)
    floor = bench.floor(tf32=operations, numbers=2.0 * hals.CODE_SWEEPS * n * k + n * d)
    return {
        "rows": n, "n_features": d, "nb_concepts": k,
        "seconds_an_iteration": each, "floor_seconds": floor, "ratio": each / floor,
        "seconds_after": ends, "relative_error_after": [math.sqrt(2 * loss / energy) for loss in losses],
        "column_loop": {
            "iterations": peer_iterations, "seconds": peer_at, "relative_error": math.sqrt(2 * peer_loss / energy),
            "seconds_to_its_loss": to_its_loss,
            "times_faster": None if to_its_loss is None else peer_at / to_its_loss,
        },
    }  # fmt: skip


def surveyed(A: torch.Tensor, nb_concepts: int) -> Chunks:
    chunks = Chunks(A, nb_concepts)
    run(chunks.survey())
    return chunks


def start(bench: Bench, A: torch.Tensor, nb_concepts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(bench.device).manual_seed(2)
    scale = (float(A.mean()) / nb_concepts) ** 0.5
    shapes = (len(A), nb_concepts), (nb_concepts, A.shape[1])
    Z, D = (torch.randn(shape, generator=generator, device=bench.device).abs_().mul_(scale) for shape in shapes)
    return Z, D


def column_loop(
    bench: Bench, A: torch.Tensor, nb_concepts: int, energy: float, limit: float
) -> tuple[float, float, int]:
    """HALS as overcomplete does it, a column of Z, then a row of D, at a time: (seconds, loss, iterations).

    Its iteration is one pass over each; at least one is done, and none begun that would probably end too late.
    """
    Z, D = start(bench, A, nb_concepts)
    bench.wait()
    begun, iterations, taken = time.perf_counter(), 0, 0.0
    while iterations == 0 or taken * (iterations + 1) / iterations < limit:
        _columns(Z, A @ D.T, D @ D.T)
        transposed = D.T.contiguous()
        _columns(transposed, A.T @ Z, Z.T @ Z)
        D = transposed.T.contiguous()
        bench.wait()
        iterations, taken = iterations + 1, time.perf_counter() - begun
    inner = float((kernels.product(A.T, Z).double() * D.T).sum())
    loss = 0.5 * energy - inner + 0.5 * float((kernels.product(Z.T, Z).double() * kernels.product(D, D.T)).sum())
    return taken, loss, iterations


def _columns(Z: torch.Tensor, C: torch.Tensor, B: torch.Tensor) -> None:
    for j in range(len(B)):
        step = (C[:, j] - Z @ B[:, j]) / B[j, j].clamp(min=1e-10)
        Z[:, j] = (Z[:, j] + step).clamp(min=0)


def cases(bench: Bench) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """The cheap ones first."""
    quick = bench.quick
    k, d = (64, 32) if quick else (4096, 768)
    yield f"encode, one row, k={k}, d={d}", partial(encode_one, bench, k, d)
    yield f"encode, one row beside a fit, k={k}, d={d}", partial(encode_one_beside, bench, k, d)
    for rows, k, d in ((200, 64, 32), (50, 96, 48)) if quick else ((100_000, 4096, 768), (100_000, 16384, 4096)):
        yield f"encode, {rows} rows, k={k}, d={d}", partial(encode, bench, rows, k, d)
    peer_seconds = 0.2 if quick else 40.0
    n, d = (300, 48) if quick else (200_000, 768)
    for k, iterations in ((16, 15), (24, 6)) if quick else ((4096, 15), (10_000, 6)):
        yield f"fit, {n}×{d}, k={k}", partial(fit, bench, n, d, k, iterations, peer_seconds)


def circumstances(device: torch.device) -> Figures:
    versions = {"torch": str(torch.__version__)}
    for name in ("triton", "numpy", "numba"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "versions": versions, "date": datetime.now(UTC).date().isoformat()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--quick", action="store_true", help="tiny data, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=330, help="no case begins after so many")
    parser.add_argument("--output", type=Path, help="where the figures go; a quick run writes none unless told")
    given = parser.parse_args()
    if given.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --quick --device cpu shows that everything runs")
    output = given.output or (None if given.quick else RESULTS)
    bench = Bench(given.device, given.quick, time.monotonic() + given.seconds, output)
    bench.record("made", circumstances(given.device) | {"command": "python -m benchmarks.gpu"})
    bench.record("rates", rates(bench))
    failed = False
    for name, case in cases(bench):
        if bench.left() < 0:
            bench.record(name, {"left_out": f"{given.seconds:.0f} s were over"})
            continue
        try:
            bench.record(name, case())
        except torch.OutOfMemoryError as error:
            bench.record(name, {"left_out": str(error)})
        except Exception as error:  # the others are to be had all the same
            traceback.print_exc()
            bench.record(name, {"failed": f"{type(error).__name__}: {error}"})
            failed = True
        if given.device.type == "cuda":
            with suppress(torch.AcceleratorError):  # of a device that has failed, which the next case tells
                torch.cuda.empty_cache()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
