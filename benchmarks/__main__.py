"""``python -m benchmarks [CASE …] [--quick]``: all cases (``make bench``), or some, beside every peer that installs.

Figures go to benchmarks/results.json, those of the service to benchmarks/service.json, each case's with its date and
command; cases that did not run keep theirs.
A quick run uses tiny data and writes nothing unless told where.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from benchmarks.cases import NAMES, Bench
from benchmarks.data import DataSets
from benchmarks.figures import Result, circumstances
from benchmarks.libraries import OURS
from benchmarks.process import Absent, Library, libraries
from benchmarks.report import file_of, goals_table, write_pages


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(NAMES)}; by default all")
    parser.add_argument("--quick", action="store_true", help="tiny data, to see that everything runs")
    parser.add_argument("--output", type=Path, help="the one file to write the figures to, instead")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    # a run that is ended from outside ends its processes too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    # in the order of NAMES: the long ones first
    chosen = [name for name in NAMES if not given.cases or name in given.cases]

    with tempfile.TemporaryDirectory() as folder, libraries() as known:
        bench = Bench(known, DataSets(Path(folder), quick=given.quick), quick=given.quick)
        present = availability(known)
        for library, told in present.items():
            bench.say(f"{library}: {told}")
        if known[OURS].absent is not None:
            raise SystemExit(f"there is nothing to compare: {present[OURS]}")
        for name in chosen:
            result = measured(name, bench, present, quick=given.quick)
            print(f"\n{goals_table({name: result})}", flush=True)
            if given.output is not None:
                save(given.output, name, result)
            elif not given.quick:
                save(file_of(name), name, result)
                write_pages()


def measured(name: str, bench: Bench, present: dict[str, str], *, quick: bool) -> Result:
    case = import_module(f"benchmarks.cases.{name}")
    print(f"\n== {name}: {(case.__doc__ or '').splitlines()[0]}", flush=True)
    begun = time.perf_counter()
    result: Result = case.run(bench)
    command = f"python -m benchmarks {name}{' --quick' * quick}"
    result.made = circumstances(command, time.perf_counter() - begun, result.made.get("libraries", present))
    return result


def availability(known: dict[str, Library]) -> dict[str, str]:
    """Each library's version, or why it is absent. The processes that were started stay, at rest."""
    told = {}
    for library in known.values():
        library.launch()
    for name, library in known.items():
        try:
            library.start()
            told[name] = str(library.version)
        except Absent as reason:
            told[name] = f"absent ({reason})"
    return told


def save(path: Path, name: str, result: Result) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = result.as_json()
    ordered = {case: known[case] for case in NAMES if case in known}
    path.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
