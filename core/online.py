"""Online NMF: the dictionary of activations that no memory holds, batch after batch.

Mairal, Bach, Ponce & Sapiro 2010; Lefèvre, Bach & Févotte 2011. Each batch is encoded exactly on the present D, its
ZᵀZ and AᵀZ are added to those remembered, and D is improved by the row kernel of `core.solvers.hals` on the sums, as
in a full-batch fit. What was remembered is first multiplied by (1 − b/t)^ρ, for a batch of b rows after which t have
been seen: so rows count by (age in all that was seen)^ρ, and codes of dictionaries long improved upon fade.

Two deviations. D starts as a fit of the first batch by itself, to its end: a far better place than any other that
one batch can tell of. Of fewer rows than twice the concepts it is not, as D is then copies of rows, a place that is
hard to leave: such rows are kept, and D starts anew of all there are, each time that they have doubled, until they
are so many. And a concept that is hardly used is revived from the batch's worst-reconstructed rows.

The loss after one epoch is within 0.5 % of a full-batch fit's on planted factors (20 000 × 768, k = 64), after three
within 0.05 %. On 1797 rows of digits (k = 64) in batches of 1024 it is within 3 % after three (`python -m benchmarks
online`).

Memory in bytes, whatever n: for batches of b rows 8·b·(d + k), 40·k·(k + d) for statistics, D and its iterates; 8
for the loss of each batch, and up to 8·k·d for first rows that are too few. The fit of the first batch needs as much
as any of b rows.
"""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from core import state as states
from core.batches import Batches
from core.checks import Array, Form
from core.chunks import SMALLEST_CHUNK, Chunks, encode_chunk_size
from core.dictionary import Dictionary
from core.errors import InvalidParameter, WrongShape
from core.fit import Fit
from core.inputs import tensor
from core.kernels.precision import Precision, product
from core.progress import FitProgress, tell
from core.scaling import one_where_zero, unit_concepts
from core.solvers.alternating import LARGE_SHARE, VANISHED, direct_loss, update_concepts
from core.solvers.hals import CONCEPTS
from core.solvers.revival import revive
from core.state import State
from core.statistics import Statistics, loss_from

FORGETTING = 4.0  # ρ; 2 is as good where batches abound, 8 where they are few
START_ITERATIONS = 100  # of the fit of the first batch
FIRST_ROWS = 2  # of a concept, at least, that the fit of the first rows has in the end
# Of a fit over batches that are not given: as many rows, or k where that is more (D's update costs as much as the
# codes of d rows), but no more than these bytes of activations and codes.
BATCH_ROWS, BATCH_BYTES = 4096, 1 << 27
DEAD_SHARE = 1e-6  # of the mean concept's energy, from which an unused concept is one to revive

TENSORS, NUMBERS = ("D", "gram", "cross", "losses"), ("iteration", "order", "rows", "weight", "loss", "energy")


@dataclass(slots=True)
class Memory:
    """What is kept of the rows that have been seen.

    Attributes:
        concepts: (d, k) float32, each of norm one or zero.
        gram, cross: ZᵀZ (k, k) and AᵀZ (d, k), float64, of the rows seen, each by its weight.
        rows: seen.
        weight, loss, energy: of the rows seen, each by its weight: their number, ½‖a − zD‖² and ‖a‖². An error is
            that of the D by which the row was encoded.
        first: (r, d) float32, the rows of the start and since, as long as they are too few for one that stays.
    """

    concepts: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor
    rows: float = 0.0
    weight: float = 0.0
    loss: float = 0.0
    energy: float = 0.0
    first: torch.Tensor | None = None

    @classmethod
    def of(cls, D: torch.Tensor) -> "Memory":
        """Nothing seen yet, and D (k, d) to begin with."""
        k, d = D.shape
        nothing = Statistics.zeros(d, k, D.device)
        return cls(unit_concepts(D)[1].T.contiguous(), nothing.gram, nothing.cross)

    @property
    def D(self) -> torch.Tensor:  # noqa: N802
        """(k, d), a copy."""
        return self.concepts.T.clone(memory_format=torch.contiguous_format)

    def loss_of(self, rows: float) -> float:
        """The loss of so many rows, were they like those remembered."""
        return self.loss / self.weight * rows

    def add(self, statistics: Statistics, rows: int, loss: float, energy: float) -> None:
        self.rows += rows
        kept = (1 - rows / self.rows) ** FORGETTING
        self.gram.mul_(kept).add_(statistics.gram)
        self.cross.mul_(kept).add_(statistics.cross)
        self.weight, self.loss, self.energy = (
            kept * old + new for old, new in ((self.weight, rows), (self.loss, loss), (self.energy, energy))
        )


