"""The same row alone, in a batch of 1000, twice, and in a fresh process: how far its codes differ."""

import numpy as np

from benchmarks.cases import Bench
from benchmarks.figures import Figure, Result
from benchmarks.libraries import OURS
from benchmarks.process import Library

BATCH = 1000
ALONE = 20


def run(bench: Bench) -> Result:
    data = bench.data.to_fit[0]
    batch = min(BATCH, len(data.A))
    rows_path = data.path.with_name("rows.npy")
    D_path = str(data.path.with_name("repeat-D.npy"))
    bench.ours.ask(
        "fit", A=str(data.path), nb_concepts=data.nb_concepts, settings={}, keep_D=D_path, limit_seconds=120
    )

    def codes(library: Library, first: int, count: int) -> np.ndarray:
        np.save(rows_path, data.A[first : first + count])
        out = str(data.path.with_name("repeat-codes.npy"))
        library.ask(
            "encode",
            A=str(rows_path),
            D=D_path,
            rows=count,
            settings={},
            seconds=0,
            codes=out,
            limit_seconds=120,
        )
        return np.load(out)  # type: ignore[no-any-return]

    together = codes(bench.ours, 0, batch)
    again = codes(bench.ours, 0, batch)
    picked = list(range(0, batch, max(1, batch // ALONE)))
    alone = np.concatenate([codes(bench.ours, i, 1) for i in picked])
    other = Library(OURS)
    try:
        fresh = codes(other, 0, batch)
    finally:
        other.stop()

    def difference(Z: np.ndarray, of: np.ndarray) -> float:
        return float((np.abs(Z - of).max(axis=1) / np.maximum(of.max(axis=1), 1e-30)).max())

    name = f"{data}: largest difference of a code over the row's largest,"
    return Result(
        [
            Figure(f"{name} alone and in a batch of {batch}", difference(alone, together[picked]), at_most=1e-5),
            Figure(f"{name} twice", difference(again, together), at_most=1e-5),
            Figure(f"{name} in another process", difference(fresh, together), at_most=1e-5),
        ]
    )
