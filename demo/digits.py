"""Real activations, made in seconds and without a download.

A small ReLU network is trained on scikit-learn's 8×8 handwritten digits; the activations of its hidden layer
are what dictserve is for. The demo, the tests and the benchmarks all use these.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits

HIDDEN_UNITS = 512
HELD_OUT_EVERY = 5  # every fifth image is held out


@cache
def digits_activations(*, epochs: int = 30, seed: int = 0) -> np.ndarray:
    """Hidden activations of a 64 → 512 → 10 ReLU network for all 1797 digits.

    Returns:
        A, float32 of shape (1797, 512), non-negative; read-only, since it is shared between callers.
    """
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy((images / 16.0).astype(np.float32))
    y = torch.from_numpy(labels.astype(np.int64))

    with torch.random.fork_rng():  # leave the caller's random state alone
        torch.manual_seed(seed)
        hidden = torch.nn.Sequential(torch.nn.Linear(64, HIDDEN_UNITS), torch.nn.ReLU())
        network = torch.nn.Sequential(hidden, torch.nn.Linear(HIDDEN_UNITS, 10))
        weights = tuple(network.parameters())
        adam = _Adam(weights, rate=2e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(128):
                loss = torch.nn.functional.cross_entropy(network(x[batch]), y[batch])
                adam.step(torch.autograd.grad(loss, weights))

    with torch.no_grad():
        activations = hidden(x).numpy()
    activations.flags.writeable = False
    return activations


class _Adam:
    """Kingma & Ba, https://arxiv.org/abs/1412.6980, as torch.optim has it; but that loads torch's compiler, which
    takes longer than all else here."""

    def __init__(self, weights: Sequence[torch.Tensor], rate: float) -> None:
        self._rate = rate
        self._weights = [(weight, torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        self._steps += 1
        rate, unbiased = self._rate / (1 - 0.9**self._steps), (1 - 0.999**self._steps) ** 0.5
        for (weight, mean, square), gradient in zip(self._weights, gradients, strict=True):
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            weight.addcdiv_(mean, (square.sqrt() / unbiased).add_(1e-8), value=-rate)


def split_digits() -> tuple[np.ndarray, np.ndarray]:
    """The activations as (rows to fit on, held-out rows)."""
    activations = digits_activations()
    held_out = np.arange(len(activations)) % HELD_OUT_EVERY == 0
    return activations[~held_out], activations[held_out]
