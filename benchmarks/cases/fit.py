"""Fits: time to a peer's loss, the loss at the end, and dead concepts.

Our own fit runs at its defaults alone, three times, nine where that is a matter of seconds. scikit-learn's hundred
iterations, which set the loss to reach, take turns with it (or run once, where they take more than half a minute).
Every other call of a peer, at its defaults and at settings that give it more time (more iterations, a smaller
tolerance), is made once, after these, and cut off after 30 s. On the larger data only those peers run that have a
chance to end in that time: of the largest, none that goes by coordinates but scikit-learn's hundred iterations. "We
reach it in" is the median of our fits that went on so far, of which the first alone goes on to its end.
"""

from statistics import median
from typing import Any

from benchmarks.cases import Bench
from benchmarks.data import DataSet
from benchmarks.figures import Cell, Figure, Result, Table
from benchmarks.measure import relative_error
from benchmarks.process import Absent, Failed, TimedOut

PEER_SECONDS = 30
TARGET_SECONDS = 300
OUR_SECONDS = 150
SOON_SECONDS = 5  # so short a race is run OFTENER: one that is a tenth of a second for us swings by a third
OFTENER = 3

HUNDRED_ITERATIONS = {"solver": "cd", "max_iter": 100, "tol": 0, "init": "nndsvda"}

# (library, what it is called, its settings)
DEFAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("scikit-learn", "cd", {"solver": "cd"}),
    ("scikit-learn", "mu", {"solver": "mu", "init": "nndsvda"}),
    ("overcomplete", "hals", {"solver": "hals"}),
    ("overcomplete", "mu", {"solver": "mu"}),
    ("overcomplete", "pgd", {"solver": "pgd"}),
    ("overcomplete", "anls", {"solver": "anls"}),
    ("torchnmf", "mu", {}),
    ("nmf-torch", "halsvar", {"algo": "halsvar"}),
    ("nmf-torch", "bpp", {"algo": "bpp"}),
]
LONG: list[tuple[str, str, dict[str, Any]]] = [
    ("scikit-learn", "cd, long", {"solver": "cd", "max_iter": 1000, "tol": 1e-6}),
    ("scikit-learn", "mu, long", {"solver": "mu", "init": "nndsvda", "max_iter": 2000, "tol": 1e-6}),
    ("overcomplete", "hals, long", {"solver": "hals", "max_iter": 2000, "tol": 1e-6}),
    ("overcomplete", "mu, long", {"solver": "mu", "max_iter": 2000, "tol": 1e-6}),
    ("overcomplete", "pgd, long", {"solver": "pgd", "max_iter": 2000, "tol": 1e-6}),
    ("torchnmf", "mu, long", {"max_iter": 2000, "tol": 1e-6}),
    ("nmf-torch", "halsvar, long", {"algo": "halsvar", "tol": 1e-5, "batch_max_iter": 2000}),
]
MEDIUM = [
    *(setting for setting in DEFAULTS if setting[1] not in ("anls", "bpp")),
    ("scikit-learn", "cd, 300 iterations", {"solver": "cd", "max_iter": 300, "tol": 1e-6}),
]
LARGE: list[tuple[str, str, dict[str, Any]]] = [
    ("scikit-learn", "mu", {"solver": "mu", "init": "nndsvda"}),
    ("torchnmf", "mu, 40 iterations", {"max_iter": 40}),
    ("overcomplete", "mu, 50 iterations", {"solver": "mu", "max_iter": 50}),
]


def run(bench: Bench) -> Result:
    result = Result()
    settings = [[*DEFAULTS, *LONG], MEDIUM, LARGE]
    for data, of_peers in zip(bench.data.to_fit, settings, strict=False):
        _compare(bench, data, DEFAULTS[:1] if bench.quick else of_peers, result)
    return result


