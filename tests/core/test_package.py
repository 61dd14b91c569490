"""What the package exposes, and what importing it costs."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import core

ROOT = Path(__file__).parent.parent.parent


def run_fresh(code: str, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """The output of `code` in a fresh interpreter, with these variables in its environment."""
    command, env = [sys.executable, "-c", code], {**os.environ, **variables}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=ROOT).stdout.strip()


def test_every_exported_name_is_there() -> None:
    for name in core.__all__:
        assert getattr(core, name).__name__ == name
    assert set(core.__all__) <= set(dir(core))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        core.nonsense  # noqa: B018


@pytest.mark.parametrize("module", ["core", "core.errors", "core.checks", "core.conventions", "core.threads"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = run_fresh(
        f"import sys, {module}; print(*sorted({{'torch', 'numba', 'sklearn', 'scipy', 'tqdm'}} & set(sys.modules)))"
    )
    assert heavy == ""


def test_core_knows_nothing_of_http_nor_scikit_learn() -> None:
    loaded = run_fresh(
        "import sys; from core import NMF, Dictionary; import core.metrics, core.warm;"
        "print(*sorted({'fastapi', 'starlette', 'pydantic', 'sklearn', 'app'} & set(sys.modules)))"
    )
    assert loaded == ""


def test_a_fit_that_tells_nothing_does_without_tqdm() -> None:
    """`make gpu` wants no more than torch, numpy, numba and scikit-learn of a machine."""
    code = (
        "import sys; sys.modules['tqdm'] = None; import numpy as np; from core import NMF;"
        "print(NMF(2, max_iter=2).fit(np.ones((4, 3)))[0].shape)"
    )
    assert run_fresh(code) == "torch.Size([4, 2])"


def test_dense_rows_do_without_scipys_matrices() -> None:
    """They take an eighth of the time that a process needs to start."""
    code = (
        "import sys, numpy as np; from core import NMF; NMF(2, max_iter=2).fit(np.ones((4, 3)));"
        "import app.worker.loop; print('scipy.sparse' in sys.modules)"
    )
    assert run_fresh(code) == "False"


def test_waiting_threads_sleep_unless_told_otherwise() -> None:
    show = "import os, core; print(os.environ['OMP_WAIT_POLICY'])"
    assert run_fresh(f"import os; os.environ.pop('OMP_WAIT_POLICY', None); {show}") == "PASSIVE"
    assert run_fresh(f"import os; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'; {show}") == "ACTIVE"
