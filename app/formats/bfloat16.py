"""bfloat16, which numpy has no name for: the upper half of a float32."""

import numpy as np


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 of the same values and shape as bfloat16 given as its bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
