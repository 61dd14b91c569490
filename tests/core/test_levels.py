"""What kernels are compiled for, and that it serves the machines that it is to serve."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import core
from core import levels

V3 = dict.fromkeys(levels.LEVELS["x86-64-v3"], True)
V4 = dict.fromkeys(levels.LEVELS["x86-64-v4"], True)
X86 = levels.target() in levels.LEVELS


@pytest.mark.parametrize(
    ("features", "level"),
    [
        (V4 | {"amx-tile": True}, "x86-64-v4"),
        (V4 | {"avx512bw": False}, "x86-64-v3"),
        (V3, "x86-64-v3"),
        (V3 | {"fma": False}, None),
        ({"neon": True}, None),
    ],
)
def test_a_processor_has_the_highest_level_of_which_it_lacks_nothing(
    features: dict[str, bool], level: str | None
) -> None:
    assert levels.level_of(features) == level


@pytest.mark.skipif(not X86, reason="this machine is compiled for as it is")
def test_what_the_environment_says_stays() -> None:
    config = SimpleNamespace(CPU_NAME="haswell", CPU_FEATURES=None)
    levels.settle(config)
    assert (config.CPU_NAME, config.CPU_FEATURES) == ("haswell", None)
    config = SimpleNamespace(CPU_NAME=None, CPU_FEATURES="+avx")
    levels.settle(config)
    assert (config.CPU_NAME, config.CPU_FEATURES) == (None, "+avx")
    config = SimpleNamespace(CPU_NAME="x86-64-v3", CPU_FEATURES=None)
    levels.settle(config)
    assert (config.CPU_NAME, config.CPU_FEATURES) == ("x86-64-v3", levels.WHOLE_REGISTERS)


USE = """
from core.kernels.cpu import panels
panels.padded(3)
print(panels.WIDE, sum(panels.padded.stats.cache_hits.values()), sum(panels.padded.stats.cache_misses.values()))
"""


@pytest.mark.skipif(levels.target() != "x86-64-v4", reason="this machine has no AVX-512, or is no x86-64")
def test_what_is_compiled_for_another_level_is_found_there(tmp_path: Path) -> None:
    here = tmp_path / "core"  # without what may lie beside the sources, which would be found
    shutil.copytree(Path(core.__file__).parent, here, ignore=shutil.ignore_patterns("__pycache__"))

    def run(*command: str, level: str) -> str:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_CPU_NAME": level}
        environment["PYTHONPATH"] = str(tmp_path)
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert run("-c", USE, level="x86-64-v4") == "True 0 1"
    run("-m", "core.warm", "--as-kept", level="x86-64-v3")
    assert run("-c", USE, level="x86-64-v3") == "False 1 0"
    assert run("-c", USE, level="x86-64-v4") == "True 1 0"
