"""A fit over several processes, ranks: the rows of A are shared out, D is the same on all of them.

Each rank holds some rows of A and their Z. What it must know of the others' rows comes to it in sums over all rows,
whose size does not depend on how many those are. All ranks take the same steps in the same order: whatever decides
between steps is a sum, or a number of rank 0, which all of them take; rounding may differ from machine to machine.
"""

from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from core import errors
from core.errors import CoreError, InvalidArray, InvalidParameter, RankLost
from core.progress import Result

TOLD_CHARACTERS = 1000  # of an error, to the other ranks

Slice = TypeVar("Slice")


class Ranks:
    """One rank alone, which exchanges nothing; base of those that do.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
    """

    rank = 0
    size = 1

    def all_sum(self, number: float, *tensors: torch.Tensor) -> float:
        """The sum over all ranks of a number, and, in place, of tensors."""
        return number

    def broadcast(self, *tensors: torch.Tensor) -> None:
        """Rank 0's values, in place."""

    def broadcast_numbers(self, *numbers: float) -> tuple[float, ...]:
        """Rank 0's numbers."""
        return numbers

    def any_rank(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return flag

    def all_max(self, number: float) -> float:
        """The largest of all ranks' numbers."""
        return number

    def offset_and_total(self, count: int) -> tuple[int, int]:
        """Of things counted on each rank: how many the ranks before this one have, and how many all have."""
        return 0, count

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows (n, d) of all ranks, those of rank 0 first; n may be another on each."""
        return rows

    def agreed(self, work: Generator[Slice, None, Result]) -> Generator[Slice, None, Result]:
        """The work, which exchanges nothing; an error of `core.errors` on one rank is raised on all of them."""
        return work

    def require_same(self, numbers: Mapping[str, float]) -> None:
        """Raises InvalidParameter, on all ranks, where a number is not the same on all of them."""


ALONE = Ranks()


class ProcessGroup(Ranks):
    """The ranks of torch.distributed's default group, which must have been initialised.

    Tensors are exchanged where they lie: on the CPU with Gloo, on a GPU with NCCL.

    Args:
        device: of what is exchanged beside tensors; by default that of the group's backend.

    Raises (every method):
        RankLost: another rank has ended, or let this one wait for longer than the group's timeout.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        if not dist.is_initialized():
            raise InvalidParameter("torch.distributed has no group yet; call init_process_group first")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device or torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def all_sum(self, number: float, *tensors: torch.Tensor) -> float:
        buffer = torch.cat([self._tensor(number), *(x.reshape(-1).to(self._device, torch.float64) for x in tensors)])
        self._exchange(dist.all_reduce, buffer)
        parts = torch.split(buffer, [1, *(x.numel() for x in tensors)])
        for x, part in zip(tensors, parts[1:], strict=True):
            x.copy_(part.view(x.shape))
        return float(parts[0])

    def broadcast(self, *tensors: torch.Tensor) -> None:
        for x in tensors:
            values = x.to(self._device).contiguous()
            self._exchange(dist.broadcast, values, src=0)
            x.copy_(values)

    def broadcast_numbers(self, *numbers: float) -> tuple[float, ...]:
        values = self._tensor(*numbers)
        self.broadcast(values)
        return tuple(values.tolist())

    def any_rank(self, flag: bool) -> bool:
        return self.all_sum(float(flag)) > 0

    def all_max(self, number: float) -> float:
        return max(self._of_all(number))

    def offset_and_total(self, count: int) -> tuple[int, int]:
        counts = [int(number) for number in self._of_all(count)]
        return sum(counts[: self.rank]), sum(counts)

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        counts = [int(number) for number in self._of_all(len(rows))]
        padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=self._device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        self._exchange(dist.all_gather, parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)

    def agreed(self, work: Generator[Slice, None, Result]) -> Generator[Slice, None, Result]:
        try:
            result = yield from work
        except CoreError as error:
            raise self._first_of(error) or error from error
        if (of_another := self._first_of(None)) is not None:
            raise of_another
        return result

    def _first_of(self, error: CoreError | None) -> CoreError | None:
        """The error of the lowest rank that has one, on all ranks; None where none has."""
        told = "" if error is None else f"{type(error).__name__}\0{self.rank}\0{error}"[:TOLD_CHARACTERS] + "\0"
        texts = self.all_gather(torch.tensor(list(told.encode()), dtype=torch.uint8, device=self._device))
        if not len(texts):
            return None
        name, rank, message, *_ = bytes(texts.tolist()).decode().split("\0")
        kind: type[CoreError] = getattr(errors, name)
        return kind(f"{message} ({'among the rows of' if issubclass(kind, InvalidArray) else 'on'} rank {rank})")

    def require_same(self, numbers: Mapping[str, float]) -> None:
        rows = self.all_gather(self._tensor(*numbers.values())[None])
        for name, values in zip(numbers, rows.T.tolist(), strict=True):
            for rank, value in enumerate(values):
                if value != values[0]:
                    told = f"{name} is {_plain(value)} on rank {rank} and {_plain(values[0])} on rank 0"
                    raise InvalidParameter(f"{told}; it must be the same on all")

    def _of_all(self, number: float) -> list[float]:
        """A number of each rank."""
        numbers = self._tensor(*[0.0] * self.size)
        numbers[self.rank] = number
        self._exchange(dist.all_reduce, numbers)
        of_all: list[float] = numbers.tolist()
        return of_all

    def _tensor(self, *numbers: float) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self._device)

    def _exchange(self, collective: Any, *args: Any, **kwargs: Any) -> None:
        try:
            collective(*args, **kwargs)
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank} of {self.size} has lost another: {error}") from error


def _plain(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)
