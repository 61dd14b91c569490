from typing import Any

import pytest
import torch

from core import warm
from tests.core.fresh import run_fresh

WARMED = """
import torch
from core import warm
from core.kernels.cpu import active_set, dense, dependent, descent, iteration, pieces
warm.warm()
warm.warm_encodes(torch.float64)
print(len(descent.descend_rows.signatures), len(iteration.iterate.signatures), len(pieces.solve_pieces.signatures))
for kernel in (active_set.solve_some, dense.solve_some, dependent.solve_some):
    print(*sorted({signature[0].dtype.name for signature in kernel.signatures}))
"""


def test_warm_compiles_every_kernel() -> None:
    """In a process of its own, where nothing else has."""
    counts, *dtypes = run_fresh(WARMED).splitlines()
    assert counts == "1 1 2"
    assert dtypes == ["float32 float64"] * 3


def test_a_device_is_warmed_for_blocks_and_working_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stubs in the place of fits and encodes there."""
    done: list[Any] = []

    class Fit:
        def __init__(self, nb_concepts: int, **how: Any) -> None:
            assert how["device"] == "cuda:1"
            self.nb_concepts = nb_concepts

        def fit(self, A: torch.Tensor, max_iter: int) -> None:
            done.append(("fit", self.nb_concepts))

    class Encodes:
        def __init__(self, D: torch.Tensor, *, device: torch.device) -> None:
            assert device == torch.device("cuda:1")
            self.nb_concepts = len(D)

        def encode(self, rows: torch.Tensor) -> None:
            done.append((self.nb_concepts, len(rows)))

    monkeypatch.setattr(warm, "NMF", Fit)
    monkeypatch.setattr(warm, "Dictionary", Encodes)
    warm.warm_on(torch.device("cpu"))
    assert done == []
    warm.warm_on(torch.device("cuda:1"))
    assert done[:2] == [("fit", 64), ("fit", 1024)]
    assert done[2:] == [(k, rows) for k in (64, 256, 1024, 4096) for rows in (512, 1, 1)]
