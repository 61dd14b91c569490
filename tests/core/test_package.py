"""What the package exposes, and what importing it costs."""

import json

import pytest

import core
from tests.core.fresh import run_fresh

# `make gpu` wants no more than torch, numpy, numba and scikit-learn of a machine: there is no tqdm here.
LOADED = """
import json, sys
sys.modules["tqdm"] = None
import core.metrics, core.warm, numpy as np
from core import NMF, Dictionary
told = [sorted(sys.modules)]
shape = list(NMF(2, max_iter=2).fit(np.ones((4, 3)))[0].shape)
told += [shape, sorted(sys.modules)]
import app.worker.loop
print(json.dumps([*told, sorted(sys.modules)]))
"""


def test_every_exported_name_is_there() -> None:
    for name in core.__all__:
        assert getattr(core, name).__name__ == name
    assert set(core.__all__) <= set(dir(core))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        core.nonsense  # noqa: B018


@pytest.mark.parametrize("module", ["core", "core.errors", "core.checks", "core.constants", "core.threads"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = run_fresh(
        f"import sys, {module}; print(*sorted({{'torch', 'numba', 'sklearn', 'scipy', 'tqdm'}} & set(sys.modules)))"
    )
    assert heavy == ""


Told = tuple[list[str], list[int], list[str], list[str]]


@pytest.fixture(scope="module")
def told() -> Told:
    """Of one process: what it has loaded, the shape of codes that it fits, what it has loaded then, and at last."""
    imported, shape, fitted, at_last = json.loads(run_fresh(LOADED))
    return imported, shape, fitted, at_last


def test_core_knows_nothing_of_http_nor_scikit_learn(told: Told) -> None:
    imported, _, fitted, _ = told
    assert "core.nmf" in imported
    assert not {"fastapi", "starlette", "pydantic", "sklearn", "app"} & {*imported, *fitted}


def test_a_fit_that_tells_nothing_does_without_tqdm(told: Told) -> None:
    assert told[1] == [4, 2]


def test_dense_rows_do_without_scipys_matrices(told: Told) -> None:
    """They take an eighth of the time that a process needs to start."""
    at_last = told[3]
    assert "app.worker.loop" in at_last
    assert "scipy.sparse" not in at_last


def test_the_package_runs_without_triton(told: Told) -> None:
    _, _, fitted, at_last = told
    assert "triton" not in {*fitted, *at_last}


def test_waiting_threads_sleep_unless_told_otherwise() -> None:
    show = "import os, core; print(os.environ['OMP_WAIT_POLICY'])"
    assert run_fresh(f"import os; os.environ.pop('OMP_WAIT_POLICY', None); {show}") == "PASSIVE"
    assert run_fresh(f"import os; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'; {show}") == "ACTIVE"
