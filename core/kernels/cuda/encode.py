"""The rounds of an encode on a CUDA device: see `core.kernels.cuda.interface.solve`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import torch

from core.kernels.cuda import bounded, working_sets
from core.kernels.encode_rules import ADDED, FEW_CONCEPTS, LAST_SHARE, ROUND_SHARE
from core.kernels.grams import gram
from core.kernels.precision import Precision, product
from core.kernels.prepared import Prepared

# Precisions of a gradient, and the most that each can be wrong of ‖d_j‖·‖zD − a‖ by the rounding of its factors, were
# all errors to point the same way: TF32 of factors cut off; SPLIT of rests cut off and their product left out.
LADDER = ((Precision.TF32, 2.0**-9), (Precision.SPLIT, 2.5 * 2.0**-21), (Precision.FLOAT32, 0.0))
# A gradient is too rough to go on with where the residual that it tells is below so many times the usual error, which
# is that of n_features terms whose errors are independent; and where it may be all error and has hardly fallen.
USUAL_ERRORS, HARDLY_FALLEN = 3.0, 0.5
# Products of a row's small gram that stand for a sweep; what a round counts for at least, so that rounds have an end.
PRODUCTS, LEAST_PRODUCTS = 4, 64
# Concepts of the largest working set, usually; more where a row's support wants more. Where more than ADDED join, no
# more do than fit.
ROOM = 256
SIZES = 64  # working sets are a multiple of this: few kernels to compile, and rows of grams that are aligned
RESIDENT = 128  # concepts of a small problem whose gram a program's registers hold
MANY_ROWS = 256  # which leave no multiprocessor idle, whatever a program takes
GATHERED = 16  # rows of a gram, by one program
FEATURES = 128  # of a residual, by one program
GRAM_BYTES = 1 << 30  # of working sets gathered at once
ALIGNED = 4  # numbers, of which Triton knows that they can be read at once


@dataclass(frozen=True)
class Rows:
    """Rows that are not done: which of all they are, and of each what `working_sets.choose` says of it."""

    index: torch.Tensor
    norms: torch.Tensor
    spent: torch.Tensor
    relative: torch.Tensor
    wanted: torch.Tensor
    chosen: torch.Tensor
    g: torch.Tensor

    def only(self, some: torch.Tensor | slice) -> Self:
        return type(self)(*(getattr(self, field.name)[some] for field in fields(self)))


@dataclass(frozen=True)
class Told:
    """What the host learns of each row that is left, the most concepts that any wants, and what else it asked for."""

    relative: torch.Tensor
    spent: torch.Tensor
    widest: int
    beside: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Solved:
    """Codes of all rows, their residuals, and whether a row was given up with more than was asked for."""

    Z: torch.Tensor
    residual: torch.Tensor
    given_up: bool


class Encode:
    """Codes Z of all rows as they are so far, their residuals, and the steps of a round; the host waits in `told`."""

    rows: Rows
    R: torch.Tensor  # ZD − A (rows, d) of the rows that are left

    def __init__(
        self, A: torch.Tensor, prepared: Prepared, tol: float, max_sweeps: int, *, room: int | None = None
    ) -> None:
        """`room`: concepts that there is room for in a working set; by default for more than is usual, since what
        wants still more is looked at a second time.
        """
        self.A, self.tol, self.most = A, tol, PRODUCTS * max_sweeps
        self.D: torch.Tensor = prepared.D
        self.scale: torch.Tensor = prepared.inverse.sqrt()
        self.B: torch.Tensor | None = prepared.B if prepared.B.numel() else None
        self.k, self.d = int(self.D.shape[0]), int(self.D.shape[1])
        self.all_chosen = self.k <= FEW_CONCEPTS
        if self.all_chosen and self.B is None:
            self.B = gram(self.D)
        self.Z, self.residual = A.new_empty(len(A), self.k), A.new_empty(len(A))
        self.room = min(self.k, room or 2 * ROOM)

    def begin(self) -> None:
        """From zero, with all rows."""
        self.Z.zero_()
        self.R = -self.A
        norms = torch.linalg.vector_norm(self.A, dim=1)
        index = torch.arange(len(norms), dtype=torch.int32, device=norms.device)
        chosen, g = index.new_empty(len(index), self.room), norms.new_empty(len(index), self.room)
        spent, wanted, relative = torch.zeros_like(index), torch.empty_like(index), torch.ones_like(norms)
        self.rows = Rows(index, norms, spent, relative, wanted, chosen, g)

    def make_room(self, widest: int) -> None:
        """For working sets of so many concepts; those that there are are lost."""
        n, self.room = len(self.rows.index), min(self.k, size_for(widest))
        chosen, g = self.rows.chosen.new_empty(n, self.room), self.rows.g.new_empty(n, self.room)
        self.rows = replace(self.rows, chosen=chosen, g=g)

    def climb(self) -> Told:
        """A look at each row that is left, as precise as it takes; the host waits once for each precision.

        All rows are looked at roughly, and more precisely those that are said to be done, which may be wrong, or of
        which that tells too little to go on with. What is told of a row is at most `tol` only where that is certain.
        """
        ladder = LADDER[1:] if self.all_chosen else LADDER  # a round is the last one there, and not to begin roughly
        rests = torch.linalg.vector_norm(self.R, dim=1) / torch.where(self.rows.norms > 0, self.rows.norms, 1)
        residuals, some = self.rows.relative.clone(), None  # which a look writes over
        for precision, share in ladder:
            self.look(precision, some)
            told = self.told(self.rows.wanted, rests, residuals)
            rest, before = told.beside
            error = share * rest
            lost = (told.relative <= 2 * error) & (told.relative > HARDLY_FALLEN * before)
            rough = told.relative <= (USUAL_ERRORS * error / self.d**0.5).clamp(min=self.tol)
            unsure = (lost | rough) & (told.relative + error > self.tol)
            if not bool(unsure.any()):
                break
            some = on_device(unsure.nonzero().squeeze(1), self.Z.device)
        return told

    def look(self, precision: Precision, some: torch.Tensor | None = None) -> None:
        """Residuals of the rows that are left, or of some of them, and their working sets."""
        rows, R = (self.rows, self.R) if some is None else (self.rows.only(some), self.R[some])
        self._choose(rows, product(R, self.D.T, precision))
        if some is not None:
            for name in ("relative", "wanted", "chosen", "g"):
                getattr(self.rows, name)[some] = getattr(rows, name)

    def _choose(self, rows: Rows, G: torch.Tensor) -> None:
        width = power_of_two(self.k)
        working_sets.choose[(len(G),)](
            self.Z, G, rows.index, rows.norms, self.scale, rows.chosen, rows.g, rows.relative,
            self.residual, rows.wanted, self.k, self.room, ADDED, ROOM,
            WIDTH=width, ALL=self.all_chosen, num_warps=min(16, max(1, width // 512)),
        )  # fmt: skip

    def most_chosen(self, rounds: int) -> int:
        """Concepts of the largest working set after so many rounds, if there is room: one at most doubles it."""
        return min(self.room, ADDED << rounds)

    def told(self, wanted: torch.Tensor, *beside: torch.Tensor) -> Told:
        """`wanted`: concepts, by each row; all in one copy."""
        of_rows = torch.stack((self.rows.relative, self.rows.spent, wanted, *beside)).cpu()
        relative, spent, wanted, *beside_there = of_rows.unbind()
        return Told(relative, spent, int(wanted.max()), tuple(beside_there))

    def going(self, told: Told) -> torch.Tensor:
        """Which rows are not done, after a look at them that is precise enough."""
        return (told.relative > self.tol) & (told.spent < self.most)

    def lower(self, size: int) -> None:
        """Each row nearer to its minimum on its working set, of at most `size` concepts."""
        rows = self.rows
        for some in _pieces(len(rows.index), self._gram_bytes(size)):
            self._minimise(rows.only(some), size)
        self.R = self.A.new_empty(len(rows.index), self.d)
        working_sets.residuals[(len(self.R), -(-self.d // FEATURES))](
            self.A, self.Z, self.D, rows.index, rows.chosen, rows.wanted, self.R, self.k, self.d, self.room,
            BLOCK=FEATURES, DEPTH=32, num_warps=4,
        )  # fmt: skip

    def _minimise(self, rows: Rows, size: int) -> None:
        n, width = len(rows.index), power_of_two(size)
        grams = self.B if self.all_chosen else self._grams(rows, size, width)
        # where all concepts are chosen, more rounds would add nothing
        stride, share = (0, 0.0) if self.all_chosen else (size * size, ROUND_SHARE)
        num_warps = warps(width, many=n > MANY_ROWS)
        bounded.minimise[(n,)](
            self.Z, rows.g, rows.chosen, self.scale, grams, rows.index, rows.norms, rows.relative, rows.wanted,
            rows.spent, rows.norms.new_empty(n, width), self.k, self.room, size, stride,
            share, LAST_SHARE * self.tol, self.most, LEAST_PRODUCTS,
            SIZE=width, DEPTH=max(1, min(width, 64, num_warps * 1024 // width)), RESIDENT=width <= RESIDENT,
            num_warps=num_warps,
        )  # fmt: skip

    def _grams(self, rows: Rows, size: int, width: int) -> torch.Tensor:
        """Gram (rows, size, size) of each working set; only what it wants of it is defined."""
        if self.B is None:
            inside = torch.arange(size, device=rows.wanted.device) < rows.wanted[:, None]
            concepts = self.D[torch.where(inside, rows.chosen[:, :size], 0)]
            return product(concepts, concepts.mT, Precision.SPLIT)
        grams = self.B.new_empty(len(rows.index), size, size)
        working_sets.gather[(len(grams), -(-size // GATHERED))](
            self.B,
            rows.chosen,
            rows.wanted,
            grams,
            self.k,
            self.room,
            size,
            SIZE=width,
            DEPTH=GATHERED,
            num_warps=min(16, max(4, width // 128)),  # more columns than 128 a warp spill registers
        )
        return grams

    def _gram_bytes(self, size: int) -> int:
        if self.all_chosen:
            return 1
        return 4 * size * (size if self.B is not None else size + self.d)


def on_device(index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """From pinned memory, so that the host does not wait until the device has come to it."""
    if device.type != "cuda":
        return index
    pinned = torch.empty(index.shape, dtype=index.dtype, device="cpu", pin_memory=True)
    return pinned.copy_(index).to(device, non_blocking=True)


def _pieces(rows: int, bytes_of_row: int) -> Iterator[slice]:
    step = max(1, GRAM_BYTES // max(1, bytes_of_row))
    if step > ALIGNED:  # or Triton would compile for the pieces that come after the first once more
        step -= step % ALIGNED
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def size_for(wanted: int) -> int:
    return -(-wanted // SIZES) * SIZES


def power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def warps(width: int, *, many: bool) -> int:
    """Of a program that minimises over so many concepts. A gram in registers is 64 numbers of each thread; one that
    is read is read sooner by many threads, but the steps between are made by fewer at less cost.
    """
    if many and width > RESIDENT:
        return min(16, max(4, width // 64))
    return min(16, max(1, width // 16))
