"""How the time of twenty iterations grows with the rows and with the concepts."""

import math
from statistics import median

from benchmarks.cases import Bench
from benchmarks.data import planted
from benchmarks.figures import Cell, Figure, Result, Table

ITERATIONS = 20


def run(bench: Bench) -> Result:
    n, d, k = (400, 32, 8) if bench.quick else (5_000, 768, 128)
    data = {(rows, nb): planted(bench.data.folder, rows, d, nb) for rows, nb in ((n, k), (4 * n, k), (n, 4 * k))}
    times: dict[tuple[int, int], list[float]] = {shape: [] for shape in data}
    for _ in range(bench.repeats):
        for shape, of_shape in data.items():
            told = bench.ours.ask(
                "fit",
                A=str(of_shape.path),
                nb_concepts=shape[1],
                settings={"max_iter": ITERATIONS, "tol": 0},
                limit_seconds=120,
            )
            times[shape].append(told["seconds"])
            bench.say(f"{of_shape}: {told['seconds']:.2f} s")
    seconds = {shape: median(of_shape) for shape, of_shape in times.items()}

    def exponent(shape: tuple[int, int]) -> float:
        return math.log(seconds[shape] / seconds[n, k]) / math.log(4)

    rows: list[list[Cell]] = [[f"{shape[0]}×{d}", shape[1], value] for shape, value in seconds.items()]
    return Result(
        [
            Figure(
                f"time ∝ rows^x from {n} to {4 * n} rows, k={k}: x",
                exponent((4 * n, k)),
                at_most=None if bench.quick else 1.05,
            ),
            Figure(f"time ∝ k^x from k={k} to {4 * k}, {n} rows: x", exponent((n, 4 * k))),
        ],
        [Table(f"{ITERATIONS} iterations", ["A", "k", "seconds"], rows)],
    )
