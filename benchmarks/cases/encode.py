"""Encodes of 1, 64 and 200 rows on one shared dictionary: milliseconds, and excess over exact least squares.

The dictionary is the one that we fitted, or where there are more concepts than features the planted one; that of
smooth concepts, which nearly depend on each other, has no goals of speed: it shows who arrives. Peers encode at their
defaults, and at 64 rows of the small and the smooth dictionaries also with settings that bring them near the exact
minimum. A peer that takes more than a minute is cut off and is not asked for more rows: its ratios are then lower
bounds (≥). One that takes more than five seconds is timed once. Libraries take turns, but for those exact settings,
which come after.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.cases import Bench
from benchmarks.data import DataSet
from benchmarks.figures import Cell, Figure, Result, Table, number
from benchmarks.libraries import OURS
from benchmarks.measure import excess, row_losses
from benchmarks.process import Absent, Failed, TimedOut

ROWS = (1, 64, 200)
LIMIT_SECONDS = 60
ORACLE_SECONDS = 10
ROUND_SECONDS = 0.4

SETTINGS: list[tuple[str, str, dict[str, Any]]] = [
    (OURS, "default", {}),
    ("nmf-torch", "bpp", {}),
    ("nmf-torch", "bpp, one thread", {"threads": 1}),  # its products' threads stall its own loops on some machines
    ("overcomplete", "pgd", {"solver": "pgd"}),
    ("scikit-learn", "cd", {}),
    ("overcomplete", "hals", {"solver": "hals"}),
]
EXACT: list[tuple[str, str, dict[str, Any]]] = [
    ("overcomplete", "pgd, exact", {"solver": "pgd", "max_iter": 5000, "tol": 1e-7}),
    ("scikit-learn", "cd, exact", {"max_iter": 5000, "tol": 1e-8}),
    ("overcomplete", "hals, exact", {"solver": "hals", "max_iter": 5000, "tol": 1e-7}),
]
# How many times faster than whom, at one row and at more.
SMALL_GOALS = {("nmf-torch", "bpp"): (3, 8)}
LARGE_GOALS = {
    ("overcomplete", "pgd"): (40, 15),
    ("scikit-learn", "cd"): (300, 300),
    ("overcomplete", "hals"): (1000, 1000),
}


def run(bench: Bench) -> Result:
    result = Result()
    for data in bench.data.to_encode:
        _compare(bench, data, result)
    return result


def _compare(bench: Bench, data: DataSet, result: Result) -> None:
    D_path = bench.dictionary(data)
    D = np.load(D_path)
    name = f"{data.name}, k={len(D)}, {D.shape[1]} features"
    exact = _exact_losses(data.fresh[: ROWS[-1]], D, seconds=0.05 if bench.quick else ORACLE_SECONDS)
    bench.say(f"{name}: {len(exact)} rows solved by scipy")
    small = len(D) <= D.shape[1]
    goals = {} if data.name == "smooth" else SMALL_GOALS if small else LARGE_GOALS

    table: list[list[Cell]] = []
    worst_of_ours = 0.0
    told: dict[tuple[str, str], Times] = {}
    for rows in ROWS:
        cut_off = {s[:2]: told[s[:2]] for s in SETTINGS if isinstance(told.get(s[:2]), TimedOut)}
        told = _times(bench, data, D_path, rows, [s for s in SETTINGS if s[:2] not in cut_off]) | cut_off
        if rows == 64 and (small or not goals) and not bench.quick:
            told |= _times(bench, data, D_path, rows, EXACT)
        ours = told[OURS, "default"]
        assert isinstance(ours, list), ours
        for (library, label), times in told.items():
            if not isinstance(times, list):
                ratio = _ratio(times, ours)
                table.append([rows, library, label, str(times), None, ratio and f"≥ {number(ratio)}"])
                continue
            checked = min(rows, len(exact))
            Z = np.load(_codes(bench, library, label))[:checked]
            A = data.fresh[:checked]
            worst = float(excess(row_losses(A, Z, D), exact[:checked], A).max())
            if library == OURS:
                worst_of_ours = max(worst_of_ours, worst)
            table.append([rows, library, label, median(times), worst, _ratio(times, ours)])
        for (library, label), (at_one, at_more) in goals.items():
            variants = (library, label), (library, f"{label}, one thread")
            times = _fastest(*(told[each] for each in variants if each in told))
            result.figures.append(
                Figure(
                    f"{name}: {rows} row{'s' * (rows > 1)} encoded faster than {library} {label}",
                    _ratio(times, ours),
                    "×",
                    at_least=at_one if rows == 1 else at_more,
                    lower_bound=isinstance(times, TimedOut),
                    note=f"{median(ours):.3g} ms, it {_told(times)}",
                )
            )
    result.figures.append(
        Figure(f"{name}: our worst excess over scipy's nnls, {len(exact)} rows", worst_of_ours, at_most=1e-6)
    )
    columns = ["rows", "library", "setting", "ms", "worst excess", "over ours"]
    result.tables.append(Table(name, columns, table))


Times = list[float] | Absent | Failed | TimedOut


def _times(
    bench: Bench, data: DataSet, D_path: str, rows: int, settings: list[tuple[str, str, dict[str, Any]]]
) -> dict[tuple[str, str], Times]:
    """Milliseconds of each library's encodes, in rounds that take turns; or why there are none."""
    told: dict[tuple[str, str], Times] = {}
    for _ in range(bench.repeats):
        for library, label, of_library in settings:
            before = told.get((library, label), [])
            if not isinstance(before, list) or (before and before[0] > 5e3):
                continue
            try:
                answer = bench.libraries[library].ask(
                    "encode",
                    A=str(data.fresh_path),
                    D=D_path,
                    rows=rows,
                    settings=of_library,
                    seconds=0.01 if bench.quick else ROUND_SECONDS,
                    codes=_codes(bench, library, label),
                    limit_seconds=LIMIT_SECONDS,
                )
            except (Absent, Failed, TimedOut) as reason:
                told[library, label] = reason
                continue
            told[library, label] = [*before, *answer["ms"]]
    bench.say(f"{data}: {rows} rows, " + ", ".join(_short(*each) for each in told.items()))
    return told


def _fastest(*times: Times) -> Times:
    """The peer's fastest setting."""
    return min(times, key=lambda each: median(each) if isinstance(each, list) else float("inf"))


def _short(who: tuple[str, str], times: Times) -> str:
    return f"{' '.join(who)} {_told(times)}"


def _told(times: Times) -> str:
    return f"{median(times):.3g} ms" if isinstance(times, list) else str(times)


def _ratio(times: Times, ours: list[float]) -> float | None:
    if isinstance(times, TimedOut):
        return 1e3 * LIMIT_SECONDS / median(ours)
    return median(times) / median(ours) if isinstance(times, list) else None


def _codes(bench: Bench, library: str, label: str) -> str:
    return str(bench.data.folder / f"codes-{library}-{label}.npy".replace(" ", ""))


def _exact_losses(A: np.ndarray, D: np.ndarray, *, seconds: float) -> np.ndarray:
    """The minimum of ½‖a − zD‖² for as many of the rows as there is time for, by scipy in float64."""
    begun = time.perf_counter()

    def losses() -> Iterator[float]:
        D_T = D.T.astype(np.float64)
        for a in A:
            yield 0.5 * nnls(D_T, a.astype(np.float64), maxiter=50 * len(D))[1] ** 2
            if time.perf_counter() - begun > seconds:
                return

    return np.fromiter(losses(), float)
