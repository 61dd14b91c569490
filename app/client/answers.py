"""What comes back: the bytes of an answer, and what is made of them."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any, NamedTuple

import msgspec
import numpy as np

from app.client.bodies import Array
from app.client.errors import UnreadableAnswer

MAX_NPY_HEADER_BYTES = 4096
NO_CONTENT = 204
OF_JOBS: dict[str, type] = {"id": str, "name": str, "state": str, "progress": dict}
OF_DICTIONARIES: dict[str, type] = {"name": str, "version": int, "nb_concepts": int, "n_features": int}

# What numpy, SciPy and safetensors raise, of bytes that are none of theirs.
NO_ARRAY = (ValueError, TypeError, LookupError, SyntaxError, TokenError, OverflowError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Answer:
    """The keys of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytearray

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300

    @classmethod
    def undecoded(cls, status: int, headers: Mapping[str, str], error: Exception) -> "Answer":
        """One whose bytes are not encoded as it says. Of an error the status still tells enough.

        Raises:
            UnreadableAnswer: it would have been a good one.
        """
        answer = cls(status, headers, bytearray())
        if answer.is_good:
            raise _unreadable(answer, error)
        return answer


class Encoded(NamedTuple):
    """Codes, and what else an encode tells.

    Attributes:
        codes: (rows, nb_concepts), float32, non-negative; an array, or a ``scipy.sparse.csr_array``.
        converged: whether every row met the tolerance on its KKT residual.
        relative_error: (rows,), ‖a − zD‖ / ‖a‖ of each row; None where it was not asked for.
        dictionary: the name of the dictionary that was used,
        version: and its version.
    """

    codes: Any
    converged: bool
    relative_error: Array | None
    dictionary: str
    version: int


def fields(answer: Answer) -> dict[str, Any]:
    """A JSON answer."""
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise _unreadable(answer, error) from None


def job(answer: Answer) -> dict[str, Any]:
    return _read(answer, fields(answer), OF_JOBS)


def dictionary(answer: Answer) -> dict[str, Any]:
    return _read(answer, fields(answer), OF_DICTIONARIES)


def jobs(answer: Answer) -> tuple[list[dict[str, Any]], str | None]:
    """A page of jobs, and what the next one is asked for by; None where there is none."""
    page = _read(answer, fields(answer), {"jobs": list})
    found = [_read(answer, each, OF_JOBS) for each in page["jobs"]]
    follows = found and page.get("next") is not None  # after nothing comes nothing, or one would ask for ever
    return found, _read(answer, page, {"next": str})["next"] if follows else None


def dictionaries(answer: Answer) -> list[dict[str, Any]]:
    found = _read(answer, fields(answer), {"dictionaries": list})["dictionaries"]
    return [_read(answer, each, OF_DICTIONARIES) for each in found]


def is_ready(answer: Answer) -> bool:
    status: str = _read(answer, fields(answer), {"status": str})["status"]
    return status == "ready"


def nothing(answer: Answer) -> None:
    """An answer without content: one that has some, such as a page to log in at, is not the service's."""
    if answer.status != NO_CONTENT:
        raise _unreadable(answer, ValueError(f"it is {answer.status} in place of {NO_CONTENT}"))


def as_it_came(media_type: str) -> Callable[[Answer], bytearray]:
    """The bytes of an answer of this type, which nobody looks into."""

    def read(answer: Answer) -> bytearray:
        if answer.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
            raise _unreadable(answer, ValueError(f"{media_type} was asked for"))
        return answer.body

    return read


def known(told: Any, names: Mapping[str, type]) -> dict[str, Any]:
    """What is told, if it has these names: another service's JSON does not.

    Raises:
        ValueError: it lacks one, or has something else by it.
    """
    if not isinstance(told, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - of bytes, not of an argument
    wrong = next((name for name, kind in names.items() if not isinstance(told.get(name), kind)), None)
    if wrong is not None:
        raise ValueError(f"its {wrong!r} is {told[wrong]!r:.60}" if wrong in told else f"it has no {wrong!r}")
    return told


def _read(answer: Answer, told: Any, names: Mapping[str, type]) -> dict[str, Any]:
    try:
        return known(told, names)
    except ValueError as error:
        raise _unreadable(answer, error) from None


def npy(answer: Answer) -> Array:
    """The array of an npy answer: a view of its bytes, which can be written to."""
    try:
        head = io.BytesIO(answer.body[:MAX_NPY_HEADER_BYTES])
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("its version is not 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
        flat = np.frombuffer(answer.body, dtype, offset=head.tell())
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except NO_ARRAY as error:
        raise _unreadable(answer, error) from None


def encoded(answer: Answer) -> Encoded:
    """The dense codes of an npy answer."""
    return _encoded(answer, npy(answer), None)


def encoded_sparse(answer: Answer) -> Encoded:
    """The codes of a safetensors answer as compressed sparse rows."""
    from scipy.sparse import csr_array  # heavy, and only for who asks for sparse codes

    tensors = _tensors(answer)
    try:
        parts = (tensors["values"], tensors["indices"], tensors["indptr"])
        codes = csr_array(parts, shape=tuple(tensors["shape"].tolist()))
        codes.check_format(full_check=True)  # an index beyond the row would be written to
    except NO_ARRAY as error:
        raise _unreadable(answer, error) from None
    return _encoded(answer, codes, tensors.get("relative_error"))


def encoded_dense(answer: Answer) -> Encoded:
    """The codes of a safetensors answer as an array, however they came."""
    tensors = _tensors(answer)
    try:
        codes = tensors["codes"] if "codes" in tensors else dense(tensors)
    except ValueError as error:
        raise _unreadable(answer, error) from None
    return _encoded(answer, codes, tensors.get("relative_error"))


def dense(parts: Mapping[str, Any]) -> Array:
    """Compressed rows (``shape``, ``indptr``, ``indices``, ``values``) as an array.

    Raises:
        ValueError: they are none.
    """
    try:
        values, indices, indptr = (np.asarray(parts[name]) for name in ("values", "indices", "indptr"))
        if len(indices) and indices.min() < 0:
            raise ValueError("an index is negative")
        rows = np.zeros(tuple(map(int, parts["shape"])), values.dtype)
        rows[np.repeat(np.arange(len(rows)), np.diff(indptr)), indices] = values
    except NO_ARRAY as error:
        raise ValueError(str(error)) from None
    return rows


def _encoded(answer: Answer, codes: Any, relative_error: Array | None) -> Encoded:
    told = answer.headers
    try:
        return Encoded(
            codes,
            told["dictserve-converged"] == "true",
            relative_error,
            told["dictserve-dictionary"],
            int(told["dictserve-version"]),
        )
    except (KeyError, ValueError) as error:
        raise _unreadable(answer, error) from None


def _tensors(answer: Answer) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(bytes(answer.body))
    except (SafetensorError, *NO_ARRAY) as error:
        raise _unreadable(answer, error) from None


def _unreadable(answer: Answer, error: Exception) -> UnreadableAnswer:
    kind = answer.headers.get("content-type", "no type")
    return UnreadableAnswer(f"the answer ({kind}) cannot be read: {error}", status=answer.status)
