"""``python -m tests.faults.load trickle|saturate|soak``: one long run; exit code 1 where a goal is missed."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.figures import Result, circumstances
from benchmarks.report import detail, goals_table
from tests.e2e.conftest import Service
from tests.faults.load import report, saturate, soak, trickle

CASES: Mapping[str, tuple[Callable[[Service], Result], Mapping[str, str]]] = {
    "trickle": (trickle.run, {}),
    "saturate": (saturate.run, saturate.SETTINGS),
    "soak": (soak.run, {}),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", choices=CASES)
    case = parser.parse_args().case
    run, settings = CASES[case]
    with tempfile.TemporaryDirectory(prefix=f"dictserve-{case}-") as folder:
        service = Service(Path(folder) / "models", DICTSERVE_LOG_LEVEL="warning", **settings).start()
        begun = time.monotonic()
        try:
            result = run(service)
        finally:
            code = service.stop()
        log = service.log.read_text()
    result.made = circumstances(f"python -m tests.faults.load {case}", time.monotonic() - begun, {})
    print(goals_table({case: result}), *map(detail, result.tables), sep="\n\n")
    report.save(case, result)
    if code != 0 or log:
        print(f"the service ended with exit code {code} and had said:\n{log[-4000:]}", file=sys.stderr)
    return int(code != 0 or any(figure.verdict == "missed" for figure in result.figures))


sys.exit(main())
