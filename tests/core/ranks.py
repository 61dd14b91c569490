"""Ranks as processes of a test, by a module that takes its rank, how many there are, and a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


def told_by_ranks(module: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """What each of them leaves in the folder, as RANK.json; all must have ended well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(size), str(folder)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=PATIENCE_SECONDS)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(said)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
