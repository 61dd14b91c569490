"""One rank of the fits that test_shadow_cuda.py compares, on a CUDA device that the CPU stands in for, and with Gloo
for NCCL, which takes tensors of the device alone; see `tests.core.ranks`.
"""

import json
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from core import NMF, ProcessGroup
from core.figures import figure_steps
from core.inputs import tensor
from core.metrics import measure_steps
from core.progress import run
from tests.core.problems import planted
from tests.core.shadow_cuda import DEVICE, cuda

SOLVERS = ("hals", "mu", "pgd")
A = planted(60, 12, 6, noise=0.5)[0]


def model(solver: str) -> NMF:
    return NMF(8, device="cuda", seed=0, max_iter=4, solver=solver, init="random")


def main(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), world_size=size, rank=rank)
    mine = A[:40] if rank == 0 else A[40:]
    told = {}
    with cuda():
        ranks = ProcessGroup(DEVICE)
        for solver in SOLVERS:
            fitted = model(solver)
            Z, D = fitted.fit(mine, ranks=ranks)
            measured = run(measure_steps(tensor(mine), Z, D, ranks))
            figures = run(figure_steps(Z, measured.figures, ranks)).known()
            told[solver] = {"losses": fitted.loss_history_, "metrics": measured.metrics, "figures": sorted(figures)}
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()
