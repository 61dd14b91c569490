from core import warm
from core.kernels import cpu


def test_warm_compiles_every_kernel() -> None:
    warm.warm()
    for kernel in (cpu._descend, cpu._solve):
        assert kernel.signatures
