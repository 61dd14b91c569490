"""A dictionary of concepts, prepared once and then used for any number of encodes and decodes."""

import math
import sys
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from core import kernels
from core.checks import (
    activations_form,
    at_least_one,
    check_dtype,
    check_values,
    codes_form,
    concepts_form,
    is_number,
)
from core.chunks import slices
from core.device_memory import free_bytes, is_small_encode, rows_of_encode
from core.errors import InvalidParameter, OutOfRange, WrongDtype
from core.inputs import check_kind, tensor
from core.kernels.precision import Precision, own_precision, product
from core.scaling import exponents_of, exponents_with, times_power_of_two
from core.sparse import is_sparse
from core.threads import threads_for_product

# A gradient in float32 can be told from zero to about 1e-7, one in float64 to about 1e-15.
ENCODE_TOL = 1e-6
ENCODE_TOL_FLOAT64 = 1e-12
ENCODE_MAX_ITER = 300

# Reading a pair of concepts from the gram is faster than computing it, but for more concepts than this (64 MiB in
# float32) the gram is not held: at 16 384 it would take 1 GiB and seconds of preparation.
LARGEST_GRAM = 4096


# On a GPU it is made in a fraction of a second and spares every working set products of its own; 1 GiB.
LARGEST_GRAM_ON_GPU = 16384


