"""Non-negative matrix factorisation of neural-network activations into concepts: A ≈ Z·D.

A: activations (rows, n_features). Z: codes (rows, nb_concepts). D: dictionary (nb_concepts, n_features), whose
rows are the concepts. All three are non-negative.

Threads may share a dictionary. Processes are to be spawned: what is forked after the first fit or encode may hang, or
be ended by OpenMP, at its own first one, as with torch alone (`multiprocessing_context="spawn"` of a DataLoader).

The names below are loaded on first use, so that `core.errors` and `core.checks` can be had without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import core.threads  # noqa: F401 (must come before torch does; nothing heavy itself)

if TYPE_CHECKING:
    from core.dictionary import Dictionary, Encoded
    from core.fit import FitSteps
    from core.nmf import NMF
    from core.progress import FitProgress
    from core.ranks import ProcessGroup

__all__ = ["NMF", "Dictionary", "Encoded", "FitProgress", "FitSteps", "ProcessGroup"]

_HOME = {
    "NMF": "core.nmf",
    "Dictionary": "core.dictionary",
    "Encoded": "core.dictionary",
    "FitProgress": "core.progress",
    "FitSteps": "core.fit",
    "ProcessGroup": "core.ranks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
