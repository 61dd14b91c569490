"""``python -m tests.faults.crash``: says what it does and what it finds; exit code 1 where it finds a fault."""

import argparse
import shutil
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from tests.faults.crash.run import run
from tests.postgres import running_cluster

MOST_FAULTS = 20  # printed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash", description="Crashes under load, checked.")
    parser.add_argument("--kills", type=int, default=200, help="how many times something is killed")
    parser.add_argument("--seed", type=int, default=1, help="of what is done and killed; timing is its own master")
    jobs = parser.add_mutually_exclusive_group()
    jobs.add_argument("--database", help="URL of an empty PostgreSQL for the jobs, in place of SQLite")
    jobs.add_argument("--postgres", action="store_true", help="a PostgreSQL started for this run, disturbed, too")
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dictserve-crash-"))
    print(f"seed {told.seed}; the store and all logs are in {folder} until it has passed", file=sys.stderr)
    with running_cluster() if told.postgres else nullcontext() as cluster:
        database = told.database if cluster is None else cluster.new_database()
        report = run(folder, told.kills, told.seed, database, cluster=cluster)
    for fault in report.faults[:MOST_FAULTS]:
        print(fault.told(report.operations))
    print(report)
    if report.faults:
        return 1
    shutil.rmtree(folder)
    return 0


sys.exit(main())