def largest_gram(device: torch.device) -> int:
    """Concepts up to which a dictionary whose rows are encoded on this device holds its gram."""
    return LARGEST_GRAM_ON_GPU if device.type == "cuda" else LARGEST_GRAM


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer of `Dictionary.encode`.

    Attributes:
        codes: Z (rows, nb_concepts) in the dictionary's dtype, non-negative.
        kkt_residual: of the same dtype (rows,): max_j |v_j| / (‖d_j‖·‖a‖) with g = zB − aDᵀ and v_j = g_j where
            z_j > 0, else min(g_j, 0). Zero exactly at the minimum, and free of scale; 0 for an all-zero row.
        converged: bool (rows,): whether the residual is at most the tolerance.
    """

    codes: torch.Tensor
    kkt_residual: torch.Tensor
    converged: torch.Tensor


class Dictionary:
    """This D, ready to solve.

    Holds D (nb_concepts, n_features), on the CPU twice (the second filled up to the next 16 or 48 concepts); the
    squared norms of the concepts; and, for at most 4096 concepts (on a GPU 16384), the gram B = D·Dᵀ (nb_concepts,
    nb_concepts); nothing of the size of B is needed beyond. In bytes: 4·(2·k·d + k² + k) in float32 (B of 4096:
    64 MiB), 4·(2·k·d + k) without B, twice that in float64; and 4·k·d more where concepts are of extraordinary size.
    On a GPU 8·k·d more, of the machine's memory, once a row had to be ended by the CPU; where all are encoded by it
    (in float64, or on more than 32768 concepts), what that takes there, and D on the GPU. Any thread may use it.

    Args:
        D: tensor or array (nb_concepts, n_features), non-negative and finite.
        device: any torch device; D is copied there.
        dtype: torch.float32 or torch.float64: what is computed in and answered in.

    Attributes:
        D: as it was given, in `dtype` and on `device`.
        nb_concepts, n_features: its shape.

    Raises:
        InvalidParameter: another dtype.
        WrongShape: D has not two dimensions, or is empty.
        WrongDtype: D is of anything but real numbers.
        NotFinite, NegativeValues, OutOfRange: a value of D is.
    """

    def __init__(
        self,
        D: torch.Tensor | np.ndarray[Any, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise InvalidParameter(f"dtype is {dtype}; it must be torch.float32 or torch.float64")
        self.device = torch.device(device)
        self.dtype = dtype
        given = _tensor(D, "concepts")
        self.D = self._matrix(given).clone()
        concepts_form().check(self.D.shape)
        smallest, largest = (float(value) for value in torch.aminmax(self.D))  # NaN, where one is
        if not 0 <= smallest <= largest < math.inf:
            check_values(given.cpu().double().numpy(), name="concepts", dtype=np.float64)
            _in_range(self.D, "concepts", of=given, given="values")
        self.nb_concepts, self.n_features = self.D.shape
        self._form = activations_form(self.n_features)
        # concepts of extraordinary size are solved for in units of their own: z = solved / 2^exponent
        self._exponents = exponents_of(self.D.amax(dim=1))
        self._scaled = self.D if self._exponents is None else times_power_of_two(self.D, -self._exponents[:, None])
        there = kernels.encoded_on(self.D)
        hold_gram = self.nb_concepts <= largest_gram(there)
        with own_precision():
            self._prepared = kernels.prepare(self._scaled.to(there), hold_gram=hold_gram)
        self._kept = kernels.EncodeCache()

    @property
    def nbytes(self) -> int:
        """Bytes that this object's tensors take, on its device and on the CPU: more, once a row was ended there."""
        tensors = (self.D, self._scaled, *self._prepared, *(self._kept.on_cpu or ()))
        return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())

    def encode(
        self,
        A: torch.Tensor | np.ndarray[Any, Any],
        *,
        tol: float | None = None,
        max_iter: int = ENCODE_MAX_ITER,
    ) -> Encoded:
        """The codes that minimise ½‖a − zD‖² over z ≥ 0, for each row a of A by itself.

        Non-negative least squares from zero, by working sets of concepts and exact solves on supports (Lawson &
        Hanson 1974; Kim & Park 2011): the codes of a row depend neither on the rows beside it nor on earlier calls
        (on the CPU to the bit, elsewhere to float32 rounding). All-zero rows and all-zero concepts get zero codes.

        Args:
            A: (rows, n_features), non-negative and finite, which is not checked (`NMF.encode` does): a row with NaN
                or infinity gets zero codes, a residual of NaN, and is not converged.
            tol: a row is done once its relative KKT residual is at most this; by default 1e-6 in float32 and 1e-12
                in float64. Its loss then is within 1e-6 of the exact minimum (relative to the larger of that
                and ‖a‖²/1000), unless concepts are dependent or nearly so; `converged` speaks of the residual alone.
                Of concepts of low rank, float64 may come no further than to some 1e-8, whatever `max_iter`.
            max_iter: sweeps over a row's coordinates after which it is given up; `converged` tells. On the CPU
                each of the methods that a row may go through counts its own.

        Raises:
            InvalidParameter: `tol` is not positive or `max_iter` below one.
            WrongDtype, WrongShape: A is of anything but real numbers, or has not two dimensions, or no rows, or
                another width.
            OutOfRange: a code is too large for the dtype (large activations over tiny concepts). Codes too small for
                it lose accuracy, or are zero; where that is more than `tol`, `converged` is false.
        """
        if tol is None:
            tol = ENCODE_TOL if self.dtype == torch.float32 else ENCODE_TOL_FLOAT64
        if not is_number(tol) or not 0 < tol <= sys.float_info.max:
            raise InvalidParameter(f"tol is {tol!r:.60}; it must be a positive number")
        tol = float(tol)  # kernels are compiled for this type: for another they would be anew
        max_iter = at_least_one("max_iter", max_iter)
        A = _tensor(A, "activations")
        self._form.check(A.shape)
        with own_precision():
            codes, residual = self._solve_in_parts(A, tol, max_iter)
        return Encoded(codes, residual, residual <= tol)

    def decode(self, Z: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
        """Z·D (rows, n_features) for codes Z (rows, nb_concepts).

        Raises:
            WrongDtype, WrongShape: Z is of anything but real numbers, or has no rows, or another width.
            OutOfRange: an activation is too large for the dtype.
        """
        Z = self._in_dtype_or_float64(_tensor(Z, "codes")).to(self.device)
        codes_form(self.nb_concepts).check(Z.shape)
        exponents = exponents_of(Z.amax(dim=1)) if self._exponents is None else exponents_with(Z, self._exponents)
        with own_precision(), threads_for_product(Z.numel() * self.n_features):
            if exponents is None:
                A = product(self._matrix(Z), self.D, Precision.FLOAT32)
            else:  # with concepts in units of their own, as they were prepared
                of_concepts = 0 if self._exponents is None else self._exponents
                ordinary = self._matrix(times_power_of_two(Z, of_concepts - exponents[:, None]))
                A = product(ordinary, self._scaled, Precision.FLOAT32)
                A = times_power_of_two(A, exponents[:, None])
        return _in_range(A, "activations", of=Z, given="codes")

    def _matrix(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, self.dtype).contiguous()

    def _in_dtype_or_float64(self, x: torch.Tensor) -> torch.Tensor:
        """In this dictionary's dtype; float64 stays as it is, for its values may fit only once they are scaled."""
        return x if x.dtype == torch.float64 else x.to(self.dtype)

    def _solve_in_parts(self, A: torch.Tensor, tol: float, max_iter: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As many rows at a time as the device has memory for; those of another dtype are converted part by part."""
        is_small = is_small_encode(A.shape[0], self.nb_concepts, self.n_features)
        budget = None if is_small else free_bytes(self.device)
        if budget is None:
            return self._solve(A, tol, max_iter)
        codes = torch.empty(len(A), self.nb_concepts, dtype=self.dtype, device=self.device)
        residual = torch.empty(len(A), dtype=self.dtype, device=self.device)
        step = rows_of_encode(self.nb_concepts, self.n_features, budget - codes.nbytes)
        for rows in slices(len(A), step):
            codes[rows], residual[rows] = self._solve(
                self._in_dtype_or_float64(A[rows]).to(self.device), tol, max_iter
            )
        return codes, residual

    def _solve(self, A: torch.Tensor, tol: float, max_iter: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A may lie elsewhere: there the largest values are found, since a device that tells them is waited for."""
        given = self._in_dtype_or_float64(A)
        exponents = exponents_of(given.amax(dim=1))
        A = self._matrix(given if exponents is None else times_power_of_two(given, -exponents[:, None]))
        exponents = None if exponents is None else exponents.to(self.device)
        Z, residual = kernels.solve(A, self._prepared, tol=tol, max_sweeps=max_iter, kept=self._kept)
        if exponents is None and self._exponents is None:
            return Z, residual
        of_rows = 0 if exponents is None else exponents[:, None]
        of_concepts = 0 if self._exponents is None else self._exponents
        powers = cast(torch.Tensor, of_rows - of_concepts)
        codes = _in_range(times_power_of_two(Z, powers), "codes", of=given, given="activations")
        return codes, residual + self._lost(A, Z, times_power_of_two(codes, -powers))

    def _lost(self, A: torch.Tensor, Z: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """By how much the relative residual may have grown where codes Z were too small for the dtype.

        Each code's change moves the gradient of any concept, in units of its norm, by at most its own concept's norm.
        """
        inverse = self._prepared.inverse.to(self.device)  # 1/‖d_j‖², in the units of Z
        norms = torch.where(inverse > 0, inverse, 1).rsqrt()
        lost = ((kept - Z).abs() * norms).sum(dim=1)
        return torch.where(lost > 0, lost / torch.linalg.vector_norm(A, dim=1), 0)


def _tensor(x: torch.Tensor | np.ndarray[Any, Any], name: str) -> torch.Tensor:
    check_kind(x, name)
    if is_sparse(x) or (isinstance(x, torch.Tensor) and x.layout != torch.strided):
        raise WrongDtype(f"{name} are sparse, which NMF takes and a Dictionary does not; pass them dense")
    if isinstance(x, torch.Tensor):
        return x.detach()
    array = np.asarray(x)
    check_dtype(array.dtype, name=name)
    return tensor(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))


def _in_range(x: torch.Tensor, name: str, *, of: torch.Tensor, given: str) -> torch.Tensor:
    if not bool(torch.isfinite(x.amax())):
        kind = torch.finfo(x.dtype)
        row = int((~torch.isfinite(x.amax(dim=1))).nonzero()[0])  # of those that are computed together
        more = ", or compute in float64 (dtype=float64)" if x.dtype == torch.float32 else ""
        raise OutOfRange(
            f"the {name} of a row whose {given} reach {float(of[row].amax()):.3g} would exceed {kind.max:.3g}, the "
            f"largest {kind.dtype} number; rescale its {given}{more}"
        )
    return x
