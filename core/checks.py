"""Arrays are checked once, before any other work, and come out contiguous and in the dtype to compute in.

Only numpy is used: the HTTP process runs these checks and never loads torch. Arrays are walked in blocks of
rows that fit a core's cache, so a check costs about one read of the array and its temporaries stay small.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn

import numpy as np

from core.errors import InvalidParameter, NegativeValues, NotFinite, OutOfRange, WrongDtype, WrongShape

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_VALUES = 1 << 16  # 256 KiB of float32: well inside an L2 cache

FLOAT32_MAX = float(np.finfo(np.float32).max)

NEVER_CLIPPED = ("codes", "concepts")  # what names of these begin with
CLIPPING = "; to have negative activations set to zero, pass A.clip(0) (Python), clip=true (HTTP) or --clip"

Place = Callable[[tuple[int, int]], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Form:
    """What an array must look like.

    Attributes:
        name: what it is called in messages.
        width_name, width: what its columns are, and how many; None: any number.
        width_of: what has that width.
        least_rows: 0 where there may be none.
    """

    name: str
    width_name: str
    width: int | None = None
    width_of: str = "this dictionary"
    least_rows: int = 1

    def check(self, shape: Iterable[int]) -> None:
        """Raises WrongShape unless there are two dimensions, neither of them empty (unless no rows will do), and the
        width."""
        shape = tuple(shape)  # torch's own tells itself otherwise
        if len(shape) != 2:
            rows = f", as by x.reshape(-1, {shape[-1]})" if len(shape) > 2 else ""
            raise WrongShape(f"{self.name} have {len(shape)} dimensions {shape}; use (rows, {self.width_name}){rows}")
        if shape[0] < self.least_rows or shape[1] == 0:
            raise WrongShape(f"{self.name} are empty, of shape {shape}; at least one row and one column are needed")
        if self.width is not None and shape[1] != self.width:
            raise WrongShape(
                f"{self.name} have {shape[1]} columns; {self.width_of} has {self.width} {self.width_name}"
            )


def activations_form(n_features: int | None = None, *, name: str = "activations", least_rows: int = 1) -> Form:
    return Form(name, "features", n_features, least_rows=least_rows)


def codes_form(nb_concepts: int | None = None, *, name: str = "codes", least_rows: int = 1) -> Form:
    return Form(name, "concepts", nb_concepts, least_rows=least_rows)


def concepts_form() -> Form:
    return activations_form(name="concepts")


def _itself(place: tuple[int, int]) -> tuple[int, int]:
    return place


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
    return _checked(A, activations_form(n_features, name=name), clip=clip, dtype=dtype)


def check_codes(
    Z: Array,
    *,
    nb_concepts: int | None = None,
    name: str = "codes",
    dtype: type[np.floating[Any]] = np.float32,
) -> Array:
    """Codes, ready to compute with: as `check_activations`, for (rows, nb_concepts) or (nb_concepts,)."""
    return _checked(Z, codes_form(nb_concepts, name=name), dtype=dtype)


def _checked(x: Array, form: Form, *, clip: bool = False, dtype: type[np.floating[Any]]) -> Array:
    x = check_array(x, form)
    check_scale(check_values(x, clip=clip, name=form.name, dtype=dtype), name=form.name, dtype=dtype)
    return converted(x, clip=clip, dtype=dtype)


def check_array(x: Array, form: Form) -> Array:
    """`x` with two dimensions, once its dtype and shape are right; its values are not looked at."""
    if not isinstance(x, np.ndarray):
        raise WrongDtype(f"{form.name} must be a numpy array of real numbers, not {type(x).__name__}")
    check_dtype(x.dtype, name=form.name)
    if x.ndim == 1:
        x = x[None, :]
    form.check(x.shape)
    return x


def check_dtype(dtype: np.dtype[Any], *, name: str) -> None:
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise WrongDtype(f"{name} have dtype {dtype}; use float16, float32, float64 or an integer dtype")


def check_values(
    x: Array,
    *,
    clip: bool = False,
    name: str,
    dtype: type[np.floating[Any]] = np.float32,
    place: Place = _itself,
) -> float:
    """The largest value of `x` (2-d), once none is NaN, infinite, beyond `dtype` or (unless clipped) negative.

    `place` turns a position in `x` into the row and column to tell, where `x` is only part of what was given.
    """
    largest = 0.0
    for rows in _blocks(x):
        low, high = float(x[rows].min()), float(x[rows].max())  # NaN in a block makes both NaN
        if not (math.isfinite(low) and math.isfinite(high)):
            _refuse_non_finite(x, name, place)
        if low < 0 and not clip:
            _refuse_negative(x, name, place)
        if high > float(np.finfo(dtype).max):
            _refuse_too_large(x, name, place)
        largest = max(largest, high)
    return largest


def check_scale(largest: float, *, name: str, dtype: type[np.floating[Any]] = np.float32) -> None:
    """Some value must be large enough to compute with, unless all are zero."""
    tiny = float(np.finfo(dtype).tiny)
    if 0 < largest < tiny:
        raise OutOfRange(
            f"{name} reach {largest:.3g}, which {np.dtype(dtype)} cannot compute with; "
            f"rescale them so that the largest is at least {tiny:.2g}"
        )


def _refuse_non_finite(x: Array, name: str, place: Place) -> NoReturn:
    count, first = _count(x, lambda block: ~np.isfinite(block))
    raise NotFinite(
        f"{name} hold {count} NaN or infinite value{'s' * (count > 1)}, the first ({float(x[first])}) at "
        f"{_told(place(first))}; every value must be finite"
    )


def _refuse_negative(x: Array, name: str, place: Place) -> NoReturn:
    count, first = _count(x, lambda block: block < 0)
    raise NegativeValues(
        f"{name} hold {count} negative value{'s' * (count > 1)}, the first ({float(x[first]):.6g}) at "
        f"{_told(place(first))}; every value must be at least 0"
        + ("" if name.startswith(NEVER_CLIPPED) else CLIPPING)
    )


def _refuse_too_large(x: Array, name: str, place: Place) -> NoReturn:
    count, first = _count(x, lambda block: block > FLOAT32_MAX)
    raise OutOfRange(
        f"{name} hold {count} value{'s' * (count > 1)} that float32 cannot hold, the first ({float(x[first]):.3g}) "
        f"at {_told(place(first))}; rescale them so that the largest is at most {FLOAT32_MAX:.2g}"
    )


def _told(place: tuple[int, int]) -> str:
    return f"row {place[0]}, column {place[1]}"


def _count(x: Array, is_wrong: Callable[[Array], Array]) -> tuple[int, tuple[int, int]]:
    """How many values are wrong, and the position of the first."""
    count, first = 0, (0, 0)
    for rows in _blocks(x):
        wrong = is_wrong(x[rows])
        found = int(np.count_nonzero(wrong))
        if found and not count:
            row, column = divmod(int(wrong.argmax()), x.shape[1])
            first = (rows.start + row, column)
        count += found
    return count, first


def converted(x: Array, *, clip: bool = False, dtype: type[np.floating[Any]] = np.float32) -> Array:
    """`x`, whose values have been checked, C-contiguous and of `dtype`; itself where it already is."""
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


def is_number(x: object) -> bool:
    """Whether a parameter is a real number of some kind, numpy's among them; truth values are none."""
    return isinstance(x, Real) and not isinstance(x, bool)


def at_least_one(name: str, number: object) -> int:
    """A parameter that counts something; raises InvalidParameter where it is no such number."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
        raise InvalidParameter(f"{name} is {number!r}; it must be a whole number of at least 1")
    return int(number)
