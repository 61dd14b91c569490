"""Compile the kernels, or load them from the disk cache, before anybody waits for them.

`python -m core.warm` fills the cache, for instance while a container is built.
"""

import torch

from core.dictionary import Dictionary
from core.nmf import NMF


def warm() -> None:
    """Run every compiled path of a fit and of encodes in float32 once, on problems of a few milliseconds."""
    NMF(64, seed=0).fit(_activations(), max_iter=2)
    warm_encodes(torch.float32)


def warm_encodes(dtype: torch.dtype) -> None:
    """Run every compiled path of encodes in this dtype once."""
    A = _activations()
    at = torch.linspace(0, 1, A.shape[1])
    alike = torch.exp(-((at[:, None] - at) ** 2) / 0.005)  # bumps that overlap: concepts that nearly depend
    for D, rows in ((A[:64], A), (A[:128], A), (alike, A[:4])):  # three kernels, of which the last takes its time
        Dictionary(D, dtype=dtype).encode(rows)


def _activations() -> torch.Tensor:
    return torch.rand(512, 64, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    warm()
    warm_encodes(torch.float64)