def _compare(bench: Bench, data: DataSet, of_peers: list[tuple[str, str, dict[str, Any]]], result: Result) -> None:
    target, times_of_peer, traces = _race(bench, data)
    peer_seconds = median(times_of_peer)
    whole = traces[0]
    own_seconds = whole["seconds"][-1]
    own_loss = whole.get("loss", whole["losses"][-1])
    rows: list[list[Cell]] = [["dictserve", own_seconds, _error(own_loss, data), whole.get("dead"), None, None]]
    best = target["loss"], "scikit-learn cd, 100 iterations"
    rows.append(_row(best[1], peer_seconds, target, data, traces))
    for library, label, settings in of_peers:
        try:
            told = bench.libraries[library].ask(
                "fit",
                A=str(data.path),
                nb_concepts=data.nb_concepts,
                settings=settings,
                limit_seconds=PEER_SECONDS,
            )
        except (Absent, Failed, TimedOut) as reason:
            rows.append([f"{library} {label}", str(reason), None, None, None, None])
            continue
        bench.say(f"{data}: {library} {label} {told['seconds']:.2f} s")
        rows.append(_row(f"{library} {label}", told["seconds"], told, data, traces))
        best = min(best, (told["loss"], f"{library} {label}"))

    result.figures += [
        faster(data, times_of_peer, [time_to(trace, target["loss"]) for trace in traces], at_least=8),
        Figure(
            f"{data}: final loss above the best peer's", 100 * (own_loss / best[0] - 1), "%", at_most=0, note=best[1]
        ),
        Figure(f"{data}: dead concepts", whole.get("dead"), at_most=0),
    ]
    columns = ["library", "seconds", "relative error", "dead", "we reach it in (s)", "ratio"]
    result.tables.append(Table(str(data), columns, rows))


def _row(who: str, seconds: float, told: dict[str, Any], data: DataSet, traces: list[dict[str, Any]]) -> list[Cell]:
    reached = [ours for trace in traces if (ours := time_to(trace, told["loss"])) is not None]
    ours = median(reached) if reached else None
    return [who, seconds, _error(told["loss"], data), told["dead"], ours, seconds / ours if ours else None]


def _error(loss: float, data: DataSet) -> str:
    return f"{relative_error(loss, data.A):.5f}"


def _race(bench: Bench, data: DataSet) -> tuple[dict[str, Any], list[float], list[dict[str, Any]]]:
    """scikit-learn's hundred iterations and our fits in turn: its answer, its seconds, our traces.

    Our first fit runs to its end, the others to the loss that is to be reached. scikit-learn runs once where it
    takes more than half a minute.
    """
    target: dict[str, Any] | None = None
    seconds: list[float] = []
    traces: list[dict[str, Any]] = []
    given = {"A": str(data.path), "nb_concepts": data.nb_concepts}
    for turn in range(OFTENER * bench.repeats):
        if turn >= bench.repeats and seconds[0] > SOON_SECONDS:
            break
        if not seconds or seconds[0] < 30:
            target = bench.libraries["scikit-learn"].ask(
                "fit", **given, settings=HUNDRED_ITERATIONS, limit_seconds=TARGET_SECONDS
            )
            seconds.append(target["seconds"])
        assert target is not None
        until = target["loss"] if traces else None
        traces.append(
            bench.ours.ask("trace", **given, until=until, max_seconds=OUR_SECONDS, limit_seconds=2 * OUR_SECONDS)
        )
        bench.say(f"{data}: scikit-learn {seconds[-1]:.2f} s, ours {time_to(traces[-1], target['loss'])} s")
    assert target is not None
    return target, seconds, traces


def faster(data: DataSet, peer_seconds: list[float], times: list[float | None], *, at_least: float) -> Figure:
    """Than scikit-learn's hundred iterations, of our times to their loss."""
    reached = [seconds for seconds in times if seconds is not None]
    return Figure(
        f"{data}: times faster to the loss of scikit-learn's 100 iterations",
        median(peer_seconds) / median(reached) if len(reached) == len(times) else None,
        "×",
        at_least=at_least,
        note=f"{_spread(reached)}, it {_spread(peer_seconds)}" if reached else "that loss was not reached",
    )


def _spread(seconds: list[float]) -> str:
    """The median, and between which they lay."""
    told = f"{median(seconds):.3g} s"
    return told if len(seconds) == 1 else f"{told} ({min(seconds):.3g} to {max(seconds):.3g})"


def time_to(trace: dict[str, Any], loss: float) -> float | None:
    """Seconds until the first iteration whose loss is at most this."""
    for seconds, reached in zip(trace["seconds"], trace["losses"], strict=True):
        if reached <= loss:
            return float(seconds)
    return None
