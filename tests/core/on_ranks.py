"""One rank of the fits that test_ranks.py compares; see `tests.core.ranks`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np

import core  # noqa: F401 - before torch

import torch  # isort: skip
import torch.distributed as dist  # isort: skip
from core import NMF, ProcessGroup
from core.errors import CoreError
from core.figures import figure_steps
from core.metrics import measure_steps
from core.progress import run
from core.state import State
from tests.core.problems import planted

MAX_ITER = 14  # dead concepts are revived twice, and a fit may have ended


@dataclass(frozen=True)
class Case:
    """A fit, and what share of the rows ranks 1, 2, … have; rank 0 has the rest."""

    activations: Callable[[], np.ndarray]
    nb_concepts: int
    shares: tuple[float, ...] = (0.5, 0.2)
    told: dict[str, object] = field(default_factory=dict)  # to NMF
    start: bool = False  # with a given Z and D

    def model(self) -> NMF:
        return NMF(self.nb_concepts, seed=0, max_iter=MAX_ITER, **self.told)  # type: ignore[arg-type]

    def given(self, A: np.ndarray) -> dict[str, np.ndarray]:
        if not self.start:
            return {}
        rng = np.random.default_rng(1)
        return {"D": rng.random((self.nb_concepts, A.shape[1])), "Z": rng.random((len(A), self.nb_concepts))}

    def rows(self, n: int, rank: int, size: int) -> slice:
        counts = [int(share * n) for share in self.shares[: size - 1]]
        ends = np.cumsum([n - sum(counts), *counts])
        return slice(int(ends[rank - 1]) if rank else 0, int(ends[rank]))


def digits() -> np.ndarray:
    """Of the size of the digits activations, and as uneven: a sparse part and a dense one, and exact zeros."""
    A = planted(1200, 200, 40, noise=0.1, density=0.1)[0]
    A[A < 0.3] = 0
    return A


def small() -> np.ndarray:
    return planted(90, 60, 8, noise=0.5)[0]


def of_low_rank() -> np.ndarray:
    """Where concepts beyond the first few die and are revived."""
    A = planted(400, 60, 6, noise=0.0)[0]
    A[200:, 30:] = 0
    return A


CASES = {
    "digits": Case(digits, 24),
    "a rank without rows": Case(small, 8, (0.0, 0.4)),
    "fewer rows on a rank than concepts": Case(small, 10, (0.1, 0.05)),
    "more concepts than rows": Case(small, 120),
    "a rank without rows, and more concepts than the rank of A": Case(of_low_rank, 40, (0.0, 0.3)),
    "given Z of a rank without rows": Case(small, 8, (0.0, 0.4), start=True),
    "dead concepts": Case(of_low_rank, 40),
    "large values": Case(lambda: small() * np.float32(2.0**40), 8),
    "given Z and D": Case(small, 8, start=True),
    "an end before the last iteration": Case(small, 8, told={"tol": 0.5}),
    "a random start": Case(digits, 24, told={"init": "random"}),
    **{solver: Case(small, 8, told={"solver": solver}) for solver in ("mu", "pgd", "anls")},
}


class Counting(ProcessGroup):
    """Counts the numbers that are exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def _exchange(self, collective, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.numbers += args[-1].numel()
        super()._exchange(collective, *args, **kwargs)


def told_of(case: Case, ranks: Counting) -> dict[str, object]:
    A = case.activations()
    mine = case.rows(len(A), ranks.rank, ranks.size)
    given = case.given(A)
    if "Z" in given:
        given["Z"] = given["Z"][mine]
    model = case.model()
    Z, D = model.fit(A[mine], ranks=ranks, **given)  # type: ignore[arg-type]
    measured = run(measure_steps(torch.from_numpy(A[mine]), Z, D, ranks))
    told = {"D": D.tolist(), "losses": model.loss_history_, "metrics": measured.metrics, "rows": len(Z)}
    figures = run(figure_steps(Z, measured.figures, ranks)).known()
    of_whole = run(figure_steps(ranks.all_gather(Z), measured.figures)).known()
    told["other figures"] = [name for name in of_whole if not torch.equal(figures[name], of_whole[name])]
    for name, tensor in measured.figures.known().items():
        told[name] = tensor.tolist()
    own = {"uses": (Z > 0).sum(dim=0), "largest": torch.cat([Z, torch.zeros(1, Z.shape[1])]).amax(dim=0)}
    return told | {"own": {name: tensor.tolist() for name, tensor in own.items()}}


def exchanged(repeats: int, ranks: Counting) -> float:
    """Numbers that an iteration exchanges, where the rows are repeated."""
    A = np.repeat(small(), repeats, axis=0)[ranks.rank :: ranks.size]
    counts = []
    for max_iter in (2, 6):
        ranks.numbers = 0
        NMF(8, seed=0, tol=0).fit(A, max_iter, ranks=ranks)
        counts.append(ranks.numbers)
    return (counts[1] - counts[0]) / 4


def refusal(ranks: Counting, **told: object) -> str:
    """The error of a fit that rank 1 makes impossible."""
    A = small()
    Z = np.ones((len(A), 8)) if "Z" in told else None
    if ranks.rank == 1:
        A[3, 2] = told.get("value", A[3, 2])
        Z = np.ones((len(A), 1)) * told["Z"] if "Z" in told else None  # type: ignore[operator]
    given = {"max_iter": 4, "Z": Z, **told.get("given", ({}, {}))[ranks.rank > 0]}  # type: ignore[index]
    try:
        NMF(int(told.get("nb_concepts", (8, 8))[ranks.rank > 0]), seed=0).fit(A, **given, ranks=ranks)  # type: ignore[index,arg-type]
    except CoreError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def state_of(A: np.ndarray, ranks: Counting) -> State:
    steps = NMF(8, seed=0).fit_steps(A, 4, ranks=ranks)
    return next(state for _ in steps if (state := steps.state()) is not None)


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=150), world_size=size, rank=rank)
    ranks = Counting()
    told: dict[str, object] = {name: told_of(case, ranks) for name, case in CASES.items()}
    told["exchanged"] = [exchanged(repeats, ranks) for repeats in (1, 10)]
    told["NaN"] = refusal(ranks, value=float("nan"))
    told["NaN in Z"] = refusal(ranks, Z=np.full(8, np.nan))
    told["another width of Z"] = refusal(ranks, Z=np.ones(7))
    told["another k"] = refusal(ranks, nb_concepts=(8, 9))
    state, of_others = (state_of(scale * small(), ranks) for scale in (1, 2))
    told["no max_iter"] = refusal(ranks, given=({}, {"max_iter": 0}))
    told["a state and D"] = refusal(ranks, given=({"state": state}, {"state": state, "D": small()[:8]}))
    told["no state"] = refusal(ranks, given=({"state": state}, {"state": {}}))
    told["a state of others"] = refusal(ranks, given=({"state": state}, {"state": of_others}))
    told["a state with NaN"] = refusal(ranks, given=({"state": state}, {"state": state | {"Z": state["Z"] * np.nan}}))
    told["stopped by rank 1"] = len(stopped(ranks))
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def stopped(ranks: Counting) -> list[float]:
    model = NMF(8, seed=0)
    model.fit(small(), 20, ranks=ranks, callback=lambda told: ranks.rank == 1 and told.iteration == 3)
    return model.loss_history_
