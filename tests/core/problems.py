"""Problems that the tests of this folder share.

What takes a second to load is loaded where it is needed: processes of tests load this too.
"""

import numpy as np
import torch

from core.chunks import Chunks
from core.progress import run

Array = np.ndarray


def planted(
    rows: int, n_features: int, nb_concepts: int, *, noise: float = 0.05, density: float = 0.2, seed: int = 0
) -> tuple[Array, Array, Array]:
    """A = Z·D + |noise| with sparse non-negative Z and D: (A, Z, D), float32."""
    rng = np.random.default_rng(seed)
    Z = rng.exponential(size=(rows, nb_concepts)) * (rng.random((rows, nb_concepts)) < density)
    D = rng.exponential(size=(nb_concepts, n_features)) * (rng.random((nb_concepts, n_features)) < 0.3)
    A = Z @ D + noise * np.abs(rng.standard_normal((rows, n_features)))
    return A.astype(np.float32), Z.astype(np.float32), D.astype(np.float32)


def nearly_dependent(kind: str, nb_concepts: int, n_features: int, *, rows: int = 40) -> tuple[Array, Array]:
    """(A, D), float32: concepts that it hardly tells apart: "smooth", "of low rank", "nearly one" or "copies"."""
    k, d, random = nb_concepts, n_features, np.random.default_rng(nb_concepts)
    at = np.linspace(0, 1, k)[:, None] - np.linspace(0, 1, d)
    D = {
        "smooth": lambda: np.exp(-(at**2) / (2 * 0.05**2)),
        "of low rank": lambda: random.random((k, k // 3)) @ random.random((k // 3, d)),
        "nearly one": lambda: 0.99 * random.exponential(size=(1, d)) + 0.01 * random.exponential(size=(k, d)),
        "copies": lambda: np.repeat(random.random((k // 2, d)), 2, axis=0) * (1 + 1e-3 * random.random((k, d))),
    }[kind]()
    A = random.exponential(size=(rows, k)) @ D + 0.01 * random.random((rows, d))
    return A.astype(np.float32), D.astype(np.float32)


def digits_split() -> tuple[Array, Array]:
    """(rows to fit on, held-out rows) of the digits activations."""
    from demo import digits  # which loads scikit-learn

    return digits.split_digits()


def relative_error(A: Array, Z: torch.Tensor, D: torch.Tensor) -> float:
    """‖A − ZD‖ / ‖A‖ in float64, directly."""
    A = A.astype(np.float64)
    return float(np.linalg.norm(A - Z.double().numpy() @ D.double().numpy()) / np.linalg.norm(A))


def excess(A: Array, Z: torch.Tensor, D: Array) -> Array:
    """Of each row, the loss above scipy's exact minimum, over max(minimum, 1e-3·‖a‖²)."""
    from scipy.optimize import nnls

    A, D, codes = A.astype(np.float64), D.astype(np.float64), Z.double().numpy()
    exact = np.array([nnls(D.T, a, maxiter=50 * len(D))[0] for a in A])
    loss = 0.5 * ((A - codes @ D) ** 2).sum(axis=1)
    minimum = 0.5 * ((A - exact @ D) ** 2).sum(axis=1)
    return (loss - minimum) / np.maximum(minimum, 1e-3 * (A**2).sum(axis=1))


def above_least(A: Array, Z: torch.Tensor, D: Array) -> Array:
    """Of each row, ‖a − zD‖² above scipy's least, over ‖a‖²: what is promised of concepts that nearly depend."""
    from scipy.optimize import nnls

    A, D, codes = A.astype(np.float64), D.astype(np.float64), Z.double().numpy()
    least = np.array([nnls(D.T, a, maxiter=50 * len(D))[1] ** 2 for a in A])
    return (((A - codes @ D) ** 2).sum(axis=1) - least) / (A**2).sum(axis=1)


def kkt_residual(A: Array, Z: Array, D: Array) -> Array:
    """max_j |v_j| / (‖d_j‖·‖a‖) of each row, in float64."""
    A, Z, D = (x.astype(np.float64) for x in (A, Z, D))
    G = (Z @ D - A) @ D.T
    V = np.where(Z > 0, G, np.minimum(G, 0))
    norms = np.linalg.norm(D, axis=1)
    relative = np.abs(V[:, norms > 0]) / norms[norms > 0]
    return relative.max(axis=1, initial=0) / np.linalg.norm(A, axis=1)


def started(n: int = 150, d: int = 40, k: int = 8, size: int = 40) -> tuple[Chunks, torch.Tensor, torch.Tensor]:
    """Chunks of `size` rows of a planted A, and random Z (n, k) and D (k, d) of its size."""
    A = planted(n, d, k)[0]
    chunks = Chunks(torch.from_numpy(A), k)
    chunks.size = size
    run(chunks.survey())
    generator = torch.Generator().manual_seed(0)
    scale = (A.mean() / k) ** 0.5
    return chunks, torch.rand(n, k, generator=generator) * scale, torch.rand(k, d, generator=generator) * scale
