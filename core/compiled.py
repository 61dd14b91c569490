"""How kernels for the CPU are compiled, and how their machine code is kept from one process to the next."""

# mypy: disable-error-code="no-untyped-call"

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Self, TypeVar

import numba
import numba.np.linalg
import numpy as np
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile

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


def compiled(*, parallel: bool = False, inline: bool = False) -> Callable[[Function], Function]:
    """Decorator: the function compiled by numba, its machine code kept on disk.

    Numba counts who refers to an array, atomically, which takes longer than some products; and leaves that out where
    nothing comes between that may raise. So a division by zero is infinite or NaN here, and raises nothing; and in
    innermost loops no array is cut out of another, and what is called is an operation of `core.kernels.cpu.lanes`, or
    made part of what calls it (`inline`).

    It is read from where it is kept, which is NUMBA_CACHE_DIR where that is set, else beside the source or in the
    user's cache directory, and from beside the source in any case. Where none of these can be written, what is not
    there is compiled anew in each process.
    """

    def decorate(function: Function) -> Function:
        kernel = numba.njit(
            function,
            fastmath=FASTMATH,
            error_model="numpy",
            nogil=True,
            parallel=parallel,
            inline="always" if inline else "never",
        )
        try:
            kernel._cache = KernelCache(function)
        except RuntimeError:  # of locators that the user has named, none is one
            _warn_of_none_kept("NUMBA_CACHE_LOCATOR_CLASSES finds no place")
        return kernel  # type: ignore[no-any-return]

    return decorate


def compile_as_kept(kernel: Any) -> None:
    """For the level of this process, what is kept for another. Nothing is run."""
    for signature in kernel._cache._cache_file.signatures():
        kernel.compile(signature)


class BesideSource:
    """A locator of numba's, for where no directory can be written. There, too, something may be read."""

    def __init__(self, source: str) -> None:
        self._py_file = source

    @classmethod
    def from_function(cls, _: object, source: str) -> Self:
        return cls(source)

    def ensure_cache_path(self) -> None:
        """It may not be there."""

    def get_cache_path(self) -> str:
        return str(Path(self._py_file).parent / "__pycache__")

    def get_source_stamp(self) -> None:
        """Files have names that tell (see `KernelCacheFile`)."""

    def get_disambiguator(self) -> str:
        return ""


class KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes: list[Any] = [*CompileResultCacheImpl._locator_classes, BesideSource]  # noqa: RUF012 - as there


class KernelCache(FunctionCache):
    """Numba's cache of a function, in files of our own."""

    _impl_class = KernelCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        beside = BesideSource(function.__code__.co_filename).get_cache_path()
        name = f"{function.__module__}.{function.__name__}"
        self._cache_file = KernelCacheFile(self.cache_path, name, beside)


class KernelCacheFile(IndexDataCacheFile):
    """The machine code of one kernel, for all dtypes and levels; numba's own way with these files is not safe.

    Numba numbers them, and an index has the numbers. Of two processes that compile at once, for two dtypes or for two
    levels, both may take the same number, and one is given the other's machine code from then on. So is, after an
    upgrade, who finds what a process that was killed had told the index and not yet written. And the index is renewed
    with the kernel's own source, though what the kernel calls, from other files, is compiled into it.

    Here a file's name says all that its content follows from, and it is there as a whole or not at all.

    Args:
        directory: where it is kept.
        beside: a directory that is read, too: of the source, where a user who may not write it has compiled none.
    """

    def __init__(self, directory: str, kernel: str, beside: str | None = None) -> None:
        super().__init__(directory, kernel, None)
        self._directory = Path(directory)
        self._beside = IndexDataCacheFile(beside or directory, kernel, None)
        self._kernel = f"{kernel}.{sys.implementation.cache_tag}"

    def load(self, key: Any) -> Any:
        name = self._name(key)
        kept = _read(self, name)
        return _read(self._beside, name) if kept is None else kept

    def save(self, key: Any, data: Any) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._save_data(self._name(key), data)
            for path in self._directory.glob(f"{self._kernel}.*.nbc"):
                if not path.match(self._of_sources("*")):
                    path.unlink(missing_ok=True)
        except OSError as error:  # this process has what it compiled all the same
            _warn_of_none_kept(str(error.strerror))

    def flush(self) -> None:
        for path in self._directory.glob(f"{self._kernel}.*.nbc"):
            path.unlink(missing_ok=True)

    def signatures(self) -> Iterator[Any]:
        """The types of arguments for which there is machine code of these sources."""
        for directory in {place._cache_path: place for place in (self, self._beside)}.values():
            for path in sorted(Path(directory._cache_path).glob(self._of_sources("*"))):
                if (kept := _read(directory, path.name)) is not None:
                    _, _, _, signature, *_ = kept
                    yield signature.args

    def _name(self, key: Any) -> str:
        return self._of_sources(_digest(repr(key).encode()))

    def _of_sources(self, rest: str) -> str:
        return f"{self._kernel}.{_sources()}.{rest}.nbc"


def _read(directory: IndexDataCacheFile, name: str) -> Any:
    """What is kept in this file; None where there is no such that can be read, or it is cut off: a machine lost its
    power."""
    try:
        return directory._load_data(name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except Exception as error:  # whatever unpickling may raise
        told = f"{Path(directory._cache_path) / name} cannot be read ({error!r}) and is made anew"
        warnings.warn(told, stacklevel=4)
        return None


@cache
def _warn_of_none_kept(reason: str) -> None:
    """Of all kernels once: while numba compiles, warnings forget that they were given."""
    told = f"compiled kernels cannot be kept ({reason}), so each process compiles them again; set NUMBA_CACHE_DIR"
    warnings.warn(f"{told} to a directory that can be written", stacklevel=3)


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
