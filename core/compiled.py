"""How kernels for the CPU are compiled, and how their machine code is kept from one process to the next."""

# mypy: disable-error-code="no-untyped-call"

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.np.linalg
import numpy as np
from numba.core.caching import IndexDataCacheFile

from core import levels, threads

Array = np.ndarray[Any, np.dtype[Any]]  # of the kernels
Function = TypeVar("Function", bound=Callable[..., Any])

# Lets numba vectorise and fuse sums; nnan and ninf are left out, so that NaN still compares as NaN.
FASTMATH = {"contract", "reassoc", "nsz"}

levels.settle(numba.config)
threads.settle_layer(numba.config)


def _load_arraymath() -> None:
    """Numba's functions of arrays, which look for SciPy's BLAS as they are loaded. That takes as long as to load all
    kernels here, of which none uses it; where somebody's own do, it is looked for again.
    """
    look, numba.np.linalg.ensure_blas = numba.np.linalg.ensure_blas, lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        numba.np.linalg.ensure_blas = look


_load_arraymath()


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """Decorator: the function compiled by numba, its machine code kept on disk.

    It is kept in NUMBA_CACHE_DIR where that is set, else beside the source or in the user's cache directory. Where
    none of these can be written (a read-only container) the code is compiled anew in each process.
    """

    def decorate(function: Function) -> Function:
        options: dict[str, Any] = {"fastmath": FASTMATH, "nogil": True, "parallel": parallel}
        try:
            kernel = numba.njit(function, cache=True, **options)
        except RuntimeError:  # numba finds no cache directory that it can write
            warnings.warn(
                "no cache directory for compiled kernels is writable, so each process compiles them again; "
                "set NUMBA_CACHE_DIR to one that is",
                stacklevel=1,  # one place for all kernels: it is told once
            )
            return numba.njit(function, **options)  # type: ignore[no-any-return]
        kernel._cache._cache_file = KernelCacheFile(
            kernel._cache.cache_path, f"{function.__module__}.{function.__name__}"
        )
        return kernel  # type: ignore[no-any-return]

    return decorate


def compile_as_kept(kernel: Any) -> None:
    """For the level of this process, what is kept for another. Nothing is run."""
    for signature in kernel._cache._cache_file.signatures():
        kernel.compile(signature)


class KernelCacheFile(IndexDataCacheFile):
    """The machine code of one kernel, for all dtypes and levels; numba's own way with these files is not safe.

    Numba numbers them, and an index has the numbers. Of two processes that compile at once, for two dtypes or for two
    levels, both may take the same number, and one is given the other's machine code from then on. So is, after an
    upgrade, who finds what a process that was killed had told the index and not yet written. And the index is renewed
    with the kernel's own source, though what the kernel calls, from other files, is compiled into it.

    Here a file's name says all that its content follows from, and it is there as a whole or not at all.
    """

    def __init__(self, directory: str, kernel: str) -> None:
        super().__init__(directory, kernel, None)
        self._directory = Path(directory)
        self._kernel = f"{kernel}.{sys.implementation.cache_tag}"

    def load(self, key: Any) -> Any:
        return self._read(self._name(key))

    def save(self, key: Any, data: Any) -> None:
        try:
            self._save_data(self._name(key), data)
            for path in self._directory.glob(f"{self._kernel}.*.nbc"):
                if not path.match(self._of_sources("*")):
                    path.unlink(missing_ok=True)
        except OSError as error:  # a full disk: this process has what it compiled all the same
            warnings.warn(
                f"a compiled kernel cannot be kept ({error}), so each process compiles it again", stacklevel=2
            )

    def flush(self) -> None:
        for path in self._directory.glob(f"{self._kernel}.*.nbc"):
            path.unlink(missing_ok=True)

    def signatures(self) -> Iterator[Any]:
        """The types of arguments for which there is machine code of these sources."""
        for path in sorted(self._directory.glob(self._of_sources("*"))):
            if (kept := self._read(path.name)) is not None:
                _, _, _, signature, *_ = kept
                yield signature.args

    def _read(self, name: str) -> Any:
        """What is kept in this file; None where there is no such, or it is cut off: a machine lost its power."""
        try:
            return self._load_data(name)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever unpickling may raise
            warnings.warn(f"{self._directory / name} cannot be read ({error!r}) and is made anew", stacklevel=3)
            return None

    def _name(self, key: Any) -> str:
        return self._of_sources(_digest(repr(key).encode()))

    def _of_sources(self, rest: str) -> str:
        return f"{self._kernel}.{_sources()}.{rest}.nbc"


def sources() -> list[Path]:
    """The files that compiled code is made of, or has constants from: a change of any has all compiled anew."""
    core = Path(__file__).parent
    kernels = core / "kernels"
    of_all = core / "compiled.py", core / "levels.py", kernels / "encode_rules.py", kernels / "prepared.py"
    return [*of_all, *sorted((kernels / "cpu").glob("*.py"))]


@cache
def _sources() -> str:
    """A digest of all that kernels are compiled from, and of the numba that compiles them."""
    return _digest(numba.__version__.encode(), *(path.read_bytes() for path in sources()))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
