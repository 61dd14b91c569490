"""Fits of little data, where what is done around each operation may take longer than the operation.

Each library has fitted the same data before, so that nothing is loaded or compiled any more.
"""

from benchmarks.cases import Bench
from benchmarks.cases.fit import HUNDRED_ITERATIONS, faster, time_to
from benchmarks.figures import Result

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
        result.figures.append(faster(data, theirs[1:], ours[1:], at_least=1))
    return result
