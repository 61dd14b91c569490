import torch

from core import warm
from core.kernels import active_set, cpu, dense, dependent, pieces


def test_warm_compiles_every_kernel() -> None:
    warm.warm()
    warm.warm_encodes(torch.float64)
    assert cpu._descend.signatures
    for kernel in (active_set.solve_some, dense.solve_some, dependent.solve_some):
        dtypes = {signature[0].dtype.name for signature in kernel.signatures}
        assert dtypes >= {"float32", "float64"}
    assert len(pieces.solve_pieces.signatures) >= 2
