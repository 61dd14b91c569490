"""One-row encodes in a process that advances a fit between them: how much later than the median the latest come."""

import json
from statistics import median

from benchmarks.cases import Bench
from benchmarks.figures import Cell, Figure, Result, Table

CODE = """
import json, sys, time
import numpy as np
from core import NMF, Dictionary
from core.warm import warm

warm()
small, large, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
A = np.load(small)
dictionary = Dictionary(NMF(8 if len(A) < 1000 else 64, seed=0).fit(A)[1])
rows = [A[i : i + 1] for i in range(min(len(A), 200))]
data, steps = np.load(large), iter(())

def timed(between):
    times = []
    for call in range(calls):
        between()
        begun = time.perf_counter()
        dictionary.encode(rows[call % len(rows)])
        times.append(1e3 * (time.perf_counter() - begun))
    return times

def advance():
    global steps
    if next(steps, None) is None:
        steps = NMF(8 if len(A) < 1000 else 128, seed=0, tol=0, max_iter=100000).fit_steps(data)

print(json.dumps({"at rest": timed(lambda: None), "between slices of a fit": timed(advance)}))
"""


def run(bench: Bench) -> Result:
    small, large = bench.data.to_fit[0], bench.data.planted
    calls = 50 if bench.quick else 1000
    rounds = [
        json.loads(bench.printed(CODE, str(small.path), str(large.path), str(calls))) for _ in range(bench.repeats)
    ]
    rows: list[list[Cell]] = []
    ratios = {}
    for when in rounds[0]:
        ordered = [sorted(told[when]) for told in rounds]
        p50 = [times[calls // 2] for times in ordered]
        p99 = [times[calls * 99 // 100] for times in ordered]
        ratios[when] = median(late / middle for late, middle in zip(p99, p50, strict=True))
        rows.append([when, median(p50), median(p99), ratios[when]])
    busy = "between slices of a fit"
    return Result(
        [Figure(f"one row of {small} encoded {busy}: p99 over p50", ratios[busy], at_most=4)],
        [Table(f"one row of {small}; the fit is of {large}", ["encode", "p50 (ms)", "p99 (ms)", "p99/p50"], rows)],
    )
