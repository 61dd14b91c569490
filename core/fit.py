"""One fit, from opened activations to concepts of norm one, in bounded slices."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

import torch

from core import state as states
from core.checks import Form, at_least_one
from core.chunks import Chunks
from core.device_memory import check_fit
from core.errors import InvalidParameter, OutOfRange, WrongShape
from core.initial import DEFAULT_START, STARTS, all_finite, given
from core.inputs import Source, read_steps
from core.kernels.precision import own_precision
from core.progress import FitProgress, tell
from core.ranks import ALONE, Ranks
from core.scaling import unit_concepts
from core.solvers import SOLVERS, solver_named
from core.solvers.alternating import Past
from core.sparse import SparseRows, is_sparse
from core.state import State

# Told of each completed iteration; where it returns True, the fit ends with what it has.
Callback = Callable[[FitProgress], bool | None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Z (rows, nb_concepts), D (nb_concepts, n_features), and the loss ½‖A − ZD‖²_F after each iteration."""

    Z: torch.Tensor
    D: torch.Tensor
    losses: list[float]


@dataclass(slots=True)
class Fit:
    """All that a fit is told except A; see `core.nmf.NMF` for the meaning of each.

    `Z` and `D` are factors to start from, float32, checked by themselves, on `device`; `saved` is a state to go on
    from in their place. Once the solver has begun, `state` tells where it is.
    """

    nb_concepts: int
    solver: str
    init: str | None
    tol: float
    max_iter: int
    generator: torch.Generator
    device: torch.device
    Z: torch.Tensor | None = None
    D: torch.Tensor | None = None
    callback: Callback | None = None
    saved: State | None = None
    ranks: Ranks = ALONE
    _codes: torch.Tensor | None = field(default=None, init=False)
    _past: Past = field(default_factory=Past, init=False)
    _chunks: Chunks | None = field(default=None, init=False)

    def state(self) -> State | None:
        """See `FitSteps.state`."""
        if self._codes is None or self._chunks is None:
            return None
        return states.taken(self._codes, self._past, self._chunks.energy, self._chunks.exponent)

    def check(self) -> None:
        """Raises InvalidParameter where `max_iter` or the state will not do, whatever A is."""
        self.max_iter = at_least_one("max_iter", self.max_iter)
        if self.saved is not None:
            if self.Z is not None or self.D is not None:
                raise InvalidParameter("state is given along with Z or D; it holds both: pass it alone")
            states.check(self.saved, self.max_iter)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises WrongShape or InvalidParameter where Z, D or a state does not belong to an A of this shape."""
        if self.saved is not None:
            states.check_shape(self.saved, shape, self.nb_concepts)
        if self.Z is not None and len(self.Z) != shape[0]:
            raise WrongShape(f"Z has {len(self.Z)} rows; A has {shape[0]}")
        if self.D is not None and len(self.D) != self.nb_concepts:
            raise WrongShape(f"D has {len(self.D)} rows; nb_concepts is {self.nb_concepts}")
        if self.D is not None and self.D.shape[1] != shape[1]:
            raise WrongShape(f"D has {self.D.shape[1]} columns; A has {shape[1]} features")

    def steps(self, opened: Callable[[], Source], form: Form) -> Generator[FitProgress, None, Fitted]:
        A = yield from self.ranks.agreed(self._read(opened, form))
        progress = self._begun()
        if self.ranks.size > 1:
            self._agree(*A.shape)
        chunks = Chunks(A, self.nb_concepts, self.ranks)
        yield from tell(chunks.survey(), progress)
        if chunks.energy == 0 and self.saved is None:
            yield replace(progress, loss=0.0, relative_error=0.0, kkt_residual=0.0, converged=True)
            return Fitted(*zeros(chunks), [])

        losses: list[float] = []
        if self.saved is not None:
            Z, D, self._past = states.restored(self.saved, chunks.energy, chunks.exponent, self.device)
            losses, self.saved = states.losses_of(self.saved), None
            yield from tell(_check_values(Z, D, self._past, chunks), progress)
        else:
            if self.Z is None and self.D is None:
                start = STARTS[self.init or DEFAULT_START](chunks, self.generator)
            else:
                start = given(chunks, self.Z, self.D)
            Z, D = yield from tell(start, progress)
        self._codes, self._chunks = Z, chunks
        solve = solver_named(self.solver)
        for progress in solve(chunks, Z, D, tol=self.tol, max_iter=self.max_iter, past=self._past):
            if progress.loss is not None:
                loss = progress.loss * 4.0**chunks.exponent
                progress = replace(progress, loss=loss)
                if progress.iteration > len(losses):
                    losses.append(loss)
                    stops = self.ranks.any_rank(self.callback is not None and bool(self.callback(progress)))
                    if stops and self._past.reached is not None:  # None: it was the last, after which D is written
                        D = self._past.reached.T.contiguous()
                        break
            yield progress
        self._codes = None  # what comes now changes Z, and is no iteration
        yield from tell(_with_unit_concepts(Z, D, chunks), progress)
        return Fitted(Z, D, losses)

    def _begun(self) -> FitProgress:
        return FitProgress(0, self.max_iter) if self.saved is None else states.progress(self.saved, self.max_iter)

    def _read(
        self, opened: Callable[[], Source], form: Form
    ) -> Generator[FitProgress, None, torch.Tensor | SparseRows]:
        source = opened()
        if not isinstance(source, Iterator):
            rows, n_features = source.shape
            # there already, or never there as a whole
            stays = is_sparse(source) or (isinstance(source, torch.Tensor) and source.device == self.device)
            held = 4 * rows * n_features if stays else 0
            check_fit(rows, n_features, self.nb_concepts, self.device, held=held, solver=self.solver)
        A = yield from tell(read_steps(source, form, self.device), self._begun())
        self.check_shape(A.shape)
        return A

    def _agree(self, n_rows: int, n_features: int) -> None:
        """Raises InvalidParameter, on all ranks, where one was told otherwise; all then draw the same numbers."""
        self.ranks.require_same(
            {
                "n_features": n_features,
                "nb_concepts": self.nb_concepts,
                "max_iter": self.max_iter,
                "tol": self.tol,
                "the solver's place in its list": list(SOLVERS).index(self.solver),
                "the start's place in its list": list(STARTS).index(self.init or DEFAULT_START),
                "whether Z is given": self.Z is not None,
                "whether D is given": self.D is not None,
                **{f"the state's {name}": float((self.saved or {}).get(name, 0)) for name in ("iteration", "energy")},
            }
        )
        if self.ranks.all_sum(n_rows) == 0:
            raise WrongShape(f"none of the {self.ranks.size} ranks has any rows of activations")
        high, low = divmod(self.generator.initial_seed(), 2**32)
        of_first = self.ranks.broadcast_numbers(high, low)
        self.generator.manual_seed(int(of_first[0]) * 2**32 + int(of_first[1]))


class FitSteps(Iterator[FitProgress]):
    """The slices of a fit, one done by each `next`. Between two of them its state can be taken."""

    def __init__(self, state: Callable[[], State | None], slices: Generator[FitProgress, None, None]) -> None:
        self._state = state
        self._slices = slices

    def __next__(self) -> FitProgress:
        with own_precision():
            return next(self._slices)

    def close(self) -> None:
        """Leave the fit where it is; the model stays as it was before."""
        self._slices.close()

    def state(self) -> State | None:
        """All that decides how the fit goes on, besides A and the parameters; see `core.state` for what is in it
        (`core.online` for an online fit's).

        None before the first iteration, in the midst of one and after the last: it can be taken right after the slice
        that completes an iteration. Its tensors are the fit's own and change with the next slice: write them down
        or copy them before that.
        """
        return self._state()


def zeros(chunks: Chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """The Z and D of data that is all zero."""
    k, device = chunks.nb_concepts, chunks.A.device
    Z = torch.zeros(chunks.n_rows, k, dtype=torch.float32, device=device)
    return Z, torch.zeros(k, chunks.n_features, dtype=torch.float32, device=device)


def _check_values(Z: torch.Tensor, D: torch.Tensor, past: Past, chunks: Chunks) -> Generator[None, None, None]:
    """Raises InvalidParameter where a state has values that no fit comes to."""
    are_sound = states.is_sound(D) and (past.ahead is None or states.is_sound(past.ahead))
    for rows in chunks.slices():
        are_sound = are_sound and states.is_sound(Z[rows])
        yield
    if chunks.ranks.any_rank(not are_sound):
        raise InvalidParameter(states.UNSOUND)


def _with_unit_concepts(Z: torch.Tensor, D: torch.Tensor, chunks: Chunks) -> Generator[None, None, None]:
    """Every concept's norm moved into its codes, and A's scale too, in place; zero concepts get zero codes."""
    norms, unit = unit_concepts(D)
    D.copy_(unit)
    for rows in chunks.slices():
        Z[rows] *= norms * 2.0**chunks.exponent
        yield
    if chunks.ranks.any_rank(not all_finite(Z)):
        raise OutOfRange("the codes of this fit exceed float32; divide the activations by 1000 or more")
