"""What people pass in, as float32 and on the device that computes: one matrix of any kind, or batches of rows."""

from collections.abc import Callable, Generator, Iterable, Iterator
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch

from core import resident
from core.checks import Array, Form, check_array, check_scale, check_values, converted
from core.chunks import slices
from core.errors import InvalidArray, WrongDtype, WrongShape
from core.progress import run
from core.sparse import SparseMatrix, SparseRows, as_csr, as_scipy, check_sparse, is_sparse

SLICE_VALUES = 1 << 22  # read in about 5 ms

# What `fit`, `encode` and `decode` take: a matrix (or anything that numpy can see as an array), or an iterable of
# such batches of rows, read once and in order. A batch that is a tuple or a list stands for its first item.
Matrix: TypeAlias = torch.Tensor | np.ndarray[Any, Any] | SparseMatrix
Input: TypeAlias = Matrix | Iterable[Any]

# Of tensors; any other dtype or layout is one that torch itself can do little with.
DTYPES = {torch.bfloat16, torch.float16, torch.float32, torch.float64} | {
    getattr(torch, f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}
LAYOUTS = {torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}

KINDS = "a torch.Tensor, a numpy array, a SciPy sparse matrix"


# What an input is once it has been opened: of the right dtype and shape where that can be told without reading it.
Source: TypeAlias = Array | SparseMatrix | torch.Tensor | Iterator[Array]


def opened(x: Input, form: Form) -> Source:
    """A matrix as an array, as SciPy holds it or where it lies on a GPU; batches as an iterator of checked arrays.

    Raises:
        WrongDtype: neither a matrix nor an iterable, or a matrix of anything but real numbers.
        WrongShape: a matrix whose shape does not fit.
    """
    check_kind(x, form.name)
    if isinstance(x, torch.Tensor) and resident.is_resident(x):
        return resident.shaped(x, form)
    whole = matrix(x, form.name)
    if whole is not None:
        return shaped(whole, form)
    if not isinstance(x, Iterable):
        raise WrongDtype(f"{form.name} are {type_of(x)}; pass {KINDS} or an iterable of such batches")
    return checked_batches(x, form)


def shaped(x: Array | SparseMatrix, form: Form) -> Array | SparseMatrix:
    """`x` with two dimensions, once its dtype and shape are right."""
    return check_array(x, form) if isinstance(x, np.ndarray) else check_sparse(x, form)


def read_steps(source: Source, form: Form, device: torch.device) -> Generator[None, None, torch.Tensor | SparseRows]:
    """All rows, for a fit, in slices (bounded for an array; else one batch, or the whole of a sparse matrix).

    On the CPU a float32 C-contiguous array and a canonical float32 CSR matrix are shared; anything else is copied
    once, and batches are gathered in one array that grows in place: they are never held twice. What lies on the GPU
    that computes is shared in any float dtype; `core.chunks.Chunks` converts it as it is read.
    """
    if isinstance(source, torch.Tensor):
        yield from resident.check_steps(source, form.name)
        return source if source.device == device else source.to(device, torch.float32)
    if isinstance(source, np.ndarray):
        return (yield from _read_array(source, form.name, device))
    if isinstance(source, Iterator):
        return (yield from _moved((yield from stacked(source)), device))
    return SparseRows(as_csr(source, name=form.name), device)


def by_blocks(
    x: Input, form: Form, device: torch.device, answer: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The answers to blocks of rows, one below the other on `device`.

    A dense matrix is one block, a batch is one, and a sparse matrix is made dense a few thousand rows at a time.
    Beside the input, one block and the answer are held.
    """
    source = opened(x, form)
    if isinstance(source, torch.Tensor):
        run(resident.check_steps(source, form.name))
        return answer(source.to(device))
    answers = (answer(tensor(block).to(device)) for block in _blocks(source, form))
    if isinstance(source, np.ndarray):
        return next(answers)
    return tensor(run(stacked(part.cpu().numpy() for part in answers))).to(device)


def blocks(x: Input, form: Form) -> Iterator[Array]:
    """Checked float32 blocks of rows: a dense matrix is one, a batch is one, a sparse matrix is several."""
    return _blocks(opened(x, form), form)


def as_array(x: Input, form: Form) -> Array:
    """All rows as one checked float32 array."""
    source = opened(x, form)
    blocks = _blocks(source, form)
    return next(blocks) if isinstance(source, (np.ndarray, torch.Tensor)) else run(stacked(blocks))


def as_tensor(x: Input, form: Form, device: torch.device) -> torch.Tensor:
    """`as_array` on `device`; shares memory with `x` where it can."""
    return tensor(as_array(x, form)).to(device)


def stacked(blocks: Iterator[Array]) -> Generator[None, None, Array]:
    """The blocks, one below the other, in one buffer that grows in place; one block a slice."""
    block = next(blocks)
    stack = bytearray(np.ascontiguousarray(block).data)
    for block in blocks:
        yield
        stack += np.ascontiguousarray(block).data
    return np.frombuffer(stack, block.dtype).reshape(-1, block.shape[1])


def tensor(x: Array) -> torch.Tensor:
    """On the same memory; unlike from_numpy this takes read-only arrays (which are only ever read) quietly."""
    return torch.utils.dlpack.from_dlpack(x)


def matrix(x: Any, name: str) -> Array | SparseMatrix | None:
    """An array on the same memory where that can be had, or a SciPy sparse matrix; None for what is no matrix."""
    check_kind(x, name)
    if is_sparse(x):
        return x
    if isinstance(x, torch.Tensor):
        if x.layout != torch.strided:
            return as_scipy(x, name)
        x = x.detach().cpu()
        if x.dtype == torch.bfloat16:  # which numpy does not have
            x = x.float()
        return x.resolve_conj().resolve_neg().numpy()
    return np.asarray(x) if hasattr(x, "__array__") else None


def check_kind(x: object, name: str) -> None:
    """Raises WrongDtype or WrongShape where `x` is a tensor or array that cannot be read as real numbers."""
    if not isinstance(x, torch.Tensor):
        if np.ma.is_masked(x):
            raise WrongDtype(f"{name} are a masked array; pass x.filled(0), or whatever stands for what is masked")
        return
    if x.is_nested:
        raise WrongShape(f"{name} are a nested tensor; pass a list of its parts, whose rows are all as wide")
    if x.dtype not in DTYPES:
        dtype = str(x.dtype).removeprefix("torch.")
        raise WrongDtype(f"{name} have dtype {dtype}; use float16, bfloat16, float32, float64 or an integer dtype")
    if x.layout not in LAYOUTS:
        raise WrongDtype(f"{name} are a tensor of layout {x.layout}; pass x.to_dense()")
    if x.is_meta:
        raise WrongDtype(f"{name} are a tensor on the meta device, which holds no values")


def _read_array(array: Array, name: str, device: torch.device) -> Generator[None, None, torch.Tensor]:
    on_cpu = device.type == "cpu"
    in_place = on_cpu and array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned
    there = tensor(array) if in_place else torch.empty(array.shape, dtype=torch.float32, device=device)
    largest = 0.0
    for rows in _slices(array):
        try:
            largest = max(largest, check_values(array[rows], name=name))
        except InvalidArray:
            check_values(array, name=name)  # of the whole: says how many values are wrong and where the first is
            raise
        if not on_cpu:
            there[rows] = tensor(converted(array[rows]))
        elif not in_place:
            there.numpy()[rows] = array[rows]
        yield
    check_scale(largest, name=name)
    return there


def _moved(array: Array, device: torch.device) -> Generator[None, None, torch.Tensor]:
    if device.type == "cpu":
        return tensor(array)
    there = torch.empty(array.shape, dtype=torch.float32, device=device)
    for rows in _slices(array):
        there[rows] = tensor(array[rows])
        yield
    return there


def _slices(array: Array) -> Iterator[slice]:
    return slices(len(array), max(1, SLICE_VALUES // array.shape[1]))


def _blocks(source: Source, form: Form) -> Iterator[Array]:
    if isinstance(source, np.ndarray):
        yield _checked(source, form)
    elif isinstance(source, torch.Tensor):
        run(resident.check_steps(source, form.name))
        yield source.to("cpu", torch.float32).numpy()
    elif isinstance(source, Iterator):
        yield from source
    else:
        csr = as_csr(source, name=form.name)
        for rows in slices(csr.shape[0], max(1, SLICE_VALUES // csr.shape[1])):
            yield csr[rows].toarray()


def checked_batches(given: Iterable[Any], form: Form, *, first: int = 0) -> Iterator[Array]:
    """Each batch checked, in float32 and dense; all must be as wide as the first, which is told as `first`."""
    width, width_of = form.width, form.width_of
    index = first - 1
    for index, item in enumerate(given, start=first):
        batch_form = Form(f"{form.name} in batch {index}", form.width_name, width, width_of)
        item = item[0] if isinstance(item, (tuple, list)) and item else item
        batch = matrix(item, batch_form.name)
        if isinstance(item, Real):  # scikit-learn takes those; here what is iterated over are batches
            raise WrongDtype(f"{form.name} are a list of rows; make it one matrix, as numpy.array does")
        if batch is None:
            raise WrongDtype(f"{batch_form.name} are {type_of(item)}; each batch must be {KINDS}")
        array = _checked(shaped(batch, batch_form), batch_form)
        if width is None:
            width, width_of = array.shape[1], f"batch {first}"
        yield array
    if index < first:
        raise WrongShape(
            f"{form.name} are an iterable without a single batch; at least one is needed "
            "(a generator gives its batches only once)"
        )


def _checked(x: Array | SparseMatrix, form: Form) -> Array:
    """The values of `x`, of the right shape, checked; dense, float32 and C-contiguous."""
    if not isinstance(x, np.ndarray):
        dense: Array = as_csr(x, name=form.name).toarray()
        return dense
    check_scale(check_values(x, name=form.name), name=form.name)
    return converted(x)


def type_of(x: object) -> str:
    return f"a {type(x).__module__}.{type(x).__qualname__}"
