"""Ranks as processes of a test, by a module whose `main` takes its rank, how many there are, and a folder:
``python -m tests.core.ranks MODULE SIZE FOLDER``.

They are forks of one process that has loaded the module, torch with it, and computed nothing.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.core.fresh import ROOT, forked
from tests.waiting import PATIENCE_SECONDS


def told_by_ranks(module: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """What each of them leaves in the folder, as RANK.json; all must have ended well."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.core.ranks", module, str(size), str(folder)],
        cwd=ROOT,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def main() -> None:
    module, size, folder = import_module(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    processes = [forked(lambda rank=rank: module.main(rank, size, folder)) for rank in range(size)]
    statuses = [os.waitpid(process, 0)[1] for process in processes]
    sys.exit(int(any(statuses)))


if __name__ == "__main__":
    main()
