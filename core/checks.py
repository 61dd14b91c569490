"""Arrays are checked once, before any other work, and come out contiguous and in the dtype to compute in.

Only numpy is used: the HTTP process runs these checks and never loads torch. Arrays are walked in blocks of
rows that fit a core's cache, so a check costs about one read of the array and its temporaries stay small.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from core.errors import NegativeValues, NotFinite, OutOfRange, WrongDtype, WrongShape

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_VALUES = 1 << 16  # 256 KiB of float32: well inside an L2 cache

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_TINY = float(np.finfo(np.float32).tiny)


def check_activations(
    A: Array,
    *,
    n_features: int | None = None,
    clip: bool = False,
    name: str = "activations",
    dtype: type[np.floating[Any]] = np.float32,
) -> Array:
    """Activations, ready to compute with.

    Args:
        A: (rows, n_features), or (n_features,) for a single row; float16/32/64 or integers, any memory layout.
        n_features: the width it must have, if known.
        clip: set negative values to zero instead of refusing them.
        name: what the array is called in messages.
        dtype: float32 or float64.

    Returns:
        (rows, n_features), C-contiguous, of `dtype`, finite and non-negative; `A` itself where it already is.

    Raises:
        WrongDtype, WrongShape, NotFinite, NegativeValues, OutOfRange: as their names say.
    """
    return _checked(A, width=n_features, width_name="features", clip=clip, name=name, dtype=dtype)


def check_codes(
    Z: Array,
    *,
    nb_concepts: int | None = None,
    name: str = "codes",
    dtype: type[np.floating[Any]] = np.float32,
) -> Array:
    """Codes, ready to compute with: as `check_activations`, for (rows, nb_concepts) or (nb_concepts,)."""
    return _checked(Z, width=nb_concepts, width_name="concepts", clip=False, name=name, dtype=dtype)


def _checked(
    x: Array, *, width: int | None, width_name: str, clip: bool, name: str, dtype: type[np.floating[Any]]
) -> Array:
    x = check_shape(x, width=width, width_name=width_name, name=name)
    largest = _check_values(x, clip=clip, name=name)
    if np.dtype(dtype) == np.float32 and not (largest == 0 or FLOAT32_TINY <= largest <= FLOAT32_MAX):
        raise OutOfRange(
            f"{name} reach {largest:.3g}, which float32 cannot compute with; "
            f"rescale them so that the largest lies between {FLOAT32_TINY:.2g} and {FLOAT32_MAX:.2g}"
        )
    return _converted(x, clip=clip, dtype=np.dtype(dtype))


def check_shape(x: Array, *, width: int | None = None, width_name: str, name: str) -> Array:
    """`x` with two dimensions, once its dtype and shape are right; its values are not looked at."""
    if not isinstance(x, np.ndarray):
        raise WrongDtype(f"{name} must be a numpy array of real numbers, not {type(x).__name__}")
    if x.dtype.kind not in "fiu" or x.dtype.itemsize > 8:
        raise WrongDtype(f"{name} have dtype {x.dtype}; use float16, float32, float64 or an integer dtype")
    if x.ndim == 1:
        x = x[None, :]
    if x.ndim != 2:
        raise WrongShape(f"{name} have {x.ndim} dimensions {x.shape}; use (rows, {width_name})")
    if x.size == 0:
        raise WrongShape(f"{name} are empty, of shape {x.shape}; at least one row and one column are needed")
    if width is not None and x.shape[1] != width:
        raise WrongShape(f"{name} have {x.shape[1]} columns; this dictionary has {width} {width_name}")
    return x


def _check_values(x: Array, *, clip: bool, name: str) -> float:
    """The largest value of `x`, once none is NaN, infinite or (unless clipped) negative."""
    largest = 0.0
    for rows in _blocks(x):
        low, high = float(x[rows].min()), float(x[rows].max())  # NaN in a block makes both NaN
        if not (np.isfinite(low) and np.isfinite(high)):
            _refuse_non_finite(x, name)
        if low < 0 and not clip:
            _refuse_negative(x, name)
        largest = max(largest, high)
    return largest


def _refuse_non_finite(x: Array, name: str) -> NoReturn:
    count, first = _count(x, lambda block: ~np.isfinite(block))
    raise NotFinite(
        f"{name} hold {count} NaN or infinite value{'s' * (count > 1)}, the first ({float(x[first])}) at "
        f"row {first[0]}, column {first[1]}; every value must be finite"
    )


def _refuse_negative(x: Array, name: str) -> NoReturn:
    count, first = _count(x, lambda block: block < 0)
    raise NegativeValues(
        f"{name} hold {count} negative value{'s' * (count > 1)}, the first ({float(x[first]):.6g}) at "
        f"row {first[0]}, column {first[1]}; they must be non-negative: shift them, or clip them to zero"
    )


def _count(x: Array, is_wrong: Callable[[Array], Array]) -> tuple[int, tuple[int, int]]:
    """How many values are wrong, and the row and column of the first."""
    count, first = 0, (0, 0)
    for rows in _blocks(x):
        wrong = is_wrong(x[rows])
        found = int(np.count_nonzero(wrong))
        if found and not count:
            row, column = divmod(int(wrong.argmax()), x.shape[1])
            first = (rows.start + row, column)
        count += found
    return count, first


def _converted(x: Array, *, clip: bool, dtype: np.dtype[Any]) -> Array:
    if not clip and x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned:
        return x
    out = np.empty(x.shape, dtype)
    for rows in _blocks(x):
        block = out[rows]
        block[...] = x[rows]
        if clip:
            np.maximum(block, 0, out=block)
    return out


def _blocks(x: Array) -> Iterator[slice]:
    rows = max(1, BLOCK_VALUES // x.shape[1])
    for start in range(0, x.shape[0], rows):
        yield slice(start, min(start + rows, x.shape[0]))
