"""A dictionary of concepts, prepared once and then used for any number of encodes and decodes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core import kernels
from core.errors import InvalidParameter, OutOfRange
from core.scaling import exponents_of, times_power_of_two
from core.threads import threads_for

# Close above what float32 gradients can tell from zero (2e-7 to 5e-7 at 512 features).
ENCODE_TOL = 1e-6
ENCODE_MAX_ITER = 300


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer of `Dictionary.encode`.

    Attributes:
        codes: Z, float32 (rows, nb_concepts), non-negative.
        kkt_residual: float32 (rows,): max_j |v_j| / (‖d_j‖·‖a‖) with g = zB − aDᵀ and v_j = g_j where z_j > 0,
            else min(g_j, 0). Zero exactly at the minimum, and free of scale; 0 for an all-zero row.
        converged: bool (rows,): whether the residual is at most the tolerance.
    """

    codes: torch.Tensor
    kkt_residual: torch.Tensor
    converged: torch.Tensor


class Dictionary:
    """This D, ready to solve.

    Holds D (nb_concepts, n_features) in float32, its gram B = D·Dᵀ (nb_concepts, nb_concepts) and the norms of
    the concepts. Nothing of it changes after construction: any thread may use it.

    Args:
        D: tensor or array (nb_concepts, n_features), non-negative and finite.
        device: any torch device; D is copied there.
    """

    def __init__(self, D: torch.Tensor | np.ndarray[Any, Any], *, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.D = _matrix(D, self.device).clone()
        self.nb_concepts, self.n_features = self.D.shape
        # concepts of extraordinary size are solved for in units of their own: z = solved / 2^exponent
        self._exponents = exponents_of(self.D.amax(dim=1))
        self._scaled_D = self.D if self._exponents is None else times_power_of_two(self.D, -self._exponents[:, None])
        self._B = self._scaled_D @ self._scaled_D.T
        self._inverse = kernels.inverse_diagonal(self._B)

    @property
    def nbytes(self) -> int:
        """Bytes that this object's tensors take."""
        tensors = {id(t): t for t in (self.D, self._scaled_D, self._B, self._inverse)}
        return sum(t.nbytes for t in tensors.values())

    def encode(
        self,
        A: torch.Tensor | np.ndarray[Any, Any],
        *,
        tol: float = ENCODE_TOL,
        max_iter: int = ENCODE_MAX_ITER,
    ) -> Encoded:
        """The codes that minimise ½‖a − zD‖² over z ≥ 0, for each row a of A by itself.

        Non-negative least squares from zero: the codes of a row depend neither on the rows beside it nor on
        earlier calls (on the CPU to the bit, elsewhere to float32 rounding). All-zero rows and all-zero concepts get
        zero codes.

        Args:
            A: (rows, n_features), non-negative and finite.
            tol: a row is done once its relative KKT residual is at most this.
            max_iter: sweeps over a row's coordinates after which it is given up; `converged` tells.

        Raises:
            InvalidParameter: `tol` is not positive or `max_iter` below one.
            OutOfRange: a code is too large for float32 (large activations over tiny concepts).
        """
        if not tol > 0:
            raise InvalidParameter(f"tol is {tol}; it must be positive")
        if max_iter < 1:
            raise InvalidParameter(f"max_iter is {max_iter}; it must be at least 1")
        A = _matrix(A, self.device)
        codes, residual = self._solve(A, tol, max_iter)
        return Encoded(codes, residual, residual <= tol)

    def decode(self, Z: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
        """Z·D, float32 (rows, n_features), for codes Z (rows, nb_concepts).

        Raises:
            OutOfRange: an activation is too large for float32.
        """
        Z = _matrix(Z, self.device)
        exponents = exponents_of(Z.amax(dim=1))
        with threads_for(float(Z.numel()) * self.n_features):
            if exponents is None:
                A = Z @ self.D
            else:
                A = times_power_of_two(times_power_of_two(Z, -exponents[:, None]) @ self.D, exponents[:, None])
        return _in_range(A, "activations")

    def _solve(self, A: torch.Tensor, tol: float, max_iter: int) -> tuple[torch.Tensor, torch.Tensor]:
        exponents = exponents_of(A.amax(dim=1))
        if exponents is not None:
            A = times_power_of_two(A, -exponents[:, None])
        norms = torch.linalg.vector_norm(A, dim=1)
        Z, residual = kernels.solve(
            A, self._scaled_D, self._B, self._inverse, tolerance=tol * norms, max_sweeps=max_iter
        )
        residual = torch.where(norms > 0, residual / norms, 0)
        if exponents is None and self._exponents is None:
            return Z, residual
        of_rows = 0 if exponents is None else exponents[:, None]
        of_concepts = 0 if self._exponents is None else self._exponents
        return _in_range(times_power_of_two(Z, torch.as_tensor(of_rows - of_concepts)), "codes"), residual


def _matrix(x: torch.Tensor | np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    return torch.as_tensor(x).detach().to(device, torch.float32).contiguous()


def _in_range(x: torch.Tensor, name: str) -> torch.Tensor:
    if not bool(torch.isfinite(x.amax())):
        raise OutOfRange(f"the {name} would exceed {torch.finfo(x.dtype).max:.3g}, the largest float32 number")
    return x
