"""Compile the kernels, or load what is kept of them, before anybody waits for them.

`python -m core.warm` compiles them all; with ``--every-level`` also for the other levels of `core.levels`, for
instance while a container is built that runs on machines unlike the one that builds it.
"""

import argparse
import gc
import os
import subprocess
import sys

import torch

from core.dictionary import Dictionary
from core.levels import LEVELS, target
from core.nmf import NMF


def warm() -> None:
    """Run every compiled path of a fit and of encodes in float32 once, on problems of a few milliseconds."""
    A = _activations()
    NMF(16, seed=0).fit(A, D=A[:16], max_iter=2)  # codes for a given D by `descend`, as in large fits; then `iterate`
    warm_encodes(torch.float32)


def warm_encodes(dtype: torch.dtype) -> None:
    """Run every compiled path of encodes in this dtype once."""
    A = _activations()
    for D in (A[:64], A[:128]):  # two kernels
        Dictionary(D, dtype=dtype).encode(A)
    _warm_where_concepts_depend(dtype)


def _warm_where_concepts_depend(dtype: torch.dtype) -> None:
    at = torch.linspace(0, 1, 64)
    alike = torch.exp(-((at[:, None] - at) ** 2) / 0.005)  # bumps that overlap
    Dictionary(alike, dtype=dtype).encode(_activations()[:4])  # few: this kernel takes its time


def warm_on(device: torch.device) -> None:
    """What a device other than the CPU launches for fits and encodes of usual widths, one row and many.

    There, too, it is compiled once and then found on the disk. What is unusual (concepts that are no multiple of
    sixteen, or are very many) is compiled when it is first asked for.
    """
    if device.type == "cpu":
        return
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(512, 256, generator=generator)
    for nb_concepts in (64, 1024):  # a block that is swept at once, and several
        NMF(nb_concepts, device=str(device), seed=0, init="random").fit(A, max_iter=2)
    # concepts of a few features each, of which rows want so many that working sets outgrow registers
    for nb_concepts, density in ((64, 1), (256, 1), (1024, 0.05), (4096, 1)):
        D = torch.rand(nb_concepts, 256, generator=generator)
        dictionary = Dictionary(D * (torch.rand(D.shape, generator=generator) < density), device=device)
        for rows in (A, A[:1], A[:1]):  # what is recorded, the second time, has working sets of all usual sizes
            dictionary.encode(rows)


def _activations() -> torch.Tensor:
    return torch.rand(512, 64, generator=torch.Generator().manual_seed(0))


def compile_for_other_levels() -> None:
    """What is kept for this level, by a process for each other. Nothing is run, so this machine may lack it."""
    for level in LEVELS.keys() - {target()}:
        environment = os.environ | {"NUMBA_CPU_NAME": level}
        subprocess.run([sys.executable, "-m", "core.warm", "--as-kept"], env=environment, check=True)


def _compile_as_kept() -> None:
    """For this process's level, whatever is kept for another."""
    from numba.core.registry import CPUDispatcher

    from core.compiled import compile_as_kept
    from core.kernels.cpu import interface  # noqa: F401 - which imports all others

    for kernel in gc.get_objects():
        if isinstance(kernel, CPUDispatcher) and kernel.__module__.startswith("core."):
            compile_as_kept(kernel)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m core.warm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every-level", action="store_true", help="for processors of other levels, too")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--half", action="store_true", help="only what takes half of the time")
    only.add_argument("--as-kept", action="store_true", help="only what is kept for another level, and run nothing")
    given = parser.parse_args()
    if given.as_kept:
        _compile_as_kept()
    elif given.half:
        _warm_where_concepts_depend(torch.float32)
        warm_encodes(torch.float64)
    else:
        # Numba compiles one kernel at a time in a process, for three minutes: two processes take half of that. What
        # the other has compiled by then is found.
        with subprocess.Popen([sys.executable, "-m", "core.warm", "--half"]) as beside:
            warm()
        if beside.returncode != 0:
            sys.exit("half of the kernels could not be compiled")
    if given.every_level:
        compile_for_other_levels()


if __name__ == "__main__":
    main()
