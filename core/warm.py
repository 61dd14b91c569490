"""Compile the kernels, or load them from the disk cache, before anybody waits for them.

`python -m core.warm` fills the cache, for instance while a container is built.
"""

import torch

from core.dictionary import Dictionary
from core.nmf import NMF


def warm() -> None:
    """Run every compiled path once, with all threads, on a problem of a few milliseconds."""
    A = torch.rand(512, 64, generator=torch.Generator().manual_seed(0))
    model = NMF(64, seed=0)
    model.fit(A, max_iter=2)
    model.decode(model.encode(A))
    Dictionary(A[:128]).encode(A)  # more concepts than features: another kernel


if __name__ == "__main__":
    warm()
