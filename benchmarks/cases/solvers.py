"""mu, pgd and anls beside hals: the loss at their default stop, and whether it only ever falls."""

from itertools import pairwise

from benchmarks.cases import Bench
from benchmarks.data import DataSet
from benchmarks.figures import Cell, Figure, Result, Table
from benchmarks.measure import relative_error
from benchmarks.process import Failed, TimedOut

SOLVERS = ("mu", "pgd", "anls")
SECONDS = 45
QUICK_ITERATIONS = 20


def run(bench: Bench) -> Result:
    result = Result()
    for data in bench.data.to_fit[:2]:
        _compare(bench, data, result)
    return result


def _compare(bench: Bench, data: DataSet, result: Result) -> None:
    energy = float((data.A.astype(float) ** 2).sum())
    rows: list[list[Cell]] = []
    reference: float | None = None
    settings = {"max_iter": QUICK_ITERATIONS} if bench.quick else {}
    for solver in ("hals", *SOLVERS):
        above = f"{data}: {solver}'s final loss above hals's"
        rise = f"{data}: largest rise of {solver}'s loss over ½‖A‖²"
        try:
            told = bench.ours.ask(
                "trace",
                A=str(data.path),
                nb_concepts=data.nb_concepts,
                solver=solver,
                **settings,
                max_seconds=SECONDS,
                limit_seconds=3 * SECONDS,
            )
        except (Failed, TimedOut) as reason:
            result.figures += [
                Figure(above, None, "%", at_most=5, note=str(reason)),
                Figure(rise, None, at_most=1e-6, note=str(reason)),
            ]
            continue
        losses = told["losses"]
        loss = told.get("loss", losses[-1])
        stopped = f"cut off after {SECONDS} s"
        if told["finished"]:
            stopped = "its own stop" if told["converged"] else "max_iter"
        rows.append([solver, told["seconds"][-1], len(losses), relative_error(loss, data.A), stopped])
        bench.say(f"{data}: {solver} {told['seconds'][-1]:.2f} s")
        if reference is None:
            reference = loss
            continue
        risen = max((b - a for a, b in pairwise(losses)), default=0.0)
        result.figures += [
            Figure(above, 100 * (loss / reference - 1), "%", at_most=5, note=stopped),
            # the products that the loss of a step comes from are float32's
            Figure(rise, max(0.0, risen) / (0.5 * energy), at_most=1e-6),
        ]
    columns = ["solver", "seconds", "iterations", "relative error", "ended by"]
    result.tables.append(Table(str(data), columns, rows))
