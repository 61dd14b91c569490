"""A body as the formats are given it: in memory, or mapped from the file that it was received into; and its array."""

import mmap
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from app.errors import MalformedBody

Buffer = bytearray | mmap.mmap
Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
MAX_DIMENSIONS = 8  # of a shape that is told; more are refused before they are multiplied


def shaped(flat: np.ndarray, shape: Sequence[int], order: Literal["C", "F"] = "C") -> np.ndarray:
    """A view of as many numbers as the shape has.

    Raises:
        MalformedBody: numpy has no array of this shape. Without any numbers it may tell of any sizes.
    """
    try:
        return flat.reshape(shape, order=order)
    except (ValueError, OverflowError) as error:
        raise MalformedBody(f"there are no arrays of shape {str(tuple(shape))[:60]}: {error}") from None
