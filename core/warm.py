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


def warm_on(device: torch.device) -> None:
    """What a device other than the CPU launches for fits and encodes of usual widths, one row and many.

    There, too, it is compiled once and then found on the disk. What is unusual (concepts that are no multiple of
    sixteen, or are very many) is compiled when it is first asked for.
    """
    if device.type == "cpu":
        return
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(512, 256, generator=generator)
    for nb_concepts in (64, 1024):  # a block that is swept at once, and several
        NMF(nb_concepts, device=str(device), seed=0, init="random").fit(A, max_iter=2)
    # concepts of a few features each, of which rows want so many that working sets outgrow registers
    for nb_concepts, density in ((64, 1), (256, 1), (1024, 0.05), (4096, 1)):
        D = torch.rand(nb_concepts, 256, generator=generator)
        dictionary = Dictionary(D * (torch.rand(D.shape, generator=generator) < density), device=device)
        for rows in (A, A[:1], A[:1]):  # what is recorded, the second time, has working sets of all usual sizes
            dictionary.encode(rows)


def _activations() -> torch.Tensor:
    return torch.rand(512, 64, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    warm()
    warm_encodes(torch.float64)
