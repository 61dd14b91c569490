"""Numbers that the encodes of the CPU and those of CUDA devices must agree on; they load neither numba nor Triton."""

# No more concepts than this are one small problem for every row, which holds all of them and shares their gram: the
# codes are often dense.
FEW_CONCEPTS = 256
# Concepts that join a working set in a round; where more violate and the support is larger, as many as it holds.
ADDED = 64
# A round ends once its small problem is this share of the whole problem's residual from its minimum,
ROUND_SHARE = 0.03
# and the last one aims below what is asked for, since the gradient of all concepts is checked after it.
LAST_SHARE = 0.5
