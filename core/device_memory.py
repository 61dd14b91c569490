"""Memory of a device, planned before work begins: how many bytes an encode or a fit needs, and how many there are.

Counted in float32, from what `core.kernels.cuda` and `core.solvers` hold at their peaks; other devices than CUDA's
are not asked, since their memory is the machine's.
"""

import torch

from core.chunks import chunk_size
from core.errors import DeviceTooSmall

NUMBER = 4  # bytes
SHARE = 0.9  # of what is free: the rest is for what the allocator cannot use
# Float32 numbers that a row of an encode takes at its peak, in multiples of nb_concepts (codes and gradient, and with
# few concepts those of the chosen ones, before and after finished rows leave) and of n_features (activations as given
# and converted, residuals of all rows and of some, and the halves that split products make of these).
ENCODE_CODES, ENCODE_FEATURES = 6, 7
# Of a row of a fit's chunk, in the same units: what the solver that takes most (PGD) has in hand, others about half
# of it; the chunk and its halves.
FIT_CODES, FIT_FEATURES = 10, 4
# Of the statistics, in numbers: a gram in float64 and the one before, in float32 and their halves; cross products.
GRAMS, CROSSES = 8, 6
WORKING_SETS = 3 << 30  # bytes for the grams of working sets, their concepts and what gathers them
# An encode whose rows take no more than this is not planned: to ask what is free takes as long as to encode a row.
SMALL_ENCODE = 1 << 24


def encode_bytes(rows: int, nb_concepts: int, n_features: int) -> int:
    """What an encode of so many rows takes at its peak beside the prepared dictionary."""
    return WORKING_SETS + rows * _encode_row(nb_concepts, n_features)


def is_small_encode(rows: int, nb_concepts: int, n_features: int) -> bool:
    return rows * _encode_row(nb_concepts, n_features) <= SMALL_ENCODE


def rows_of_encode(nb_concepts: int, n_features: int, budget: int) -> int:
    """Rows to encode at a time, so that they take at most `budget` bytes; at least one."""
    return max(1, (budget - WORKING_SETS) // _encode_row(nb_concepts, n_features))


def fit_bytes(
    rows: int, n_features: int, nb_concepts: int, device: torch.device, *, held: int = 0, solver: str = "hals"
) -> int:
    """What a fit takes at its peak, with Z and D, less the bytes of a float32 A that are `held` already."""
    n, d, k = rows, n_features, nb_concepts
    chunk = min(max(n, d), chunk_size(d, k, device))
    statistics = NUMBER * k * (GRAMS * k + CROSSES * d)
    in_hand = NUMBER * chunk * (FIT_CODES * k + FIT_FEATURES * d)
    of_encodes = WORKING_SETS if solver == "anls" else 0
    return NUMBER * (n * d + n * k + k * d) - held + statistics + in_hand + of_encodes


def free_bytes(device: torch.device) -> int | None:
    """What can be allocated on a CUDA device, in part from what torch keeps; None for others."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(SHARE * (free + kept))


def check_fit(
    rows: int, n_features: int, nb_concepts: int, device: torch.device, *, held: int = 0, solver: str = "hals"
) -> None:
    """Raises DeviceTooSmall where a fit of this shape does not fit in the device's free memory."""
    needed = fit_bytes(rows, n_features, nb_concepts, device, held=held, solver=solver)
    free = free_bytes(device)
    if free is not None and needed > free:
        raise DeviceTooSmall(
            f"a fit of {rows}×{n_features} with {nb_concepts} concepts needs {needed} bytes on {device}, "
            f"where {free} are free; pass fewer rows or concepts"
        )


def _encode_row(nb_concepts: int, n_features: int) -> int:
    return NUMBER * (ENCODE_CODES * nb_concepts + ENCODE_FEATURES * n_features)
