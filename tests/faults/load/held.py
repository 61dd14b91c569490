"""What processes hold, from outside: memory, descriptors, threads; and what a service has left on the disk."""

import contextlib
import os
import time
from pathlib import Path

from app.store.store import Store
from tests.e2e.conftest import Service

DATABASE = "jobs.sqlite3"
# Of either process: pools grow to their bounds, and no further. Of the database there are 15 connections (the pool's
# default), each with up to three files.
MOST_OF_POOLS = {"threads": 64, "database files": 45}


def held(pid: int) -> dict[str, int]:
    """What a process holds that could leak: descriptors, shared memory that is mapped, threads, processes."""
    process = Path(f"/proc/{pid}")
    files = _open_files(process)
    of_database = sum(DATABASE in file for file in files)
    return {
        "descriptors": len(files) - of_database,
        "database files": of_database,
        "memory files": (process / "maps").read_text().count("memfd:"),
        "threads": len(os.listdir(process / "task")),
        "children": sum(len((task / "children").read_text().split()) for task in (process / "task").iterdir()),
    }


def _open_files(process: Path) -> list[str]:
    found = []
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(link))
    return found


def settled(pids: list[int], at_most: list[dict[str, int]], seconds: float = 20.0) -> list[dict[str, int]]:
    """What the processes hold once it is no more than that, or else in the end."""
    deadline = time.monotonic() + seconds
    while True:
        now = [held(pid) for pid in pids]
        within = all(now[i][what] <= at_most[i][what] for i in range(len(pids)) for what in now[i])
        if within or time.monotonic() > deadline:
            return now
        time.sleep(0.2)


def left_over(service: Service) -> list[str]:
    """Files of requests and fits that have ended; none as it should be."""
    private = Store(service.store).workplace.directory
    return [path.name for folder in ("activations", "staging") for path in (private / folder).iterdir()]
