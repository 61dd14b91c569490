"""What more concepts, another solver or another tolerance come to, on activations of digits.

A fifth of the rows is held out. Errors are ‖A − ZD‖ / ‖A‖; held-out rows are encoded exactly. Stability is the share
of concepts that a fit with another seed has too: matched one to one so that the sum of cosines is the largest
(Kuhn 1955), with a cosine above 0.9; the mean over the pairs of three seeds.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.cases import Bench
from benchmarks.figures import Figure, Result, Table, number
from benchmarks.measure import dead_concepts, loss_of, relative_error
from core import NMF
from core.matching import match
from demo.digits import HELD_OUT_EVERY

CONCEPTS = (4, 8, 16, 32, 64, 128)
SOLVERS = ("hals", "mu", "pgd", "anls")
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SEEDS = (0, 1, 2)
NB_CONCEPTS = 32  # where something else is varied


def run(bench: Bench) -> Result:
    rows = Rows(bench.data.digits.A)
    concepts, nb_concepts = ((2, 4), 4) if bench.quick else (CONCEPTS, NB_CONCEPTS)
    largest = max(concepts)
    result = Result(made={"libraries": {"dictserve": bench.ours.version}})

    table = Table(
        "nb_concepts",
        [
            "k",
            "error",
            "held-out error",
            "codes above zero a row",
            "dead",
            "stability",
            "with init=random",
            "seconds",
        ],
        [],
    )
    by_k = {}
    for k in concepts:
        by_k[k] = fit = rows.fit(k)
        stable = [rows.stability(k), rows.stability(k, init="random")]
        table.rows.append([k, fit.error, fit.held_out, fit.codes, fit.dead, *stable, fit.seconds])
        bench.say(f"k={k}: {fit.seconds:.2f} s")
    result.tables.append(table)
    gap = by_k[largest].held_out / by_k[largest].error
    result.figures += [
        Figure("dead concepts, of all these fits", max(fit.dead for fit in by_k.values()), at_most=0),
        Figure(f"held-out error over error, k={largest}", gap, "×", note="1: as good on rows that it has not seen"),
    ]

    columns = ["loss above the least", "held-out error", "codes above zero a row", "dead", "iterations", "seconds"]
    for title, name, choices in (
        (f"solver, k={nb_concepts}", "solver", SOLVERS),
        (f"tol, k={nb_concepts}", "tol", TOLERANCES),
    ):
        fits = {}
        for choice in choices:
            fits[choice] = fit = rows.fit(nb_concepts, **{name: choice}, max_iter=20 if bench.quick else 2000)
            bench.say(f"{name} {choice}: {fit.seconds:.2f} s")
        least = min(fit.loss for fit in fits.values())
        table = Table(title, [name, *columns], [])
        for choice, fit in fits.items():
            above = f"{number(100 * (fit.loss / least - 1))}%"
            told = [above, fit.held_out, fit.codes, fit.dead, fit.iterations, fit.seconds]
            table.rows.append([f"{choice:g}" if isinstance(choice, float) else choice, *told])
        result.tables.append(table)
    return result


@dataclass(frozen=True)
class Fit:
    """What one fit came to."""

    loss: float
    error: float
    held_out: float
    codes: float
    dead: int
    iterations: int
    seconds: float


class Rows:
    """Activations, a fifth of them held out."""

    def __init__(self, A: np.ndarray) -> None:
        held_out = np.arange(len(A)) % HELD_OUT_EVERY == 0
        self.fitted_on, self.held_out = A[~held_out], A[held_out]

    def fit(self, nb_concepts: int, **parameters: Any) -> Fit:
        nmf, begun = NMF(nb_concepts, seed=0, **parameters), time.perf_counter()
        Z, D = (factor.numpy() for factor in nmf.fit(self.fitted_on))
        seconds = time.perf_counter() - begun
        codes = nmf.encode(self.held_out).numpy()
        loss = loss_of(self.fitted_on, Z, D)
        return Fit(
            loss=loss,
            error=relative_error(loss, self.fitted_on),
            held_out=relative_error(loss_of(self.held_out, codes, D), self.held_out),
            codes=float((codes > 0).sum(axis=1).mean()),
            dead=dead_concepts(Z, D),
            iterations=len(nmf.loss_history_),
            seconds=seconds,
        )

    def stability(self, nb_concepts: int, **parameters: Any) -> float:
        """The mean over all pairs of seeds."""
        return float(
            np.mean([match(a, b).stability for a, b in combinations(self._seeds(nb_concepts, parameters), 2)])
        )

    def _seeds(self, nb_concepts: int, parameters: dict[str, Any]) -> Iterator[np.ndarray]:
        for seed in SEEDS:
            yield NMF(nb_concepts, seed=seed, **parameters).fit(self.fitted_on)[1].numpy()
