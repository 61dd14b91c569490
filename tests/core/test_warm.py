from core import warm
from core.kernels import active_set, cpu, dense


def test_warm_compiles_every_kernel() -> None:
    warm.warm()
    for kernel in (cpu._descend, active_set.solve_rows, dense.solve_rows):
        assert kernel.signatures
