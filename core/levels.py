"""What kernels are compiled for: a level of x86-64, and not the very processor, so that what one machine has compiled
serves others: those of a cluster that share a home directory, or all that run an image.

`core.compiled` keeps what was compiled for each level under a name of its own.
"""

from collections.abc import Mapping
from typing import Any

# The highest first, with all that each takes beyond the least of x86-64 (System V psABI for AMD64, table 3.1).
_V3 = {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"}
LEVELS = {
    "x86-64-v4": _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": _V3,
}

# Not in halves, though processors of these levels were made for which that is better: where most of the time goes,
# sums fill all registers (`core.kernels.cpu.panels`). On a Zen 4 halves made encodes 1.4 times as slow.
WHOLE_REGISTERS = "-prefer-256-bit"


def level_of(features: Mapping[str, bool]) -> str | None:
    """The highest level that a processor with these features reaches; None for one that is compiled for as it is."""
    return next((level for level, needed in LEVELS.items() if all(features.get(name) for name in needed)), None)


def settle(config: Any) -> None:
    """Have numba, before it compiles anything, compile for this machine's level.

    Where NUMBA_CPU_NAME or NUMBA_CPU_FEATURES say for what, it is for that.
    """
    from llvmlite.binding import get_host_cpu_features

    if config.CPU_FEATURES is not None:
        return
    if config.CPU_NAME is None:
        config.CPU_NAME = level_of(get_host_cpu_features())
    if config.CPU_NAME in LEVELS:
        config.CPU_FEATURES = WHOLE_REGISTERS


def target() -> str | None:
    """What this process compiles for; None for the very processor that it runs on."""
    from numba import config

    settle(config)
    name: str | None = config.CPU_NAME  # type: ignore[attr-defined]
    return name


def has(feature: str) -> bool:
    """Whether what is compiled for has this feature."""
    from llvmlite.binding import get_host_cpu_features

    if (level := target()) in LEVELS:
        return feature in LEVELS[level]
    return bool(get_host_cpu_features().get(feature))
