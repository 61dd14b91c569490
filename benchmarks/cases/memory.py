"""Memory of a fit: the process's peak above what it held once everything was imported and A was loaded."""

import json

from benchmarks.cases import Bench
from benchmarks.figures import Figure, Result, Table

CODE = """
import json, re, sys
import numpy as np
from core import NMF
from core.warm import warm

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

warm()
A = np.load(sys.argv[1])
before = status("VmRSS")
NMF(int(sys.argv[2]), seed=0).fit(A, max_iter=int(sys.argv[3]))
print(json.dumps({"A": A.nbytes, "before": before, "peak": status("VmHWM")}))
"""
ITERATIONS = 20


def run(bench: Bench) -> Result:
    data = bench.data.to_fit[-1]
    told = json.loads(bench.printed(CODE, str(data.path), str(data.nb_concepts), str(ITERATIONS)))
    above = (told["peak"] - told["before"]) / told["A"]
    # of tiny data, numpy's and torch's own buffers are a multiple
    goal = None if bench.quick else 3.0
    mib = {name: value / 2**20 for name, value in told.items()}
    return Result(
        [Figure(f"{data}: peak memory of {ITERATIONS} iterations above A itself", above, " × A", at_most=goal)],
        [
            Table(
                f"{data}, MiB",
                ["A", "before the fit", "at its peak"],
                [[mib["A"], mib["before"], mib["peak"]]],
            )
        ],
    )
