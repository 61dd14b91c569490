"""The kernels for CUDA devices, in Triton; `core.kernels.cuda.interface` is what `core.kernels` calls of them."""
