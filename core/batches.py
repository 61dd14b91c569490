"""The batches of an online fit, epoch by epoch: blocks of rows from all over a matrix, or what an iterable gives."""

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
import torch

from core import inputs
from core.checks import Array, Form, check_scale, check_values, converted
from core.errors import WrongDtype, WrongShape
from core.inputs import Matrix
from core.sparse import as_csr, is_sparse

if TYPE_CHECKING:
    from scipy import sparse

# A batch is so many blocks of rows that follow each other, so that files are read in large pieces, and files whose
# rows are sorted still give batches that are like the whole; a block is no larger than this.
BLOCKS_PER_BATCH = 16
BLOCK_BYTES = 1 << 20


class Rows(Protocol):
    """A matrix that is read a slice of rows at a time: memory-mapped, or an h5py or zarr data set."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


# One batch (rows, n_features), float32 and checked, read in bounded slices.
Reading: TypeAlias = Generator[None, None, Array]


class Batches(Protocol):
    @property
    def n_rows(self) -> int | None:
        """Of an epoch; None where it is not known. So is the width."""

    @property
    def n_features(self) -> int | None: ...

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, number: int, start: int, order: int) -> Iterator[Reading]:
        """The batches of an epoch from the `start`-th on; `order` is the seed of what is drawn."""


def opened(x: Matrix | Rows | Iterable[Any], form: Form, batch_rows: int) -> Batches:
    """Batches of `batch_rows` rows of a matrix; or those of an iterable, as many as its length tells.

    Raises:
        WrongDtype: neither a matrix nor an iterable with a length.
        WrongShape: a matrix whose shape does not fit, or no batches.
    """
    if is_sparse(x) or (isinstance(x, torch.Tensor) and x.layout != torch.strided):
        csr = as_csr(inputs.shaped(inputs.matrix(x, form.name), form), name=form.name)
        return Blocks(_Sparse(csr), form, batch_rows)
    if isinstance(x, np.ndarray):
        return Blocks(inputs.shaped(x, form), form, batch_rows)
    if isinstance(x, torch.Tensor) and x.ndim == 1:
        x = x[None]  # one row, as of an array
    if hasattr(x, "shape") and hasattr(x, "__getitem__"):
        form.check(x.shape)
        return Blocks(cast(Rows, x), form, batch_rows)
    if isinstance(x, Iterable) and (length := _length(x)) is not None:
        if length == 0:
            raise WrongShape(f"{form.name} are an iterable without a single batch; at least one is needed")
        return Given(x, form)
    raise WrongDtype(
        f"{form.name} are {inputs.type_of(x)}; pass {inputs.KINDS}, something whose slices of rows are such, or an "
        "iterable of batches that has a length and can be iterated again (partial_fit takes a stream)"
    )


def _length(x: object) -> int | None:
    """Of what has one, which a method `__len__` alone does not tell: a DataLoader's asks its data for theirs."""
    try:
        return len(x)  # type: ignore[arg-type]
    except TypeError:
        return None


class Blocks:
    """A matrix: each epoch all its blocks, in an order that is drawn, several a batch."""

    def __init__(self, rows: Rows, form: Form, batch_rows: int) -> None:
        self.n_rows, self.n_features = rows.shape
        self._rows, self._form = rows, form
        of_bytes, of_batch = BLOCK_BYTES // (4 * self.n_features), -(-batch_rows // BLOCKS_PER_BATCH)
        self._block = max(1, min(of_bytes, of_batch))
        self._per_batch = max(1, batch_rows // self._block)
        self._largest = 0.0  # value that was read

    def __len__(self) -> int:
        return -(-self._blocks // self._per_batch)

    @property
    def _blocks(self) -> int:
        return -(-self.n_rows // self._block)

    def epoch(self, number: int, start: int, order: int) -> Iterator[Reading]:
        generator = torch.Generator().manual_seed(order + number)
        drawn = torch.randperm(self._blocks, generator=generator)
        for blocks in torch.split(drawn, self._per_batch)[start:]:
            yield self._read(blocks.tolist())
        if start == 0:  # all have been read
            check_scale(self._largest, name=self._form.name)

    def _read(self, blocks: list[int]) -> Reading:
        slices = [slice(b * self._block, min((b + 1) * self._block, self.n_rows)) for b in blocks]
        batch = np.empty((sum(rows.stop - rows.start for rows in slices), self.n_features), np.float32)
        filled = 0
        for rows in slices:
            part = self._checked(rows)
            batch[filled : filled + len(part)] = part
            filled += len(part)
            yield
        return batch

    def _checked(self, rows: slice) -> Array:
        given = inputs.matrix(self._rows[rows], self._form.name)
        if given is None:
            raise WrongDtype(f"slices of {self._form.name} are no matrices; each must be {inputs.KINDS}")
        part = inputs.shaped(given, self._form)
        if part.shape != (asked := (rows.stop - rows.start, self.n_features)):
            raise WrongShape(
                f"{self._form.name} are of shape {tuple(self._rows.shape)}, and their rows {rows.start} to "
                f"{rows.stop} came as {part.shape}, not {asked}"
            )
        largest = check_values(part, name=self._form.name, place=lambda at: (rows.start + at[0], at[1]))
        self._largest = max(self._largest, largest)
        return converted(part)


class Given:
    """An iterable's own batches, in its own order; each is one slice of work to read."""

    n_rows = n_features = None

    def __init__(self, batches: Iterable[Any], form: Form) -> None:
        self._batches, self._form = batches, form

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def epoch(self, number: int, start: int, order: int) -> Iterator[Reading]:
        given = inputs.checked_batches(islice(self._batches, start, len(self)), self._form, first=start)
        return (_at_once(batch) for batch in given)


class _Sparse:
    """CSR whose slices of rows are dense."""

    def __init__(self, csr: "sparse.csr_array") -> None:
        self._csr, self.shape = csr, csr.shape

    def __getitem__(self, rows: slice) -> Array:
        dense: Array = self._csr[rows].toarray()
        return dense


def _at_once(batch: Array) -> Reading:
    yield
    return batch
