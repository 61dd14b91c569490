"""Online fits: activations past memory, and how near they come to full-batch fits.

The rows of the large fit are made as they are read, from a planted dictionary and noise: no disk holds them.
"""

import json
import time

import numpy as np

from benchmarks.cases import Bench
from benchmarks.data import DataSet
from benchmarks.figures import Figure, Result, Table
from core import NMF

GIB = 2**30
EPOCHS = 3
SOME_ROWS = 20_000  # that are fitted whole, too
TEST_ROWS = 4_000
NOISE_ROWS = 20_000
BATCH_ROWS = {"digits": 1024}  # so that there are two batches at least

LARGE = """
import json, re, sys, time
from core import NMF
import numpy as np
import torch

gib, d, k = float(sys.argv[1]), 768, 64
# rows for a full-batch fit, others to compare on, and rows of noise that all blocks draw from, each at its own place
SOME, TEST, POOL = map(int, sys.argv[2:])
rng = np.random.default_rng(0)
D = rng.standard_exponential((k, d), np.float32) * (rng.random((k, d), np.float32) < 0.3)
noise = torch.from_numpy(0.2 * np.abs(rng.standard_normal((2 * POOL, d), np.float32)))

class Made:
    shape = int(gib * 2**30) // (4 * d), d
    def __getitem__(self, rows):
        # the same rows each time that they are asked for
        rng, n = np.random.default_rng(rows.start), rows.stop - rows.start
        Z = rng.standard_exponential((n, k), np.float32) * (rng.random((n, k), np.float32) < 0.2)
        start = int(rng.integers(POOL))
        return torch.addmm(noise[start : start + n], torch.from_numpy(Z), torch.from_numpy(D))

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def relative_error(model, rows):
    A = rows.double()
    Z = model.encode(rows).double()
    return float(torch.linalg.norm(A - Z @ model.get_dictionary().double()) / torch.linalg.norm(A))

made, begun = Made(), time.perf_counter()
online = NMF(k, seed=0)
online.fit_online(made, 1)
seconds, peak = time.perf_counter() - begun, status("VmHWM")
# beside a full-batch fit of some rows, on rows that neither has seen: the planted D would be no
# measure, for it knows nothing of the noise's mean
some, test = made[slice(0, SOME)], made[slice(10**9, 10**9 + TEST)]
whole = NMF(k, seed=0)
whole.fit(some)
errors = {"online": relative_error(online, test), "whole": relative_error(whole, test)}
print(json.dumps({"rows": made.shape[0], "seconds": seconds, "peak": peak, **errors}))
"""


def run(bench: Bench) -> Result:
    gib, some, test, pool = (0.01, 300, 100, 4096) if bench.quick else (40, SOME_ROWS, TEST_ROWS, NOISE_ROWS)
    large = json.loads(bench.printed(LARGE, str(gib), str(some), str(test), str(pool)))
    bench.say(f"{gib} GiB in {large['seconds']:.0f} s")
    name = f"{gib:g} GiB of activations, {large['rows']}×768, k=64, one epoch"
    figures = [
        # torch and the kernels alone take a third of it
        Figure(f"{name}: peak memory of the process", large["peak"] / GIB, " GiB", at_most=1.0),
        Figure(f"{name}: time", large["seconds"] / 60, " min", at_most=10),
        Figure(
            f"{name}: loss on other rows, above that of a full-batch fit of {some:_}".replace("_", " "),
            100 * ((large["online"] / large["whole"]) ** 2 - 1),
            " %",
            at_most=3,
        ),
    ]
    rows = []
    for data in bench.data.to_fit:
        full, online = _losses(data)
        figures.append(
            Figure(
                f"{data}: loss after {EPOCHS} epochs, above a full-batch fit's",
                100 * (online["loss"] / full["loss"] - 1),
                " %",
                at_most=3,
            )
        )
        rows += [
            [str(data), way, told["seconds"], told["loss"]] for way, told in (("whole", full), ("online", online))
        ]
    return Result(figures, [Table("loss with exact codes", ["data", "fit", "s", "loss"], rows)])


def _losses(data: DataSet) -> tuple[dict[str, float], dict[str, float]]:
    """A full-batch and an online fit, each with the loss of exact codes on its dictionary."""
    told = []
    for online in (False, True):
        model, begun = NMF(data.nb_concepts, seed=0), time.perf_counter()
        if online:
            model.fit_online(data.A, EPOCHS, batch_rows=BATCH_ROWS.get(data.name))
        else:
            model.fit(data.A)
        seconds = time.perf_counter() - begun
        error = data.A - model.decode(model.encode(data.A)).numpy()
        told.append({"seconds": seconds, "loss": 0.5 * float(np.square(error, dtype=np.float64).sum())})
    return told[0], told[1]
