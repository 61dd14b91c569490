"""torchnmf's NMF: multiplicative updates by automatic differentiation, from a random start. It has no encode."""

from typing import Any

import numpy as np
import torch
from torchnmf.nmf import NMF


def fit(A: np.ndarray, nb_concepts: int, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    model = NMF(A.shape, rank=nb_concepts)
    model.fit(torch.from_numpy(A), beta=2, **settings)
    # its data is A ≈ H·Wᵀ
    return model.H.detach().numpy(), model.W.detach().numpy().T
