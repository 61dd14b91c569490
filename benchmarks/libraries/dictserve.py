"""This project's `core`."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from core import NMF, Dictionary
from core.warm import warm

warm()  # compiled code is loaded before anything is timed


def fit(A: np.ndarray, nb_concepts: int, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    Z, D = NMF(nb_concepts, seed=0, **settings).fit(A)
    return Z.numpy(), D.numpy()


def encoder(D: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    dictionary = Dictionary(D)
    return lambda A: dictionary.encode(A).codes.numpy()


def trace(
    A: np.ndarray, nb_concepts: int, *, until: float | None = None, max_seconds: float, **settings: Any
) -> dict[str, Any]:
    """A fit as it goes: seconds since its start and loss ½‖A − ZD‖²_F of every iteration.

    Ends with the fit, or once the loss is at most `until`, or after `max_seconds`; `finished` tells whether it was
    the first, then `converged` whether that ended before `max_iter`, and `factors` are the final Z and D.
    """
    model = NMF(nb_concepts, seed=0, **settings)
    times: list[float] = []
    losses: list[float] = []
    begun = time.perf_counter()
    for progress in model.fit_steps(A):
        seconds = time.perf_counter() - begun
        if progress.iteration > len(losses) and progress.loss is not None:
            times.append(seconds)
            losses.append(progress.loss)
            if until is not None and progress.loss <= until:
                return {"seconds": times, "losses": losses, "finished": False}
        if seconds > max_seconds:
            return {"seconds": times, "losses": losses, "finished": False}
    Z, D = model.Z_.numpy(), model.get_dictionary().numpy()
    return {
        "seconds": times,
        "losses": losses,
        "finished": True,
        "converged": progress.converged,
        "factors": (Z, D),
    }
