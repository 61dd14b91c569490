"""Each call of the HTTP API as a value: what to send, and how to read the answer. Neither sends anything."""

import operator
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, Required, TypedDict, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import numpy as np

from app.client import answers
from app.client.answers import Answer
from app.client.bodies import MEDIA_TYPES, Array, Body, Held, body_of
from app.client.codes import codes_body
from app.client.errors import InvalidRequest

T = TypeVar("T")
Record = dict[str, Any]  # a job or dictionary, as the service tells of it


class Known(Protocol):
    """A dictionary that is known: `Dictionary`, `AsyncDictionary`."""

    @property
    def reference(self) -> str: ...


Reference = str | Known  # what a dictionary is told by
Parameter = Reference | int | float | bool | None  # None is left out: the service's default holds
Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # of the service's, or patterns of theirs
MOST_JOBS = 1000  # in an answer
MOST_URL_CHARACTERS = 60_000  # httpx makes none of 65 536


class FitParameters(TypedDict, total=False):
    """Of a fit, for type checkers."""

    nb_concepts: Required[int]
    name: Required[str]
    solver: str | None
    max_iter: int | None
    tol: float | None
    init: Reference | None
    seed: int | None
    ranks: int | None
    clip: bool | None
    epochs: int | None
    files: Files | None


class EncodeOptions(TypedDict, total=False):
    """Of an encode, for type checkers."""

    sparse: bool
    top_k: int | None
    clip: bool
    dtype: Literal["float32", "float64"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call.

    Attributes:
        read: makes the result of a good answer.
        is_repeatable: whether sending it twice does no more than sending it once.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    is_repeatable: bool = True

    def __post_init__(self) -> None:
        """Raises InvalidRequest: no URL is as long as its names."""
        if (length := len(self.path) + len(urlencode(self.query))) > MOST_URL_CHARACTERS:
            raise InvalidRequest(f"a URL of {length} characters is not sent: a name is too long")

    def all_headers(self) -> dict[str, str]:
        if self.body is None:
            return dict(self.headers)
        of_body = {"Content-Type": self.body.content_type, "Content-Length": str(self.body.length)}
        return {**self.headers, **of_body}


def fit(A: object, parameters: Mapping[str, Parameter], files: Files | None = None) -> Call[Record]:
    """Of A, or of files of the service's. The key makes it repeatable: sent again, it gives the first job.

    Raises:
        TypeError: both A and files were given, or neither.
    """
    if (A is None) == (files is None):
        raise TypeError("a fit is of A or of files: give one of the two")
    headers = {"Idempotency-Key": uuid.uuid4().hex, "Accept": MEDIA_TYPES["json"]}
    if files is None:
        return Call("POST", "/fit", answers.job, _query(parameters), headers, body_of(A))
    patterns = [os.fspath(each) for each in ([files] if isinstance(files, str | os.PathLike) else files)]
    told = {name: _as_reference(value) for name, value in parameters.items() if value is not None} | {
        "files": patterns
    }
    return Call("POST", "/fit", answers.job, {}, headers, _json(told))


def encode(
    A: object, dictionary: Reference, *, sparse: bool, top_k: int | None, clip: bool, full: bool, dtype: str
) -> Call[Any]:
    """The codes, or with ``full`` an `Encoded`. One array comes as npy, several as safetensors; with ``top_k`` the
    service always answers compressed rows."""
    one_array = not (sparse or full or top_k is not None)
    parameters: dict[str, Parameter] = {
        "dictionary": reference_of(dictionary),
        "sparse": sparse or None,
        "top_k": top_k,
        "clip": clip or None,
        "reconstruct": full or None,
        "dtype": dtype,
    }
    read = answers.encoded if one_array else answers.encoded_sparse if sparse else answers.encoded_dense
    accept = _accept("npy" if one_array else "safetensors")
    told = read if full else lambda answer: read(answer).codes
    return Call("POST", "/encode", told, _query(parameters), accept, body_of(A))


def decode(Z: object, dictionary: Reference, *, dtype: str) -> Call[Array]:
    parameters = _query({"dictionary": reference_of(dictionary), "dtype": dtype})
    return Call("POST", "/decode", answers.npy, parameters, _accept("npy"), codes_body(Z))


def solve_as(format: str, task: str, body: Body, parameters: Mapping[str, Parameter]) -> Call[bytearray]:
    """An encode or decode whose answer is kept as it comes, in a format by its short name."""
    read = answers.as_it_came(MEDIA_TYPES[format])
    return Call("POST", f"/{task}", read, _query(parameters), _accept(format), body)


def dictionaries() -> Call[list[Record]]:
    return Call("GET", "/dictionaries", answers.dictionaries)


def dictionary(reference: Reference) -> Call[Record]:
    return Call("GET", _dictionary_path(reference), answers.dictionary)


def concepts(reference: Reference) -> Call[Record]:
    return Call("GET", f"{_dictionary_path(reference)}/concepts", answers.fields)


def concept(reference: Reference, index: int) -> Call[Record]:
    return Call("GET", f"{_dictionary_path(reference)}/concepts/{_whole(index)}", answers.fields)


def compare(a: Reference, b: Reference) -> Call[Record]:
    return Call("GET", f"{_dictionary_path(a)}/compare/{_segment(b)}", answers.fields)


def weights(reference: Reference) -> Call[Array]:
    return Call("GET", f"{_dictionary_path(reference)}/weights", answers.npy, headers=_accept("npy"))


def weights_as(format: str, reference: Reference) -> Call[bytearray]:
    read = answers.as_it_came(MEDIA_TYPES[format])
    return Call("GET", f"{_dictionary_path(reference)}/weights", read, headers=_accept(format))


def import_dictionary(name: str, D: object) -> Call[Record]:
    headers = {"Accept": MEDIA_TYPES["json"]}
    body = body_of(D)
    return Call("PUT", _dictionary_path(name), answers.dictionary, headers=headers, body=body, is_repeatable=False)


def label(
    reference: Reference, labels: Mapping[str, str | None] | None, concepts: Mapping[int, str | None] | None
) -> Call[Record]:
    told = {"labels": dict(labels or {}), "concept_labels": {str(i): text for i, text in (concepts or {}).items()}}
    return Call("PATCH", _dictionary_path(reference), answers.dictionary, body=_json(told))


def remove(reference: Reference) -> Call[None]:
    """Not repeatable: by the time of the second, the name's versions may be other ones."""
    return Call("DELETE", _dictionary_path(reference), answers.nothing, is_repeatable=False)


def jobs(
    state: str | None, name: str | None, limit: int, cursor: str | None = None
) -> Call[tuple[list[Record], str | None]]:
    """A page of them, of at most ``limit``, and the cursor of the next one."""
    query = _query({"state": state, "name": name, "limit": min(limit, MOST_JOBS), "cursor": cursor})
    return Call("GET", "/jobs", answers.jobs, query)


def job(id: str) -> Call[Record]:
    return Call("GET", job_path(id), answers.job)


def cancel(id: str) -> Call[Record]:
    return Call("POST", f"{job_path(id)}/cancel", answers.job)


def ready() -> Call[bool]:
    """Told as it is now, so not repeated."""
    return Call("GET", "/readyz", answers.is_ready, is_repeatable=False)


def job_path(id: str) -> str:
    """Raises TypeError: this is no id."""
    if not isinstance(id, str):
        raise TypeError(f"a job is told by its id, and not by {id!r:.60}")
    return f"/jobs/{_segment(id)}"


def _dictionary_path(reference: Reference) -> str:
    return f"/dictionaries/{_segment(reference)}"


def _segment(name: Reference) -> str:
    """Of a path. What is none would make it the path of something else.

    Raises:
        InvalidRequest: it is empty, dots that a path is shortened by, or no text.
    """
    name = reference_of(name)
    if name in ("", ".", ".."):
        raise InvalidRequest(f"{name!r} names neither a dictionary nor a job; give a name, or name@version, or an id")
    return quote(_text(name), safe="@")


def reference_of(dictionary: object) -> str:
    """What names a dictionary, told by its name, or by what the client knows of it: that version, then.

    Raises:
        TypeError: it is neither.
    """
    reference = getattr(dictionary, "reference", dictionary)
    if not isinstance(reference, str):
        raise TypeError(f"a dictionary is told by its name, as 'digits' or 'digits@2', and not by {dictionary!r:.60}")
    return reference


def _whole(index: int) -> int:
    """What a concept is told by; numpy's integers are such, too.

    Raises:
        TypeError: it is none.
    """
    try:
        return operator.index(index)
    except TypeError:
        raise TypeError(f"a concept is told by its index, a whole number, and not by {index!r:.60}") from None


def _as_reference(value: Parameter) -> Parameter:
    return reference_of(value) if hasattr(value, "reference") else value


def _number(value: object) -> object:
    """A number of numpy's as Python's."""
    if not isinstance(value, np.generic):
        raise TypeError(f"{value!r:.60} is no parameter")
    return value.item()


def _text(text: str) -> str:
    """What can be sent as UTF-8; an argument or a file's name that is none comes with surrogates in it.

    Raises:
        InvalidRequest: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{text!r:.60} is not UTF-8") from None
    return text


def _json(told: Mapping[str, Any]) -> Held:
    """Raises InvalidRequest: a name or a text in it is not UTF-8."""
    try:
        return Held(MEDIA_TYPES["json"], (msgspec.json.encode(told, enc_hook=_number),))
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{error.object!r:.60} is not UTF-8") from None


def _query(parameters: Mapping[str, Parameter]) -> dict[str, str]:
    """Raises InvalidRequest: a name in it is not UTF-8."""
    return {
        name: str(value).lower() if isinstance(value, bool) else _text(str(_as_reference(value)))
        for name, value in parameters.items()
        if value is not None
    }


def _accept(format: str) -> dict[str, str]:
    return {"Accept": MEDIA_TYPES[format]}