def batch_rows_for(n_features: int, nb_concepts: int) -> int:
    """Rows of a batch."""
    most = BATCH_BYTES // (4 * (n_features + nb_concepts))
    return max(SMALLEST_CHUNK, min(max(BATCH_ROWS, nb_concepts), most))


def learn_steps(memory: Memory, batch: torch.Tensor, *, may_revive: bool = True) -> Generator[None, None, float]:
    """Learn from a batch (b, d), in bounded slices; returns its loss, with its codes on D as it was before."""
    chunks = Chunks(batch, memory.concepts.shape[1])
    chunks.size = encode_chunk_size(chunks.size)
    yield from chunks.survey()
    Z = batch.new_empty(len(batch), chunks.nb_concepts)
    statistics = yield from _encode(chunks, Z, memory.concepts)
    gram = product(memory.concepts.T, memory.concepts, Precision.FLOAT32)
    loss = loss_from(statistics, memory.concepts, gram, chunks.energy)
    if loss < LARGE_SHARE * chunks.energy:
        loss = yield from direct_loss(chunks, Z, memory.concepts)
    unit = 4.0**chunks.exponent
    loss *= unit
    statistics.gram *= unit
    statistics.cross *= unit
    memory.add(statistics, len(batch), loss, chunks.energy * unit)
    yield
    yield from _update(memory)
    energies = memory.gram.diagonal()
    dead = (energies <= DEAD_SHARE * energies.mean()) & (statistics.gram.diagonal() == 0)
    dead |= memory.concepts.amax(dim=0) == 0
    if may_revive and bool(dead.any()) and chunks.energy > 0:
        memory.gram[dead], memory.gram[:, dead], memory.cross[:, dead] = 0, 0, 0
        yield from revive(chunks, Z, memory.concepts, dead)
    return loss


def _encode(chunks: Chunks, Z: torch.Tensor, concepts: torch.Tensor) -> Generator[None, None, Statistics]:
    """Exact codes into Z (b, k), and their statistics."""
    dictionary = Dictionary(concepts.T, device=concepts.device)
    statistics = Statistics.zeros(len(concepts), concepts.shape[1], concepts.device)
    for rows, block in chunks:
        z = Z[rows] = dictionary.encode(block).codes
        statistics.add(block, z)
        yield
    return statistics


def _update(memory: Memory) -> Generator[None, None, None]:
    """D for what is remembered, and the concepts' norms moved into that."""
    largest = memory.gram.diagonal().max()
    if largest == 0:
        return
    scale = torch.exp2(-torch.frexp(largest).exponent.double())  # to where float32 is at its best
    gram, cross = memory.gram * scale, memory.cross * scale
    vanished = gram.diagonal() < VANISHED
    gram[vanished], gram[:, vanished], cross[:, vanished] = 0, 0, 0
    yield from update_concepts(CONCEPTS, memory.concepts, Statistics(gram, cross))
    norms = torch.linalg.vector_norm(memory.concepts, dim=0, dtype=torch.float64)
    memory.concepts.copy_(memory.concepts / one_where_zero(norms))
    memory.gram *= norms[:, None] * norms
    memory.cross *= norms


