"""A fit between two iterations as a plain mapping, from which another fit goes on as if nothing had come between.

All that an iteration depends on is in it, to the bit: besides A and the parameters that is Z, D, the point beyond D
that the next iteration starts from, the losses (by which the fit stops and the extrapolation grows or shrinks) and a
few numbers. What is random, the start, is over before the first iteration: no generator has to be kept.

Z is kept, though its n·k numbers may be more than A's. No pass over A could bring it back: three of the solvers
improve Z from where it was (hals by a few sweeps, pgd by a few steps, mu by factors), so that Z holds what all the
iterations before have done, and the best Z for this D is another one; a fit that went on from there would end at
another dictionary. Only anls could do without. In exchange a fit goes on after a read of 4·n·k bytes, where solving
for Z costs several iterations.
"""

import math
from collections.abc import Container, Iterable, Mapping
from typing import TypeAlias

import torch

from core.errors import InvalidParameter
from core.progress import FitProgress
from core.solvers.alternating import Past

# Z (n, k), D (k, n_features) and, where it is not D, `ahead`, of the same shape, float32; `losses` after each
# iteration, float64; the rest are numbers. Losses and `energy`, ‖A‖²_F, are in units of A.
State: TypeAlias = dict[str, torch.Tensor | float]

TENSORS, NUMBERS = ("Z", "D", "losses"), ("iteration", "kkt_residual", "converged", "energy")
EXTRAPOLATION = "extrapolation_"  # and what the solver calls its number
UNSOUND = "the state holds negative, NaN or infinite values; pass one as `state()` of a fit's steps gave it"
SAME_ENERGY = 1e-6  # relative, of A read again: other threads may sum it up in another order


def taken(Z: torch.Tensor, past: Past, energy: float, exponent: int) -> State | None:
    """The state after an iteration; None in the midst of one. Tensors are the fit's own where they can be.

    Args:
        past, energy: of A as it is read, which is A·2^−exponent.
    """
    if past.reached is None or past.ahead is None:
        return None
    losses = torch.tensor(past.losses, dtype=torch.float64) * 4.0**exponent
    state: State = {"Z": Z, "D": past.reached.T, "losses": losses}
    if past.ahead is not past.reached:
        state["ahead"] = past.ahead.T
    return state | {
        "iteration": len(past.losses),
        "kkt_residual": past.kkt_residual or 0.0,
        "converged": past.converged,
        "energy": energy * 4.0**exponent,
        **{EXTRAPOLATION + name: number for name, number in past.extrapolation.items()},
    }


def check(state: State, max_iter: int) -> None:
    """Raises InvalidParameter where no fit can go on from the state, whatever its A."""
    check_entries(state, TENSORS, NUMBERS)
    iteration = int(state["iteration"])
    check_tensors(state, {"losses": (iteration,)}, float64={"losses"})
    if not 0 < iteration < max_iter:
        raise InvalidParameter(f"the state is that after iteration {iteration}; max_iter is {max_iter}")


def check_shape(state: State, shape: tuple[int, ...], nb_concepts: int) -> None:
    """Raises InvalidParameter where no fit of an A of this shape (n, d) can go on from the state, else checked."""
    n, d = shape
    shapes = {"Z": (n, nb_concepts), "D": (nb_concepts, d), "ahead": (nb_concepts, d)}
    check_tensors(state, {name: shapes[name] for name in shapes if name in state}, float64=())


def check_entries(state: State, tensors: Iterable[str], numbers: Iterable[str]) -> None:
    """All that a state must have, and that its numbers are such: of the tensors, `check_tensors` tells more."""
    advice = "pass one as `state()` of a fit's steps gave it"
    if not isinstance(state, Mapping):
        raise InvalidParameter(f"state is of {type(state).__name__}; {advice}")
    for name in (*tensors, *numbers):
        if name not in state:
            raise InvalidParameter(f"the state lacks {name!r}; {advice}")
    for name in (*numbers, *(name for name in state if name.startswith(EXTRAPOLATION))):
        try:
            is_finite = math.isfinite(state[name])
        except (TypeError, ValueError):  # no number, or a tensor of several
            is_finite = False
        if not is_finite:
            raise InvalidParameter(f"{name} of the state is no finite number; {advice}")


def check_tensors(state: State, shapes: Mapping[str, tuple[int, ...]], *, float64: Container[str]) -> None:
    """Each tensor of its shape; those not named are float32."""
    for name, expected in shapes.items():
        tensor, dtype = state[name], torch.float64 if name in float64 else torch.float32
        if not isinstance(tensor, torch.Tensor) or (tuple(tensor.shape), tensor.dtype) != (expected, dtype):
            told = (
                f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else "no tensor"
            )
            raise InvalidParameter(f"{name} of the state is {told}; of this fit it is {dtype} of shape {expected}")


def is_sound(x: torch.Tensor) -> bool:
    """Whether all values are finite and non-negative."""
    return bool(((x >= 0) & (x < math.inf)).all())


def progress(state: State, max_iter: int) -> FitProgress:
    """What the fit told last."""
    return _past(state, 1.0, None).progress(max_iter, float(state["energy"]))


def losses_of(state: State) -> list[float]:
    losses: list[float] = torch.as_tensor(state["losses"]).tolist()
    return losses


def _past(state: State, unit: float, ahead: torch.Tensor | None) -> Past:
    """The past in a state, its losses in this unit."""
    return Past(
        ahead=ahead,
        losses=[loss * unit for loss in losses_of(state)],
        kkt_residual=float(state["kkt_residual"]),
        converged=bool(state["converged"]),
        extrapolation={
            name.removeprefix(EXTRAPOLATION): float(number)
            for name, number in state.items()
            if name.startswith(EXTRAPOLATION)
        },
    )


def restored(
    state: State, energy: float, exponent: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, Past]:
    """Z, D and the past of a state that the checks have passed. Z is the state's own where it is on the device.

    Raises:
        InvalidParameter: the state is that of other activations.
    """
    if abs(energy * 4.0**exponent - float(state["energy"])) > SAME_ENERGY * float(state["energy"]):
        raise InvalidParameter("the state is that of a fit of other activations; pass those, or no state")
    tensors = {name: x.to(device) for name, x in state.items() if isinstance(x, torch.Tensor) and name != "losses"}
    ahead = tensors["ahead"].T.contiguous() if "ahead" in tensors else None
    past = _past(state, 4.0**-exponent, ahead)
    return tensors["Z"].contiguous(), tensors["D"].contiguous(), past
