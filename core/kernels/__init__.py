"""Non-negative least squares for all rows at once, on whatever device they lie.

For each row a of A: minimise ½‖a − zD‖² over z ≥ 0, given the gram B = D·Dᵀ and the cross products c = a·Dᵀ.
The gradient is g = zB − c. `inverse` holds 1/B_jj, and 0 for a concept of norm zero, which is never used.

All tensors are contiguous, on one device and of one float dtype. Which implementation runs is settled here and
nowhere else.
"""

from functools import cache
from importlib.util import find_spec
from math import prod
from types import ModuleType

import torch

from core.kernels import precision, torch_descent
from core.kernels.lazy_cpu import cpu_kernels
from core.kernels.prepared import EncodeCache as EncodeCache
from core.kernels.prepared import Prepared as Prepared
from core.kernels.prepared import inverse_of
from core.kernels.prepared import prepare as prepare
from core.kernels.prepared import prepare_with as prepare_with
from core.kernels.prepared import squared_violation as squared_violation
from core.threads import threads_for_product

# The priority of CUDA streams for work that somebody waits for: what is there of others' is done after it.
URGENT = -1


def descend(
    Z: torch.Tensor,
    G: torch.Tensor,
    B: torch.Tensor,
    inverse: torch.Tensor,
    *,
    max_sweeps: int,
    progress_ratio: float,
) -> torch.Tensor:
    """Coordinate descent from the given codes Z (rows, k), in place; their gradient G = Z·B − C is used up.

    Each row is swept until a sweep's progress (the sum of δ²·B_jj) falls to `progress_ratio` of its first's, or
    `max_sweeps` times.

    Returns:
        Σ_j v_j²/B_jj of each row before the first sweep, with v_j = g_j where z_j > 0 and min(g_j, 0) elsewhere.
    """
    implementation = cpu_kernels() if Z.device.type == "cpu" else _cuda_kernels_for(Z) or torch_descent
    return implementation.descend(Z, G, B, inverse, max_sweeps, progress_ratio)  # type: ignore[no-any-return]


def iterate(
    A: torch.Tensor,
    Z: torch.Tensor,
    concepts: torch.Tensor,
    *,
    energy: float,
    vanished: float,
    code_sweeps: int,
    concept_sweeps: int,
    progress_ratio: float,
) -> tuple[float, float, float, torch.Tensor]:
    """Codes Z (rows, k), then concepts (d, k), of A (rows, d), each improved once by `descend`, in place.

    For data of small or middling size: float32, on the CPU.

    Args:
        energy: ‖A‖².
        vanished: a concept whose squared norm is below this, or that of whose codes is, is taken as zero.
        code_sweeps, concept_sweeps: `max_sweeps` of each.

    Returns:
        The loss ½‖A − ZD‖² of them, which may be off by 5e-7·‖A‖²; Σ v_j²/B_jj of all codes and that of all
        concepts, each before the update; and which concepts are zero or unused, bool (k,).
    """
    return cpu_kernels().iterate(  # type: ignore[no-any-return]
        A, Z, concepts, energy, vanished, code_sweeps, concept_sweeps, progress_ratio
    )


def solve(
    A: torch.Tensor,
    prepared: Prepared,
    *,
    tol: float,
    max_sweeps: int,
    kept: EncodeCache | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of A (rows, d) on a prepared D (k, d) from zero: (Z (rows, k), relative residual of each row).

    A row is done when its residual max_j |v_j|/(‖d_j‖·‖a‖) (see `core.kernels.reference.kkt_residual`) is at most
    `tol`, or after `max_sweeps`; it does not depend on the other rows. That of an all-zero row is 0. `kept`: of this
    D, where there will be later calls.

    `prepared` may lie where `encoded_on` says, rather than where A does; the answer lies with A.
    """
    if A.device.type == "cpu":
        return cpu_kernels().solve(A, prepared, tol, max_sweeps, kept)  # type: ignore[no-any-return]
    if (encoder := _cuda_encoder_for(prepared.D)) is not None:
        return encoder.solve(A, prepared, tol, max_sweeps, kept)  # type: ignore[no-any-return]
    return cpu_kernels().solve_for_others(A, prepared, tol, max_sweeps)  # type: ignore[no-any-return]


def encoded_on(D: torch.Tensor) -> torch.device:
    """Where rows on this device are encoded on D: on the CPU, unless the device has kernels for it."""
    return D.device if _cuda_encoder_for(D) is not None else torch.device("cpu")


def sums(x: torch.Tensor) -> tuple[float, float]:
    """Σ x and Σ x² of all numbers of x, contiguous, in float64."""
    if x.device.type == "cpu":
        return cpu_kernels().sums(x)  # type: ignore[no-any-return]
    return float(x.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def product(X: torch.Tensor, Y: torch.Tensor, *, less: torch.Tensor | None = None) -> torch.Tensor:
    """X·Y, or X·Y − less, to about float32's rounding: on CUDA devices by tensor cores.

    X may be sparse rows; both may be stacks of matrices where there is nothing less.
    """
    if X.device.type == "cuda" and isinstance(X, torch.Tensor):
        return precision.product(X, Y, precision.Precision.SPLIT, less=less)
    with threads_for_product(prod(X.shape) * Y.shape[-1]):
        return X @ Y if less is None else torch.addmm(less, X, Y, beta=-1)


def inverse_diagonal(B: torch.Tensor) -> torch.Tensor:
    """1/B_jj, and 0 where B_jj is 0."""
    return inverse_of(B.diagonal())


def _cuda_kernels_for(x: torch.Tensor) -> ModuleType | None:
    """The kernels for float32 on CUDA devices, where there is Triton: CUDA builds of torch bring it along."""
    if x.device.type != "cuda" or x.dtype != torch.float32 or not _has_triton():
        return None
    from core.kernels.cuda import interface

    return interface


def _cuda_encoder_for(D: torch.Tensor) -> ModuleType | None:
    cuda_kernels = _cuda_kernels_for(D)
    return cuda_kernels if cuda_kernels is not None and len(D) <= cuda_kernels.MOST_CONCEPTS else None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
