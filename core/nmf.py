"""The class people know: non-negative matrix factorisation of activations, A ≈ Z·D."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from core import inputs
from core.checks import check_activations, check_codes, check_shape
from core.chunks import Chunks
from core.dictionary import ENCODE_MAX_ITER, ENCODE_TOL, Dictionary
from core.errors import InvalidParameter, NotFitted, OutOfRange
from core.initial import DEFAULT_START, STARTS
from core.inputs import Matrix
from core.progress import FitProgress, run, tell
from core.scaling import times_power_of_two
from core.solvers import solver_named

MAX_ITER = 500


class NMF(torch.nn.Module):
    """Non-negative matrix factorisation: minimise ½‖A − ZD‖²_F over Z ≥ 0 and D ≥ 0.

    Args:
        nb_concepts: rows of D.
        device: any torch device.
        solver: "hals".
        tol: a fit stops once ten iterations have lowered the loss by less than this share of it.
        verbose: show a progress bar with the loss.
        init: "nndsvda" (the default, None) or "random".
        seed: makes a fit repeatable; None draws a new one each time.
        max_iter: what `fit` uses where it is not given one.

    Raises:
        InvalidParameter: a parameter outside its range.
        UnknownSolver: no solver has that name.
    """

    D: torch.Tensor | None
    Z_: torch.Tensor  # codes of the fit; like scikit-learn's, these two are there only after one
    loss_history_: list[float]
    _anchor: torch.Tensor

    def __init__(
        self,
        nb_concepts: int,
        device: str | torch.device = "cpu",
        solver: str = "hals",
        tol: float = 1e-4,
        verbose: bool = False,
        *,
        init: Literal["nndsvda", "random"] | None = None,
        seed: int | None = None,
        max_iter: int = MAX_ITER,
    ) -> None:
        super().__init__()
        if isinstance(nb_concepts, bool) or not isinstance(nb_concepts, (int, np.integer)) or nb_concepts < 1:
            raise InvalidParameter(f"nb_concepts is {nb_concepts!r}; it must be a whole number of at least 1")
        if not 0 <= tol < 1:
            raise InvalidParameter(f"tol is {tol!r}; it must be at least 0 and below 1")
        if init is not None and init not in STARTS:
            raise InvalidParameter(f"init is {init!r}; use one of {', '.join(map(repr, STARTS))} or None")
        solver_named(solver)  # refuses a name that it does not know
        self.nb_concepts = int(nb_concepts)
        self.solver = solver
        self.tol = tol
        self.verbose = verbose
        self.init = init
        self.seed = seed
        self.max_iter = _checked_max_iter(max_iter)
        self.register_buffer("D", None)
        # `.to(device)` moves it along, with or without a dictionary
        self.register_buffer("_anchor", torch.empty(0, device=device), persistent=False)
        self._ready: tuple[torch.Tensor, int, Dictionary] | None = None

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    @property
    def fitted(self) -> bool:
        return self.D is not None

    def fit(self, A: Matrix, max_iter: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Learn the dictionary of A in at most `max_iter` iterations (by default the constructor's).

        Returns:
            Z (rows, nb_concepts) and D (nb_concepts, n_features), both float32.

        Raises:
            InvalidArray: A has the wrong kind, shape or values (see `core.checks`), before any work is done.
        """
        steps = self.fit_steps(A, max_iter)
        with tqdm(total=self.max_iter if max_iter is None else max_iter, disable=not self.verbose) as bar:
            for progress in steps:
                if progress.iteration > bar.n:
                    bar.set_postfix(loss=f"{progress.loss:.6g}", refresh=False)
                    bar.update(progress.iteration - bar.n)
        return self.Z_, self.get_dictionary()

    def fit_steps(self, A: Matrix, max_iter: int | None = None) -> Iterator[FitProgress]:
        """`fit` as a generator of bounded slices, some ten milliseconds of work each however many rows A has.

        A's kind and shape and `max_iter` are checked by this call, A's values in the first slices. The model changes
        only when the generator has run to its end: `D`, `Z_` (codes of the fit) and `loss_history_` (the loss
        ½‖A − ZD‖²_F after each iteration) are set then. The concepts have norm one, so that codes are in units of
        the activations; a concept that the data has no use for (rank below nb_concepts) may be zero.

        On the CPU a float32, contiguous A is read in place; otherwise it is copied once. The solver's docstring
        tells in bytes what is held beside it.
        """
        max_iter = self.max_iter if max_iter is None else _checked_max_iter(max_iter)
        array = inputs.as_array(A, "activations")
        check_shape(array, name="activations", width_name="features")
        return self._fit_steps(array, max_iter)

    def _fit_steps(self, array: np.ndarray[Any, Any], max_iter: int) -> Iterator[FitProgress]:
        told = FitProgress(0, max_iter)
        A = yield from tell(inputs.activations_steps(array, self.device), told)
        chunks = Chunks(A, self.nb_concepts)
        yield from tell(chunks.survey(), told)
        if chunks.energy == 0:
            self.Z_, self.D = _zeros(chunks)
            self.loss_history_ = []
            yield FitProgress(0, max_iter, loss=0.0, relative_error=0.0, kkt_residual=0.0, converged=True)
            return

        start = STARTS[self.init or DEFAULT_START](chunks, self.nb_concepts, self._generator())
        Z, D = yield from tell(start, told)
        losses: list[float] = []
        for told in solver_named(self.solver)(chunks, Z, D, tol=self.tol, max_iter=max_iter):
            if told.loss is not None:
                loss = told.loss * 4.0**chunks.exponent
                told = replace(told, loss=loss)
                if told.iteration > len(losses):
                    losses.append(loss)
            yield told
        yield from tell(_with_unit_concepts(Z, D, chunks), told)
        self.Z_, self.D, self.loss_history_ = Z, D, losses

    def encode(self, A: Matrix, max_iter: int = ENCODE_MAX_ITER, tol: float | None = None) -> torch.Tensor:
        """Codes (rows, nb_concepts) of A (rows, n_features): exact non-negative least squares on the fitted D.

        `tol` is the relative KKT residual to reach (see `Dictionary.encode`, which also tells the one reached).
        """
        dictionary = self._prepared()
        A = inputs.activations(A, self.device, n_features=dictionary.n_features)
        return dictionary.encode(A, tol=ENCODE_TOL if tol is None else tol, max_iter=max_iter).codes

    def decode(self, Z: Matrix) -> torch.Tensor:
        """Z·D, (rows, n_features), for codes Z (rows, nb_concepts)."""
        return self._prepared().decode(inputs.codes(Z, self.device, nb_concepts=self.nb_concepts))

    def get_dictionary(self) -> torch.Tensor:
        """D, (nb_concepts, n_features).

        Raises:
            NotFitted: before a fit.
        """
        if self.D is None:
            raise NotFitted("this NMF has no dictionary yet; call fit first")
        return self.D

    def init_random_z(self, A: Matrix) -> torch.Tensor:
        """Random codes (rows, nb_concepts) for A, |N(0, 1)|·√(mean(A)/k)."""
        return self._start("random", A)[0]

    def init_random_d(self, A: Matrix) -> torch.Tensor:
        """A random dictionary (nb_concepts, n_features) for A, |N(0, 1)|·√(mean(A)/k)."""
        return self._start("random", A)[1]

    def init_nndsvda(self, A: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
        """Z and D from the singular vectors of A; see `core.initial.nndsvda`."""
        return self._start("nndsvda", A)

    def sanitize_np_input(self, x: Matrix) -> np.ndarray[Any, Any]:
        """Activations as a float32 array of shape (rows, n_features)."""
        return check_activations(inputs.as_array(x, "activations"))

    def sanitize_np_codes(self, z: Matrix) -> np.ndarray[Any, Any]:
        """Codes as a float32 array of shape (rows, nb_concepts)."""
        return check_codes(inputs.as_array(z, "codes"), nb_concepts=self.nb_concepts)

    def _generator(self) -> torch.Generator:
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def _start(self, name: str, A: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
        chunks = Chunks(inputs.activations(A, self.device), self.nb_concepts)
        run(chunks.survey())
        if chunks.energy == 0:
            return _zeros(chunks)
        Z, D = run(STARTS[name](chunks, self.nb_concepts, self._generator()))
        return times_power_of_two(Z, torch.tensor(chunks.exponent)), D

    def _prepared(self) -> Dictionary:
        """The dictionary ready to solve, kept until D is another tensor or has been written to."""
        D = self.get_dictionary()
        version = -1 if D.is_inference() else D._version
        if self._ready is None or self._ready[0] is not D or self._ready[1] != version:
            self._ready = D, version, Dictionary(D, device=self.device)
        return self._ready[2]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "D")
        if saved is not None and self.D is None:  # a fitted state into a model without a dictionary
            self.D = saved.new_empty(self.nb_concepts, saved.shape[-1], device=self.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}  # can be made again from D


def _checked_max_iter(max_iter: int) -> int:
    if isinstance(max_iter, bool) or not isinstance(max_iter, (int, np.integer)) or max_iter < 1:
        raise InvalidParameter(f"max_iter is {max_iter!r}; it must be a whole number of at least 1")
    return int(max_iter)


def _zeros(chunks: Chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """The Z and D of data that is all zero."""
    new = chunks.A.new_zeros
    return new(chunks.n_rows, chunks.nb_concepts), new(chunks.nb_concepts, chunks.n_features)


def _with_unit_concepts(Z: torch.Tensor, D: torch.Tensor, chunks: Chunks) -> Generator[None, None, None]:
    """Every concept's norm moved into its codes, and A's scale too, in place; zero concepts get zero codes."""
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    D.copy_(D / torch.where(norms > 0, norms, 1)[:, None])
    for rows, _ in chunks:
        Z[rows] *= norms * 2.0**chunks.exponent
        yield
    if not bool(torch.isfinite(Z.amax())):
        raise OutOfRange("the codes of this fit exceed float32; divide the activations by 1000 or more")
