import torch

from core import warm
from core.kernels import active_set, cpu, dense


def test_warm_compiles_every_kernel() -> None:
    warm.warm()
    warm.warm_encodes(torch.float64)
    assert cpu._descend.signatures
    for kernel in (active_set.solve_rows, dense.solve_rows):
        dtypes = {signature[0].dtype.name for signature in kernel.signatures}
        assert dtypes >= {"float32", "float64"}
