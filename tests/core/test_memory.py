"""What is held at its peak, in a process of its own."""

import pytest

from tests.core.test_package import run_fresh

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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("array", 3), ("batches", 3), ("sparse", 1.5)])
def test_a_fit_peaks_at_three_times_dense_activations(kind: str, most: float) -> None:
    """A itself, its codes and all else, for 20000×768 and k=256."""
    assert float(run_fresh(FIT.format(kind=kind))) < most


GATHER = """
import numpy as np
from core import NMF
from tests.memory import held_bytes

NMF(2).sanitize_np_input(np.ones((500, 200), np.float32))
before = held_bytes("VmRSS")
NMF(2).sanitize_np_input(np.ones((500, 200), np.float32) for _ in range(400))
print((held_bytes("VmHWM") - before) / (400 * 500 * 200 * 4))
"""


def test_gathered_batches_are_never_held_twice() -> None:
    assert float(run_fresh(GATHER)) < 1.1
