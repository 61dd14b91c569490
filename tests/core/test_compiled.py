"""Machine code of kernels, kept on disk: whoever finds some finds the right one."""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import core
from core import compiled, warm
from core.compiled import KernelCacheFile, sources
from tests.core.fresh import ROOT, run_each, run_fresh
from tests.test_house import imported

import torch  # isort: skip

# Two of the kernels that compile within a second; all are compiled by the same decorator.
USE = """
import json, os, sys, warnings
import numpy as np
sys.path.insert(0, {package!r})
os.environ.update(dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), {cache!r}))
with warnings.catch_warnings(record=True, action="always") as warned:
    from core.kernels.cpu.descent import _live
    from core.kernels.cpu.sums import sums
    told = int(_live(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)) + sums(np.ones(1, np.float32))[0])
hits = sum(_live.stats.cache_hits.values()) + sum(sums.stats.cache_hits.values())
print(json.dumps([told, hits, [str(one.message) for one in warned]]))
"""
CHANGE = """
with open({sources!r}, "a") as sources:
    sources.write("# changed\\n")
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


def test_another_process_compiles_nothing() -> None:
    warm.warm()
    warm.warm_encodes(torch.float64)
    hits, misses = map(int, run_fresh(USE_ALL).split())
    assert hits >= 5
    assert misses == 0


@dataclass(frozen=True)
class Used:
    """What a kernel told in processes one after the other: its value, how often it was found, and warnings."""

    told: list[list[Any]]
    cache: Path


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Used:
    """Of a cache that is filled, found, and filled again after a change; of one that cannot be written; and of an
    empty one, where the kernel lies beside the sources.

    What cannot be written is a file where the cache's folder should be: there nobody can write, not even root.
    """
    folder = tmp_path_factory.mktemp("compiled")
    package, unwritable, brought = folder / "changing", folder / "unwritable", folder / "brought"
    for copy in (package, unwritable, brought):
        shutil.copytree(Path(core.__file__).parent, copy / "core", ignore=shutil.ignore_patterns("__pycache__"))
    cache, blocker = folder / "kept", folder / "file"
    for file in (blocker, unwritable / "core" / "kernels" / "cpu" / "__pycache__"):
        file.touch()
    use = USE.format(package=str(package), cache=str(cache))
    change = CHANGE.format(sources=str(package / "core" / "kernels" / "cpu" / "sweeps.py"))
    told = run_each(use)
    shutil.copytree(next(cache.rglob("*.nbc")).parent, brought / "core" / "kernels" / "cpu" / "__pycache__")
    told += run_each(
        use,
        change + use,
        USE.format(package=str(unwritable), cache=str(blocker)),
        USE.format(package=str(brought), cache=str(folder / "empty")),
    )
    return Used([json.loads(line) for line in told], cache)


def test_what_a_kernel_calls_is_in_another_file_and_has_it_compiled_anew(used: Used) -> None:
    assert [told[:2] for told in used.told[:3]] == [[7, 0], [7, 2], [7, 0]]
    assert len(list(used.cache.rglob("*_live.*.nbc"))) == 1, "that of the sources that there were is gone"


def test_what_kernels_import_of_core_has_them_compiled_anew() -> None:
    """`interface`, which calls them and compiles nothing, may import more."""
    made_of = {path.relative_to(ROOT).with_suffix("") for path in sources()}
    assert len(made_of) > 10
    for path in (ROOT / "core" / "kernels" / "cpu").glob("*.py"):
        modules = {Path(*name.split(".")) for name in imported(path) if name.startswith("core.")}
        if path.stem != "interface":
            assert {module for module in modules if (ROOT / module).with_suffix(".py").exists()} <= made_of, path


def test_the_cache_directory_that_is_set_is_used(used: Used) -> None:
    assert [told[2] for told in used.told[:3]] == [[]] * 3
    assert list(used.cache.rglob("*.nbc"))


def test_without_a_writable_cache_it_works_and_says_so(used: Used) -> None:
    value, hits, warned = used.told[3]
    assert (value, hits) == (7, 0)
    assert ["NUMBA_CACHE_DIR" in message for message in warned] == [True]


def test_what_lies_beside_the_sources_is_found_and_kept_nowhere_else(used: Used) -> None:
    """Compiled by who installed it, for users who cannot write there."""
    assert used.told[4] == [7, 2, []]
    assert not list((used.cache.parent / "empty").rglob("*.nbc"))


def test_two_processes_that_compile_at_once_keep_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other begins and ends while the one writes: numba would number both alike."""
    one, other = KernelCacheFile(str(tmp_path), "core.kernels.k"), KernelCacheFile(str(tmp_path), "core.kernels.k")
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
    kept = KernelCacheFile(str(tmp_path), "core.kernels.k")

    def full(name: str, data: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kept, "_save_data", full)
    compiled._warn_of_none_kept.cache_clear()
    with pytest.warns(UserWarning, match="No space left on device"):
        kept.save("key", "data")
    assert kept.load("key") is None


@pytest.mark.parametrize("length", [0, 1, 5])
def test_what_is_cut_off_is_made_anew(tmp_path: Path, length: int) -> None:
    """As a machine that lost its power may leave it, or a copy on a disk that was full."""
    kept = KernelCacheFile(str(tmp_path), "core.kernels.k")
    kept.save("key", "data")
    (path,) = tmp_path.glob("*.nbc")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(UserWarning, match=f"{path.name} cannot be read"):
        assert kept.load("key") is None
    with pytest.warns(UserWarning, match="cannot be read"):
        assert list(kept.signatures()) == []
    kept.save("key", "data")
    assert kept.load("key") == "data"


def test_what_lies_beside_the_sources_is_among_the_signatures(tmp_path: Path) -> None:
    """Which another level's are compiled for."""
    beside, directory = tmp_path / "beside", tmp_path / "kept"
    KernelCacheFile(str(beside), "core.kernels.k").save("key", (0, 0, 0, SimpleNamespace(args="float32")))
    kept = KernelCacheFile(str(directory), "core.kernels.k", str(beside))
    assert list(kept.signatures()) == ["float32"]


def test_it_can_be_emptied(tmp_path: Path) -> None:
    kept, of_another = (
        KernelCacheFile(str(tmp_path), "core.kernels.k"),
        KernelCacheFile(str(tmp_path), "core.kernels.kk"),
    )
    kept.save("key", "data")
    of_another.save("key", "data")
    kept.flush()
    assert kept.load("key") is None
    assert of_another.load("key") == "data"
