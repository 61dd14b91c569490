"""What is compared, computed in float64 with numpy alone."""

import numpy as np

CHUNK = 4096
DEAD_SHARE = 1e-12


def loss_of(A: np.ndarray, Z: np.ndarray, D: np.ndarray) -> float:
    """½‖A − ZD‖²_F, directly."""
    D = D.astype(np.float64)
    return sum(
        0.5 * float(((A[i : i + CHUNK] - Z[i : i + CHUNK].astype(np.float64) @ D) ** 2).sum())
        for i in range(0, len(A), CHUNK)
    )


def relative_error(loss: float, A: np.ndarray) -> float:
    """‖A − ZD‖ / ‖A‖ from the loss."""
    return float(np.sqrt(2 * loss) / np.linalg.norm(A.astype(np.float64)))


def dead_concepts(Z: np.ndarray, D: np.ndarray) -> int:
    """Concepts that no row uses or that are zero: ‖z_j‖²·‖d_j‖² is (to rounding) nothing beside the largest."""
    energy = (Z.astype(np.float64) ** 2).sum(axis=0) * (D.astype(np.float64) ** 2).sum(axis=1)
    return int((energy <= DEAD_SHARE * energy.max()).sum())


def row_losses(A: np.ndarray, Z: np.ndarray, D: np.ndarray) -> np.ndarray:
    """½‖a − zD‖² of each row."""
    errors = A.astype(np.float64) - Z.astype(np.float64) @ D.astype(np.float64)
    return 0.5 * np.square(errors).sum(axis=1)  # type: ignore[no-any-return]


def excess(losses: np.ndarray, exact: np.ndarray, A: np.ndarray) -> np.ndarray:
    """(loss − exact) / max(exact, 1e-3·‖a‖²) of each row; the floor is for k ≫ d, where exact can be zero."""
    energy = np.square(A.astype(np.float64)).sum(axis=1)
    return (losses - exact) / np.maximum(exact, 1e-3 * energy)  # type: ignore[no-any-return]
