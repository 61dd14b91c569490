"""Fits of little data, where what is done around each operation may take longer than the operation.

Each library has fitted the same data before, so that nothing is loaded or compiled any more.
"""

from statistics import median

from benchmarks.cases import Bench
from benchmarks.cases.fit import HUNDRED_ITERATIONS, time_to
from benchmarks.figures import Figure, Result

TIMES = 15


def run(bench: Bench) -> Result:
    result = Result()
    for data in bench.data.small:
        given = {"A": str(data.path), "nb_concepts": data.nb_concepts}
        theirs, ours = [], []
        for _ in range(1 + (1 if bench.quick else TIMES)):
            told = bench.libraries["scikit-learn"].ask("fit", **given, settings=HUNDRED_ITERATIONS, limit_seconds=60)
            trace = bench.ours.ask("trace", **given, until=told["loss"], max_seconds=60, limit_seconds=120)
            theirs.append(told["seconds"])
            ours.append(time_to(trace, told["loss"]))
        reached = [seconds for seconds in ours[1:] if seconds is not None]
        result.figures.append(
            Figure(
                f"{data}: times faster to the loss of scikit-learn's 100 iterations",
                median(theirs[1:]) / median(reached) if len(reached) == len(ours) - 1 else None,
                "×",
                at_least=1,
                note=f"{1e3 * median(reached):.3g} ms, it {1e3 * median(theirs[1:]):.3g} ms" if reached else "",
            )
        )
    return result
