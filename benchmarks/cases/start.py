"""What a new process pays: the imports, and the first encode with compiled kernels in the cache."""

from statistics import median

import numpy as np

from benchmarks.cases import Bench
from benchmarks.figures import Figure, Result
from benchmarks.process import run_fresh

FIRST_ENCODE = """
import sys
import numpy as np
from core import Dictionary
D = np.load(sys.argv[1])
Dictionary(D).encode(D[:1])
"""


def run(bench: Bench) -> Result:
    path = bench.data.folder / "start-D.npy"
    np.save(path, np.random.default_rng(0).random((64, 512), np.float32))
    bench.ours.start()  # fills the cache

    def seconds(code: str) -> float:
        return median(run_fresh(code, str(path))[0] for _ in range(bench.repeats))

    whole = "a new process, from start to end:"
    return Result(
        [
            Figure(f"{whole} import core", seconds("import core"), " s", at_most=2),
            Figure(f"{whole} from core import NMF", seconds("from core import NMF"), " s", at_most=2),
            Figure(f"{whole} first encode", seconds(FIRST_ENCODE), " s", at_most=3),
        ]
    )
