"""``python -m benchmarks.queue``: what the jobs' database takes, for docs/scale.md. It prints and writes nothing.

Jobs that need no fitting go through a PostgreSQL on this machine, durably, by some owners at once: each is added,
claimed, told of once, looked at before its dictionary would be published, told of again and ended. Owners are threads
of one process here, so that Python's own share is counted too.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.jobs.database import Database
from app.jobs.jobs import Jobs
from app.jobs.leases import Leases
from app.schemas import Progress
from app.store.workplace import Workplace
from tests.postgres import running_cluster

JOBS = 200  # per owner


def lives(url: str, root: Path) -> tuple[float, float]:
    """One owner's jobs, from the first add to the last end: when it began, and when it ended."""
    workplace, database = Workplace(root), Database(url)
    workplace.open()
    database.open()
    Leases(database, workplace, 60.0).take()
    jobs = Jobs(database)
    begun = time.monotonic()
    for _ in range(JOBS):
        jobs.add("a", {"max_iter": 1}, {"file": "x"}, owner=workplace.owner, queue_jobs=1_000_000)
        while (attempt := jobs.claim(workplace.owner)) is None:
            pass  # another has claimed what was there, and not yet added what it will leave
        progress = Progress(iteration=1, max_iter=1, loss=1.0)
        jobs.record_progress(attempt, progress, [(1, 1.0)], None)
        jobs.is_wanted(attempt)
        jobs.record_progress(attempt, progress, [(1, 1.0)], None)
        jobs.succeed(attempt, 1)
    ended = time.monotonic()
    database.close()
    workplace.close()
    return begun, ended


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--owners", type=int, nargs="+", default=[1, 2, 4, 8])
    told = parser.parse_args()
    with running_cluster(durable=True) as cluster, tempfile.TemporaryDirectory() as folder:
        for owners in told.owners:
            url = cluster.new_database()
            with ThreadPoolExecutor(owners) as pool:
                spans = list(pool.map(lambda _, url=url: lives(url, Path(folder)), range(owners)))
            seconds = max(ended for _, ended in spans) - min(begun for begun, _ in spans)
            rate = owners * JOBS / seconds
            print(f"{owners} owners: {rate:.0f} jobs/s, {6 * rate:.0f} transactions/s")


if __name__ == "__main__":
    main()
