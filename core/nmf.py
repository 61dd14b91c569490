"""The class people know: non-negative matrix factorisation of activations, A ≈ Z·D."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch

from core import batches, checks, inputs
from core.batches import Rows
from core.checks import Array, at_least_one, is_number
from core.chunks import Chunks, slices
from core.constants import EPOCHS, MAX_ITER, TOL
from core.dictionary import ENCODE_MAX_ITER, Dictionary
from core.errors import InvalidParameter, NotFitted, WrongShape
from core.estimator import Estimator, names_of
from core.fit import Callback, Fit, FitSteps, Fitted, zeros
from core.initial import STARTS
from core.inputs import Input, Matrix
from core.online import Memory, OnlineFit, batch_rows_for
from core.progress import FitProgress, run
from core.ranks import ALONE, Ranks
from core.scaling import times_power_of_two
from core.solvers import solver_named
from core.state import State

# What is remembered of the rows that `partial_fit` or `fit_online` has seen; with D it is all that they go on from.
REMEMBERED = ("online_gram", "online_cross", "online_sums", "online_first")
IN_FLOAT32 = ("D", "online_first")  # the rest of a state is in float64


class NMF(Estimator, torch.nn.Module):
    """Non-negative matrix factorisation: minimise ½‖A − ZD‖²_F over Z ≥ 0 and D ≥ 0.

    A is a tensor (any device, dtype and layout, sparse ones too), a numpy array, a SciPy sparse matrix, or an
    iterable of batches of rows, such as a DataLoader; so are codes. `fit`, `encode` and `decode` answer with
    tensors on `device`. As a torch module it encodes (`forward`), without gradients. All arithmetic is in float32:
    `.double()` and `.half()` leave the dictionary as it is, `.to(device)` moves it.

    Args:
        nb_concepts: rows of D.
        device: any torch device.
        solver: "hals", "mu", "pgd" or "anls"; see `core.solvers`.
        tol: a fit stops once ten iterations have lowered the loss by less than this share of it, or at once where it
            can be told that they will not lower it by more, or where A is met to rounding.
        verbose: show a progress bar with the loss.
        init: "nndsvda" (the default, None) or "random".
        seed: makes a fit repeatable; None draws a new one each time.
        max_iter: what `fit` uses where it is not given one.

    Attributes:
        fitted: whether there is a dictionary.
        D: the dictionary (nb_concepts, n_features), float32; None before a fit.
        Z_, loss_history_: codes (rows, nb_concepts) of the last fit, and its loss ½‖A − ZD‖²_F after each iteration;
            there only after one (of an online fit, the losses alone).
        device: where it computes; `.to(device)` changes it.

    Raises:
        InvalidParameter: a parameter outside its range.
        UnknownSolver: no solver has that name.
    """

    D: torch.Tensor | None
    Z_: torch.Tensor  # codes of the fit; like scikit-learn's, these two are there only after one
    loss_history_: list[float]
    online_gram: torch.Tensor | None
    online_cross: torch.Tensor | None
    online_sums: torch.Tensor | None
    online_first: torch.Tensor | None  # see `core.online.Memory`
    _anchor: torch.Tensor

    def __init__(
        self,
        nb_concepts: int,
        device: str | torch.device = "cpu",
        solver: str = "hals",
        tol: float = TOL,
        verbose: bool = False,
        *,
        init: Literal["nndsvda", "random"] | None = None,
        seed: int | None = None,
        max_iter: int = MAX_ITER,
    ) -> None:
        super().__init__()
        if not is_number(tol) or not 0 <= tol < 1:
            raise InvalidParameter(f"tol is {tol!r:.60}; it must be a number of at least 0 and below 1")
        if init is not None and not (isinstance(init, str) and init in STARTS):
            raise InvalidParameter(f"init is {init!r}; use one of {', '.join(map(repr, STARTS))} or None")
        solver_named(solver)  # refuses a name that it does not know
        self.nb_concepts = at_least_one("nb_concepts", nb_concepts)
        self.solver = solver
        self.tol = tol
        self.verbose = verbose
        self.init = init
        self.seed = _seed(seed)
        self.max_iter = at_least_one("max_iter", max_iter)
        for name in ("D", *REMEMBERED):
            self.register_buffer(name, None)
        # `.to(device)` moves it along, with or without a dictionary
        self.register_buffer("_anchor", torch.empty(0, dtype=torch.float32, device=device), persistent=False)
        self._ready: tuple[torch.Tensor, int, Dictionary] | None = None

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    @property
    def fitted(self) -> bool:
        return self.D is not None

    def fit(
        self,
        A: Input,
        max_iter: int | Sequence[Any] | Array | None = None,
        y: object = None,
        *,
        Z: Matrix | None = None,
        D: Matrix | None = None,
        callback: Callback | None = None,
        state: State | None = None,
        ranks: Ranks = ALONE,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Learn the dictionary of A in at most `max_iter` iterations (by default the constructor's).

        Args:
            A: (rows, n_features).
            max_iter: a number. scikit-learn passes labels in this place, `fit(A, y)`: any sequence is ignored.
            y: ignored, as those are.
            Z, D: codes (rows, nb_concepts) and a dictionary (nb_concepts, n_features) to start from; with one of
                them, the other starts as the best for it. Neither is written to.
            callback: called with the progress of each completed iteration; once it returns True, the fit ends with
                the codes and the dictionary of that iteration.
            state: of an earlier fit of this A with these parameters, to go on from it (see `fit_steps`).
            ranks: `core.ProcessGroup()` in each process of a fit that shares out the rows of A: A, Z and the state
                are then those of this process, who may also have none, and all else is the same in all of them.

        Returns:
            Z (rows, nb_concepts) and D (nb_concepts, n_features), both float32.

        Raises:
            InvalidArray: A, Z or D has the wrong kind, shape or values (see `core.checks`), before any work is done.
            InvalidParameter: the state is no state, or that of a fit of another shape; or the ranks were told
                different things.
            RankLost: another rank has ended.
        """
        limit = None if isinstance(max_iter, (list, tuple)) or np.ndim(max_iter) else max_iter  # type: ignore[arg-type]
        steps = self.fit_steps(A, limit, Z=Z, D=D, callback=callback, state=state, ranks=ranks)  # type: ignore[arg-type]
        self._run(steps, tells=ranks.rank == 0)
        return self.Z_, self.get_dictionary()

    def fit_steps(
        self,
        A: Input,
        max_iter: int | None = None,
        *,
        Z: Matrix | None = None,
        D: Matrix | None = None,
        callback: Callback | None = None,
        state: State | None = None,
        ranks: Ranks = ALONE,
    ) -> FitSteps:
        """`fit` as an iterator over bounded slices, some ten milliseconds of work each however many rows A has.

        Kinds and shapes, `max_iter`, Z and D are checked by this call, A's values in the first slices. The model
        changes only when the generator has run to its end: `D`, `Z_` (codes of the fit) and `loss_history_` (the
        loss ½‖A − ZD‖²_F after each iteration) are set then. The concepts have norm one, so that codes are in units
        of the activations; a concept that the data has no use for (rank below nb_concepts) may be zero.

        On the CPU a float32, contiguous A is read in place, and so is float32 CSR; otherwise it is copied once.
        Sparse A stays sparse, except for a chunk of rows at a time. Batches are gathered, dense, in one float32
        array of 4·rows·n_features bytes: A is never held twice. (Reading sparse A is one slice, and so is each
        batch.) The solver's docstring tells in bytes what is held beside it.

        `steps.state()`, after the slice that completes an iteration, is a mapping of tensors and numbers from which a
        fit can go on: given as `state` to another fit of the same A with the same parameters, that one ends with the
        Z and D with which this one would have, to the bit where it runs on as many threads. The tensors of a state
        that is given become the fit's own, which writes to them.

        With `ranks`, a slice may wait for the other processes, and all is checked in the first ones: what one of them
        must refuse is raised in all. `Z_` and the state's Z are those of this process's rows, D and the losses the
        same in all of them.
        """
        form = checks.activations_form(least_rows=1 if ranks.size == 1 else 0)
        fit = Fit(
            nb_concepts=self.nb_concepts,
            solver=self.solver,
            init=self.init,
            tol=self.tol,
            max_iter=self.max_iter if max_iter is None else max_iter,
            generator=self._generator(),
            device=self.device,
            callback=callback,
            saved=state,
            ranks=ranks,
        )

        def opened() -> inputs.Source:
            if Z is not None:
                of_codes = checks.codes_form(self.nb_concepts, least_rows=form.least_rows)
                fit.Z = inputs.as_tensor(Z, of_codes, self.device)
            if D is not None:
                fit.D = inputs.as_tensor(D, checks.concepts_form(), self.device)
            fit.check()
            source = inputs.opened(A, form)
            if not isinstance(source, Iterator):
                fit.check_shape(source.shape)
            return source

        if ranks.size > 1:  # the others are to hear of what is wrong with one's
            return FitSteps(fit.state, self._after(fit.steps(opened, form), names_of(A)))
        source = opened()
        return FitSteps(fit.state, self._after(fit.steps(lambda: source, form), names_of(A)))

    def _run(self, steps: FitSteps, *, tells: bool = True) -> None:
        """All slices at once, behind a progress bar where that is wanted."""
        if not (self.verbose and tells):
            for _ in steps:
                pass
            return
        from tqdm import tqdm  # which a machine that only computes need not have

        with tqdm() as bar:
            for progress in steps:
                bar.total = progress.max_iter
                if progress.iteration > bar.n:
                    bar.set_postfix(loss=f"{progress.loss:.6g}", refresh=False)
                    bar.update(progress.iteration - bar.n)

    def _after(
        self, steps: Generator[FitProgress, None, Fitted], names: Array | None
    ) -> Generator[FitProgress, None, None]:
        fitted = yield from steps
        self.Z_, self.D, self.loss_history_ = fitted.Z, fitted.D, fitted.losses
        self._remember(None)
        self._keep_names(names)

    def fit_online(
        self,
        A: Matrix | Rows | Iterable[Any],
        epochs: int = EPOCHS,
        *,
        batch_rows: int | None = None,
        D: Matrix | None = None,
        state: State | None = None,
    ) -> torch.Tensor:
        """Learn the dictionary of any number of rows in memory that does not grow with it; see `core.online`.

        Args:
            A: a matrix; or anything with a shape whose slices of rows are such, as what is mapped from disk has; or
                an iterable of batches with a length, which gives them again for each epoch: a list, a DataLoader. Of
                the first two, blocks of rows that follow each other are read in an order drawn for each epoch;
                batches are taken in their own order, each by its own size.
            epochs: how often each row is read, at most: the fit ends before where an epoch lowers the loss by less
                than `tol` of it (never with `tol` 0).
            batch_rows: of a batch of the first two kinds; by default 4096, fewer where rows are very long.
            D: a dictionary (nb_concepts, n_features) to start from.
            state: of an earlier fit of this A with these parameters, to go on from it.

        Returns:
            D (nb_concepts, n_features), float32. There are no codes of the fit: `encode` gives them, part by part.

        Raises:
            InvalidArray: A or D has the wrong kind, shape or values; of A's values, once they are read.
            InvalidParameter: the solver is not "hals", `epochs` or `batch_rows` is below one, or the state is none.
        """
        steps = self.fit_online_steps(A, epochs, batch_rows=batch_rows, D=D, state=state)
        self._run(steps)
        return self.get_dictionary()

    def fit_online_steps(
        self,
        A: Matrix | Rows | Iterable[Any],
        epochs: int = EPOCHS,
        *,
        batch_rows: int | None = None,
        D: Matrix | None = None,
        state: State | None = None,
    ) -> FitSteps:
        """`fit_online` as an iterator over bounded slices, as `fit_steps` is; an iteration is a batch.

        The loss that is told, and kept in `loss_history_`, is an estimate: that of the batches of late, each by the
        dictionary that it found, for all rows of A. A state can be taken after each batch but the last, and but
        those of the first rows until there are two for each concept.
        """
        if state is not None and D is not None:
            raise InvalidParameter("state is given along with D; it holds one: pass it alone")
        if batch_rows is not None:
            batch_rows = at_least_one("batch_rows", batch_rows)
        given = None if D is None else inputs.as_tensor(D, checks.concepts_form(), self.device)
        if given is not None and len(given) != self.nb_concepts:
            raise WrongShape(f"D has {len(given)} rows; nb_concepts is {self.nb_concepts}")
        form = checks.activations_form(None if given is None else given.shape[1])
        inputs.check_kind(A, form.name)
        shape = getattr(A, "shape", None) or (0, 1)
        source = batches.opened(A, form, batch_rows or batch_rows_for(int(shape[-1]), self.nb_concepts))
        fit = self._online(at_least_one("epochs", epochs), given, state)
        fit.check(source)
        return FitSteps(fit.state, self._after_online(fit, fit.steps(source, form), names_of(A)))

    def partial_fit(self, A: Input, y: object = None) -> Self:
        """Learn from a batch of rows (rows, n_features), and from another with each call; see `core.online`.

        The first call starts the dictionary, where no fit has left one; `encode` works after each. `loss_history_`
        gains the loss of each batch, by the dictionary that it found. What is remembered goes along in `state_dict`.
        Rows beyond the size of a batch (see `fit_online`) are one or more batches of their own. `y` is ignored.

        Raises:
            InvalidArray: A has the wrong kind, shape or values; nothing is learned from the batch then.
            InvalidParameter: the solver is not "hals".
        """
        memory = self._remembered()
        if goes_on := self._has_suitable_d():
            self._check_names(A)
        width = None if memory is None else len(memory.concepts)
        form = checks.activations_form(width)
        fit = self._online(1, self.D if memory is None and goes_on else None, None)
        fit.memory = memory
        losses = [] if memory is None else list(getattr(self, "loss_history_", []))
        for array in inputs.blocks(A, form):
            for rows in slices(len(array), batch_rows_for(array.shape[1], self.nb_concepts)):
                losses.append(run(fit.learn(array[rows], form)))
        self._remember(fit.memory)
        self.loss_history_ = losses
        if not goes_on:
            self._keep_names(names_of(A))
        return self

    def _online(self, epochs: int, D: torch.Tensor | None, state: State | None) -> OnlineFit:
        if self.solver != "hals":
            raise InvalidParameter(f"solver is {self.solver!r}; online fits are by 'hals' alone")
        return OnlineFit(
            nb_concepts=self.nb_concepts,
            init=self.init,
            tol=self.tol,
            epochs=epochs,
            generator=self._generator(),
            device=self.device,
            D=D,
            saved=state,
        )

    def _after_online(
        self, fit: OnlineFit, steps: Iterator[FitProgress], names: Array | None
    ) -> Generator[FitProgress, None, None]:
        yield from steps
        self._remember(fit.memory)
        self.loss_history_ = fit.losses
        self._keep_names(names)

    def _remember(self, memory: Memory | None) -> None:
        """Keep what an online fit goes on from, D among it; None forgets that, but for D."""
        if memory is None:
            self.online_gram = self.online_cross = self.online_sums = self.online_first = None
            return
        self.online_first = memory.first
        self.D, self.online_gram, self.online_cross = memory.D, memory.gram, memory.cross
        self.online_sums = torch.tensor(
            [memory.rows, memory.weight, memory.loss, memory.energy], dtype=torch.float64, device=self.device
        )
        for name in ("Z_", "loss_history_"):  # of another dictionary
            self.__dict__.pop(name, None)

    def _remembered(self) -> Memory | None:
        gram, cross, sums = self.online_gram, self.online_cross, self.online_sums
        if self.D is None or gram is None or cross is None or sums is None or not self._has_suitable_d():
            return None
        concepts = self.D.T.clone(memory_format=torch.contiguous_format)
        rows, weight, loss, energy = sums.tolist()
        return Memory(concepts, gram.clone(), cross.clone(), rows, weight, loss, energy, self.online_first)

    def _has_suitable_d(self) -> bool:
        return self.D is not None and len(self.D) == self.nb_concepts

    def encode(self, A: Input, max_iter: int = ENCODE_MAX_ITER, tol: float | None = None) -> torch.Tensor:
        """Codes (rows, nb_concepts) of A (rows, n_features): exact non-negative least squares on the fitted D.

        Batches are read one by one and answered with one tensor; beside that, one batch is held.

        Args:
            A: (rows, n_features), or (n_features,) for a single row.
            max_iter, tol: as `Dictionary.encode` has them, which also tells the residual that was reached.

        Raises:
            NotFitted: before a fit.
            InvalidArray: A has the wrong kind, shape or values (see `core.checks`), or a code is beyond float32.
            InvalidParameter: `tol` is not positive or `max_iter` below one.
        """
        dictionary = self._prepared()
        self._check_names(A)
        return inputs.by_blocks(
            A,
            checks.activations_form(dictionary.n_features),
            self.device,
            lambda block: dictionary.encode(block, tol=tol, max_iter=max_iter).codes,
        )

    def decode(self, Z: Input) -> torch.Tensor:
        """Z·D, (rows, n_features), for codes Z (rows, nb_concepts); batches as in `encode`.

        Raises:
            NotFitted: before a fit.
            InvalidArray: Z has the wrong kind, shape or values, or an activation is beyond float32.
        """
        dictionary = self._prepared()
        return inputs.by_blocks(Z, checks.codes_form(dictionary.nb_concepts), self.device, dictionary.decode)

    def forward(self, A: Input) -> torch.Tensor:
        """`encode`, for use within other modules; no gradient flows back to A."""
        return self.encode(A)

    def get_dictionary(self) -> torch.Tensor:
        """D, (nb_concepts, n_features), the model's own. What torch writes into it `encode` goes by; what comes by
        `.data` or through NumPy it does not see.

        Raises:
            NotFitted: before a fit.
        """
        if self.D is None:
            raise NotFitted("this NMF has no dictionary yet; call fit first")
        return self.D

    def set_params(self, **parameters: Any) -> Self:
        """Change some of the constructor's parameters; a dictionary already learned stays until the next fit.

        Raises:
            InvalidParameter: an unknown name, or a value that the constructor would refuse; nothing is changed then.
        """
        for name, value in self._changed_params(parameters).items():
            if name == "device":
                self.to(value)
            else:
                setattr(self, name, value)
        return self

    def init_random_z(self, A: Input) -> torch.Tensor:
        """Random codes (rows, nb_concepts) for A, |N(0, 1)|·√(mean(A)/k)."""
        return self._start("random", A)[0]

    def init_random_d(self, A: Input) -> torch.Tensor:
        """A random dictionary (nb_concepts, n_features) for A, |N(0, 1)|·√(mean(A)/k)."""
        return self._start("random", A)[1]

    def init_nndsvda(self, A: Input) -> tuple[torch.Tensor, torch.Tensor]:
        """Z and D from the singular vectors of A; see `core.initial.nndsvda`."""
        return self._start("nndsvda", A)

    def sanitize_np_input(self, x: Input) -> Array:
        """Activations as a float32 array of shape (rows, n_features)."""
        return inputs.as_array(x, checks.activations_form())

    def sanitize_np_codes(self, z: Input) -> Array:
        """Codes as a float32 array of shape (rows, nb_concepts)."""
        return inputs.as_array(z, checks.codes_form(self.nb_concepts))

    def _generator(self) -> torch.Generator:
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def _start(self, name: str, A: Input) -> tuple[torch.Tensor, torch.Tensor]:
        form = checks.activations_form()
        rows = run(inputs.read_steps(inputs.opened(A, form), form, self.device))
        chunks = Chunks(rows, self.nb_concepts)
        run(chunks.survey())
        if chunks.energy == 0:
            return zeros(chunks)
        Z, D = run(STARTS[name](chunks, self._generator()))
        half = torch.tensor(chunks.exponent / 2, device=Z.device)  # of A's scale for either
        return times_power_of_two(Z, half), times_power_of_two(D, half)

    def _prepared(self) -> Dictionary:
        """The dictionary ready to solve, kept until D is another tensor or torch has written to it."""
        D = self.get_dictionary()
        if D.is_inference():  # which does not tell whether it has been
            return Dictionary(D, device=self.device)
        if self._ready is None or self._ready[0] is not D or self._ready[1] != D._version:
            self._ready = D, D._version, Dictionary(D, device=self.device)
        return self._ready[2]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        before = {name: getattr(self, name) for name in ("D", *REMEMBERED)}
        errors: list[str] = args[-1]
        errors_before = len(errors)
        saved = state_dict.get(prefix + "D")
        if saved is not None:  # into a tensor of its own: whoever was given the D before keeps it as it is
            n_features = saved.shape[-1] if self.D is None else self.D.shape[1]
            self.D = torch.empty(self.nb_concepts, n_features, dtype=torch.float32, device=self.device)
        for name in REMEMBERED:  # which only some states have
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.empty_like(saved, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if len(errors) > errors_before:  # it is refused, and what was made for it holds nothing
            for name, buffer in before.items():
                setattr(self, name, buffer)
            return
        for name in before:  # with assign=True they are the state's own, whatever its dtype and device
            if (loaded := getattr(self, name)) is not None:
                setattr(self, name, loaded.to(self.device, torch.float32 if name in IN_FLOAT32 else torch.float64))
        for name in ("Z_", "loss_history_"):  # of another dictionary
            self.__dict__.pop(name, None)
        self._keep_names(None)

    # half precision would lose a dictionary's digits, and the arithmetic is in float32 in any case
    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        def keeping_dtype(buffer: torch.Tensor) -> torch.Tensor:
            applied = fn(buffer)
            return applied if applied.dtype == buffer.dtype else buffer.to(applied.device)

        return super()._apply(keeping_dtype, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}  # can be made again from D


def _seed(seed: int | None) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InvalidParameter(f"seed is {seed!r}; it must be a whole number of at least 0 and below 2**64, or None")
    return int(seed)
