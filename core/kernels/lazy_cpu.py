"""The kernels for the CPU, found when they are first asked for: what computes on a GPU alone needs no numba."""

from functools import cache
from types import ModuleType


@cache
def cpu_kernels() -> ModuleType:
    """`core.kernels.cpu.interface`.

    Raises:
        ImportError: numba is not there, or refuses the numpy that is.
    """
    try:
        from core.kernels.cpu import interface
    except ImportError as error:
        raise ImportError(
            f"what is computed on the CPU needs numba, which cannot be imported ({error}); on a CUDA device fits and "
            "most encodes in float32 do without"
        ) from error
    return interface
