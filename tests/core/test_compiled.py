"""Machine code of kernels, kept on disk: whoever finds some finds the right one."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import core
from core.compiled import _Kept

USE = """
import numpy as np
from core.kernels.cpu import _live
print(_live(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)), sum(_live.stats.cache_hits.values()))
"""
USE_ALL = """
import gc, torch
from numba.core.registry import CPUDispatcher
from core import warm
warm.warm()
warm.warm_encodes(torch.float64)
told = [k.stats for k in gc.get_objects() if isinstance(k, CPUDispatcher) and k.__module__.startswith("core.")]
print(sum(sum(stats.cache_hits.values()) for stats in told), sum(sum(stats.cache_misses.values()) for stats in told))
"""


def run(script: str, **environment: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(core.__file__).parents[1])} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


def test_another_process_compiles_nothing() -> None:
    run(USE_ALL)
    hits, misses = run(USE_ALL)
    assert hits >= 5
    assert misses == 0


def test_what_a_kernel_calls_is_in_another_file_and_has_it_compiled_anew(tmp_path: Path) -> None:
    package, kept = tmp_path / "core", tmp_path / "kept"
    shutil.copytree(Path(core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(kept)}
    assert run(USE, **environment) == [6, 0]
    assert run(USE, **environment) == [6, 1]
    with (package / "kernels" / "sweeps.py").open("a") as sweeps:
        sweeps.write("# changed\n")
    assert run(USE, **environment) == [6, 0]
    assert len(list(kept.rglob("*_live.*.nbc"))) == 1, "that of the sources that there were is gone"


def test_two_processes_that_compile_at_once_keep_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other begins and ends while the one writes: numba would number both alike."""
    one, other = _Kept(str(tmp_path), "core.kernels.k"), _Kept(str(tmp_path), "core.kernels.k")
    write = one._save_data

    def meanwhile(name: str, data: Any) -> None:
        other.save(("float64", "v3"), "of the other")
        write(name, data)

    monkeypatch.setattr(one, "_save_data", meanwhile)
    one.save(("float32", "v4"), "of the one")
    for kept in (one, other):
        assert kept.load(("float32", "v4")) == "of the one"
        assert kept.load(("float64", "v3")) == "of the other"
        assert kept.load(("float64", "v4")) is None


def test_a_full_disk_costs_no_more_than_compiling_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = _Kept(str(tmp_path), "core.kernels.k")

    def full(name: str, data: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kept, "_save_data", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        kept.save("key", "data")
    assert kept.load("key") is None


def test_it_can_be_emptied(tmp_path: Path) -> None:
    kept, of_another = _Kept(str(tmp_path), "core.kernels.k"), _Kept(str(tmp_path), "core.kernels.kk")
    kept.save("key", "data")
    of_another.save("key", "data")
    kept.flush()
    assert kept.load("key") is None
    assert of_another.load("key") == "data"
