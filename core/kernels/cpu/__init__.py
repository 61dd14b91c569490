"""The kernels for the CPU, compiled by numba; `core.kernels.cpu.interface` is what `core.kernels` calls of them."""
