"""Ranks as processes of a test, by a module whose `main` takes its rank, how many there are, and a folder:
``python -m tests.core.ranks MODULE FOLDER SIZE...``, so many at once, then so many.

They are forks of one process that has loaded the module, torch and numba with it, and computed nothing.
"""

import gc
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from core.compiled import compile_as_kept
from core.kernels.cpu import interface, sums  # noqa: F401 - all that a fit on the CPU loads
from tests.core.fresh import ROOT, forked
from tests.waiting import PATIENCE_SECONDS


def told_by_ranks(module: str, folder: Path, *sizes: int) -> dict[int, list[dict[str, Any]]]:
    """Of each size, what each of them leaves in its folder, as RANK.json; all must have ended well."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.core.ranks", module, str(folder), *map(str, sizes)],
        cwd=ROOT,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    return {
        size: [json.loads((folder / str(size) / f"{rank}.json").read_text()) for rank in range(size)]
        for size in sizes
    }


def main() -> None:
    module, statuses = import_module(sys.argv[1]), []
    compile_as_kept(sums.sums)  # with its first kernel numba makes itself ready, in half a second
    gc.freeze()  # else each of them looks through all that is loaded, and copies it
    for size in map(int, sys.argv[3:]):
        folder = Path(sys.argv[2], str(size))
        folder.mkdir()
        processes = [
            forked(lambda rank=rank, size=size, folder=folder: module.main(rank, size, folder))
            for rank in range(size)
        ]
        statuses += [os.waitpid(process, 0)[1] for process in processes]
    sys.exit(int(any(statuses)))


if __name__ == "__main__":
    main()
