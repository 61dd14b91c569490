"""Two dictionaries, concept by concept: which of one is which of the other. numpy and SciPy, without torch."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

STABLE_COSINE = 0.9


@dataclass(frozen=True, slots=True)
class Matching:
    """The pairs of concepts, each in one pair at most, whose cosines together are largest.

    Attributes:
        a, b: (min(k_a, k_b),) int64, the concepts of a pair, from the largest cosine on.
        cosines: of the pairs, float32.
        stability: share of the larger dictionary's concepts in a pair with a cosine above 0.9.
    """

    a: np.ndarray
    b: np.ndarray
    cosines: np.ndarray
    stability: float


def match(D_a: np.ndarray, D_b: np.ndarray) -> Matching:
    """Match the concepts of two dictionaries: a linear assignment by their cosines (Kuhn, "The Hungarian method for
    the assignment problem", 1955), in time of up to k³ and 20·k_a·k_b bytes.

    Args:
        D_a, D_b: (k_a, d) and (k_b, d), non-negative. A concept of zeros has a cosine of 0 with all.
    """
    cosines = np.clip(_unit(D_a) @ _unit(D_b).T, 0, 1)
    a, b = linear_sum_assignment(cosines, maximize=True)
    matched = cosines[a, b]
    order = np.argsort(-matched, kind="stable")
    stable = int(np.count_nonzero(matched > STABLE_COSINE))
    return Matching(a[order], b[order], matched[order], stable / max(len(D_a), len(D_b)))


def _unit(D: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(D.astype(np.float64), axis=1, keepdims=True)
    unit: np.ndarray = (D / np.where(norms > 0, norms, 1)).astype(np.float32)
    return unit
