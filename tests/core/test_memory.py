"""What is held at its peak, each in a process of its own."""

import pytest

from tests.core.fresh import run_each

FIT = """
import numpy as np
from scipy import sparse
from core import NMF
from tests.memory import held_bytes

n, d, k, kind = 20000, 768, 256, "{kind}"
NMF(8, max_iter=2).fit(np.ones((300, 40), np.float32))  # loads what is loaded once
rng, before = np.random.default_rng(0), held_bytes("VmRSS")
if kind == "sparse":
    A = sparse.random_array((n, d), density=0.02, format="csr", dtype=np.float32, rng=0)
elif kind == "batches":
    A = (rng.random((500, d), np.float32) for _ in range(n // 500))
else:
    A = rng.random((n, d), np.float32)
NMF(k, seed=0, max_iter=2).fit(A)
print((held_bytes("VmHWM") - before) / (n * d * 4))
"""


GATHER = """
import numpy as np
from core import NMF
from tests.memory import held_bytes

NMF(2).sanitize_np_input(np.ones((500, 200), np.float32))
before = held_bytes("VmRSS")
NMF(2).sanitize_np_input(np.ones((500, 200), np.float32) for _ in range(400))
print((held_bytes("VmHWM") - before) / (400 * 500 * 200 * 4))
"""

MOST = {"array": 3, "batches": 3, "sparse": 1.5}


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    told = run_each(*(FIT.replace("{kind}", kind) for kind in MOST), GATHER)
    return dict(zip((*MOST, "gathered"), map(float, told), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOST)
def test_a_fit_peaks_at_three_times_dense_activations(peaks: dict[str, float], kind: str) -> None:
    """A itself, its codes and all else, for 20000×768 and k=256."""
    assert peaks[kind] < MOST[kind]


def test_gathered_batches_are_never_held_twice(peaks: dict[str, float]) -> None:
    assert peaks["gathered"] < 1.1