@dataclass(slots=True)
class OnlineFit:
    """All that an online fit is told except its batches; see `core.nmf.NMF` for the meaning of each.

    `D` is a dictionary to start from, float32, checked by itself, on `device`; `saved` a state to go on from.
    """

    nb_concepts: int
    init: str | None
    tol: float
    epochs: int
    generator: torch.Generator
    device: torch.device
    D: torch.Tensor | None = None
    saved: State | None = None
    memory: Memory | None = field(default=None, init=False)
    losses: list[float] = field(default_factory=list, init=False)
    _order: int = field(default=0, init=False)
    _is_between: bool = field(default=False, init=False)

    def state(self) -> State | None:
        """What is remembered, D, the losses and `order`, the orders' seed; None but right after a batch, and as long
        as rows are too few for a start that stays.

        Tensors are the fit's own: D (k, d) float32, gram (k, k), cross (d, k) and losses (iteration,) float64.
        """
        memory = self.memory
        if not self._is_between or memory is None or memory.first is not None or not memory.concepts.any():
            return None  # of rows that are all zero there is no start yet
        losses = torch.tensor(self.losses, dtype=torch.float64)
        numbers = {name: float(getattr(memory, name)) for name in ("rows", "weight", "loss", "energy")}
        told = {"iteration": len(losses), "order": self._order, **numbers}
        return {"D": memory.concepts.T, "gram": memory.gram, "cross": memory.cross, "losses": losses, **told}

    def check(self, batches: Batches) -> None:
        """Raises InvalidParameter where the state is none of a fit of batches such as these."""
        if self.saved is None:
            return
        state, k, total = self.saved, self.nb_concepts, self.epochs * len(batches)
        states.check_entries(state, TENSORS, NUMBERS)
        iteration, d = int(state["iteration"]), batches.n_features
        if d is None:
            d = state["D"].shape[-1] if isinstance(state["D"], torch.Tensor) and state["D"].ndim else 0
        shapes = {"D": (k, d), "gram": (k, k), "cross": (d, k), "losses": (iteration,)}
        states.check_tensors(state, shapes, float64={"gram", "cross", "losses"})
        if not all(states.is_sound(torch.as_tensor(state[name])) for name in ("D", "gram", "cross")):
            raise InvalidParameter(states.UNSOUND)
        if not 0 < iteration < total:
            raise InvalidParameter(
                f"the state is that after batch {iteration}; {self.epochs} epochs of this A have {total} batches"
            )

    def steps(self, batches: Batches, form: Form) -> Generator[FitProgress, None, None]:
        self._order = int(torch.randint(2**31, (), generator=self.generator))
        total = self.epochs * len(batches)
        if self.saved is not None:
            self._restore(self.saved)
            self.saved = None
        yield (progress := self._progress(batches, total))
        while len(self.losses) < total and not progress.converged:
            epoch, start = divmod(len(self.losses), len(batches))
            for reading in batches.epoch(epoch, start, self._order):
                self._is_between = False
                array = yield from tell(reading, progress)
                yield from tell(self.learn(array, form, may_revive=len(self.losses) + 1 < total), progress)
                self.losses.append(self._loss(batches))
                self._is_between = len(self.losses) < total
                progress = self._progress(batches, total)
                if len(self.losses) < (epoch + 1) * len(batches):
                    yield progress
            if len(self.losses) != (epoch + 1) * len(batches):
                found = len(self.losses) - epoch * len(batches)
                raise WrongShape(f"{form.name} gave {found} batches; their length is {len(batches)}")
            yield progress
        self._is_between = False

    def learn(self, array: Array, form: Form, *, may_revive: bool = True) -> Generator[None, None, float]:
        """`learn_steps` from a batch; before the first that is not all zero, a start."""
        memory = self.memory
        if memory is not None and array.shape[1] != (d := len(memory.concepts)):
            raise WrongShape(f"{form.name} have {array.shape[1]} columns; those before had {d}")
        if memory is None and self.D is not None and bool(self.D.any()):
            memory = Memory.of(self.D)
        elif memory is None or not memory.concepts.any() or self._has_doubled(memory, array):
            return (yield from self._begin(memory, array, form, may_revive=may_revive))
        self.memory, batch = memory, tensor(array).to(self.device)
        loss = yield from learn_steps(memory, batch, may_revive=may_revive)
        if memory.first is not None:
            memory.first = torch.cat([memory.first, batch])
        return loss

    def _has_doubled(self, memory: Memory, array: Array) -> bool:
        """Whether D is to start anew with this batch."""
        if memory.first is None:
            return False
        before, now = len(memory.first), len(memory.first) + len(array)
        return now >= FIRST_ROWS * self.nb_concepts or now.bit_length() > before.bit_length()

    def _begin(
        self, memory: Memory | None, array: Array, form: Form, *, may_revive: bool
    ) -> Generator[None, None, float]:
        """A start, of the first rows and this batch together; all are learned from. The loss is the batch's share."""
        first, rows, weight = array, 0.0, 0.0
        if memory is not None:
            rows, weight = memory.rows, memory.weight
            if memory.first is not None:
                first = np.concatenate([memory.first.cpu().numpy(), array])
                rows, weight = rows - len(memory.first), max(0.0, weight - len(memory.first))
        D = yield from self._start(first, form)
        begun, batch = replace(Memory.of(D), rows=rows, weight=weight), tensor(first).to(self.device)
        loss = yield from learn_steps(begun, batch, may_revive=may_revive)
        if len(first) < FIRST_ROWS * self.nb_concepts:
            begun.first = batch.clone()  # the caller's own array may change
        self.memory = begun
        return loss * len(array) / len(first)

    def _start(self, array: Array, form: Form) -> Generator[Any, None, torch.Tensor]:
        """The D of a fit of these rows alone."""
        fit = Fit(
            nb_concepts=self.nb_concepts,
            solver="hals",
            init=self.init,
            tol=self.tol,
            max_iter=START_ITERATIONS,
            generator=self.generator,
            device=self.device,
        )
        fitted = yield from fit.steps(lambda: array, form)
        return fitted.D

    def _loss(self, batches: Batches) -> float:
        """Of an epoch's rows, as many as they are thought to be, by what is remembered."""
        assert self.memory is not None  # noqa: S101 - a batch has been learned from
        rows, seen = batches.n_rows, len(self.losses) + 1
        return self.memory.loss_of(self.memory.rows / seen * len(batches) if rows is None else rows)

    def _progress(self, batches: Batches, total: int) -> FitProgress:
        if self.memory is None or not self.losses:
            return FitProgress(0, total)
        loss, energy = self.memory.loss, self.memory.energy
        error = (2 * loss / energy) ** 0.5 if energy > 0 else 0.0
        return FitProgress(len(self.losses), total, self.losses[-1], error, None, self._has_settled(len(batches)))

    def _has_settled(self, batches: int) -> bool:
        """Whether an epoch has ended that brought next to nothing."""
        losses = self.losses
        if self.tol == 0 or len(losses) % batches or len(losses) < 2 * batches:
            return False  # a tolerance of zero asks for every epoch: estimates rise and fall about a minimum
        return losses[-1 - batches] - losses[-1] <= self.tol * losses[-1]

    def _restore(self, state: State) -> None:
        tensors = {name: torch.as_tensor(state[name]).to(self.device) for name in ("D", "gram", "cross")}
        rows, weight, loss, energy = (float(state[name]) for name in ("rows", "weight", "loss", "energy"))
        concepts = tensors["D"].T.contiguous()
        self.memory = Memory(concepts, tensors["gram"], tensors["cross"], rows, weight, loss, energy)
        self.losses, self._order = states.losses_of(state), int(state["order"])
