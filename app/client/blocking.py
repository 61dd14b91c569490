"""The client that waits for its answers."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, Unpack, cast, overload

import httpx

from app.client import calls
from app.client.answers import Answer, Encoded
from app.client.bodies import Array, Body
from app.client.calls import Call, EncodeOptions, Files, FitParameters, Parameter, Record, Reference, T
from app.client.config import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, Pools, http_options, place_of
from app.client.display import shown
from app.client.errors import Unavailable
from app.client.following import Following
from app.client.records import DictionaryRecord, JobRecord, Progress
from app.client.retries import Attempts, Policy


class Client:
    """A dictserve service, with the method names of `core.NMF`.

    Activations and codes can be arrays, tensors, SciPy sparse matrices, lists, or the path of an npy, safetensors or
    CSV file, which is sent as it lies on the disk. What comes back are numpy arrays, float32.

    A call that can safely be sent twice is sent again where the service cannot be reached or asks to come back later
    (`Retry-After`); other calls only where nothing of them was sent. May be used from several threads, and pickled:
    the copy is made with the same arguments, the token among them, and takes the others from its own environment.

    Args:
        url: of the service; by default DICTSERVE_URL, else http://127.0.0.1:8000.
        token: for `Authorization: Bearer`; by default DICTSERVE_TOKEN.
        retries: how often a call is sent again, at most; where the service asks for 5 s or more (`Retry-After`) it is
            at something that takes its time, and that does not count. At 0 nothing is sent again.
        timeout: seconds that a call may take with all of its retries. Waiting for a fit's end is not bounded by it.
        transport: of httpx, in place of the network.

    Raises:
        ValueError: the URL is none of HTTP, the token none that a header can hold, or the environment names proxies
            or certificates that cannot be used.
        DictserveError: from every method, see `app.client.errors`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        retries: int = DEFAULT_RETRIES,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._another = partial(type(self), url, token=token, retries=retries, timeout=timeout, transport=transport)
        options = http_options(url, token, transport)
        self._pools = Pools(options)
        self._url = place_of(options)
        self._policy = Policy(retries, timeout)

    # -- fit ----------------------------------------------------------------------------------------------

    @overload
    def fit(
        self,
        A: object = ...,
        *,
        wait: Literal[True] = ...,
        progress: bool | None = ...,
        **parameters: Unpack[FitParameters],
    ) -> "Dictionary": ...

    @overload
    def fit(
        self,
        A: object = ...,
        *,
        wait: Literal[False],
        progress: bool | None = ...,
        **parameters: Unpack[FitParameters],
    ) -> "Job": ...

    @overload
    def fit(
        self,
        A: object = ...,
        *,
        wait: bool,
        progress: bool | None = ...,
        **parameters: Unpack[FitParameters],
    ) -> "Dictionary | Job": ...

    def fit(
        self,
        A: object = None,
        *,
        nb_concepts: int,
        name: str,
        solver: str | None = None,
        max_iter: int | None = None,
        tol: float | None = None,
        init: Reference | None = None,
        seed: int | None = None,
        ranks: int | None = None,
        clip: bool | None = None,
        epochs: int | None = None,
        files: Files | None = None,
        wait: bool = True,
        progress: bool | None = None,
    ) -> "Dictionary | Job":
        """Learn a dictionary of A, the next version of ``name``. What is None is left to the service's defaults.

        Args:
            A: activations (rows, n_features), non-negative; with ``clip`` negative values are made zero.
            init: where D begins: a method, or a dictionary to go on from, as ``name`` or ``name@version``.
            ranks: processes that share out the rows, where the service allows more than one.
            files: instead of A, npy files of the service's data directory: names, or patterns like ``layer4/*.npy``.
            epochs: of an online fit of files, in memory that does not grow with them; large ones get one anyway.
            wait: return the dictionary once it is there; else the job at once.
            progress: show a bar while waiting; None does where stderr is a terminal.

        Raises:
            JobFailed, JobCancelled: the fit that was waited for ended so.
            TypeError: both A and files were given, or neither.
        """
        parameters: dict[str, Parameter] = {
            "name": name,
            "nb_concepts": nb_concepts,
            "solver": solver,
            "max_iter": max_iter,
            "tol": tol,
            "init": init,
            "seed": seed,
            "ranks": ranks,
            "clip": clip,
            "epochs": epochs,
        }
        job = Job(self, self.send(calls.fit(A, parameters, files)))
        return job.wait(progress=progress) if wait else job

    def jobs(self, *, state: str | None = None, name: str | None = None, limit: int = 100) -> "list[Job]":
        """Jobs in this state and of this name, newest first; more than 1000 come in several calls."""
        found, cursor = self.send(calls.jobs(state, name, limit))
        while cursor is not None and len(found) < limit:
            more, cursor = self.send(calls.jobs(state, name, limit - len(found), cursor))
            found += more
        return [Job(self, record) for record in found]

    def job(self, id: str) -> "Job":
        return Job(self, self.send(calls.job(id)))

    # -- encode and decode --------------------------------------------------------------------------------

    @overload
    def encode(
        self, A: object, dictionary: Reference, *, full: Literal[True], **options: Unpack[EncodeOptions]
    ) -> Encoded: ...

    @overload
    def encode(
        self, A: object, dictionary: Reference, *, full: bool = ..., **options: Unpack[EncodeOptions]
    ) -> Any: ...

    def encode(
        self,
        A: object,
        dictionary: Reference,
        *,
        sparse: bool = False,
        top_k: int | None = None,
        clip: bool = False,
        full: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> Any:
        """Codes Z (rows, nb_concepts) of A (rows, n_features): non-negative least squares on the dictionary.

        Args:
            dictionary: its name (the latest version), ``name@version``, or a `Dictionary`.
            sparse: give Z as a `scipy.sparse.csr_array`; on the wire too, only what is not zero is sent.
            top_k: keep the largest codes of each row alone.
            clip: make negative values of A zero instead of refusing them.
            dtype: what is computed in and answered in.
            full: return an `Encoded`, which tells also whether every row converged, the relative error of each
                row, and the version that was used.
        """
        return self.send(calls.encode(A, dictionary, sparse=sparse, top_k=top_k, clip=clip, full=full, dtype=dtype))

    def decode(self, Z: object, dictionary: Reference, *, dtype: Literal["float32", "float64"] = "float32") -> Array:
        """Z·D, (rows, n_features), of codes Z (rows, nb_concepts)."""
        return self.send(calls.decode(Z, dictionary, dtype=dtype))

    # -- dictionaries -------------------------------------------------------------------------------------

    def dictionaries(self) -> "list[Dictionary]":
        """The latest version of each, without what grows with it (loss history, concept labels, energies)."""
        return [Dictionary(self, record) for record in self.send(calls.dictionaries())]

    def dictionary(self, reference: Reference) -> "Dictionary":
        """By name (the latest version), or as ``name@version``."""
        return Dictionary(self, self.send(calls.dictionary(reference)))

    def get_dictionary(self, reference: Reference) -> Array:
        """D, (nb_concepts, n_features)."""
        return self.send(calls.weights(reference))

    def concepts(self, reference: Reference) -> Record:
        """What is known of every concept, in columns, under the names of the HTTP API."""
        return self.send(calls.concepts(reference))

    def concept(self, reference: Reference, index: int) -> Record:
        """All that is known of one concept, under the names of the HTTP API.

        Raises:
            UnknownConcept: there are fewer.
        """
        return self.send(calls.concept(reference, index))

    def compare(self, a: Reference, b: Reference) -> Record:
        """Which concept of one dictionary is which of another, and how alike they are, under the names of the HTTP
        API."""
        return self.send(calls.compare(a, b))

    def import_dictionary(self, name: str, D: object) -> "Dictionary":
        """Make D (nb_concepts, n_features), non-negative and made elsewhere, the next version of ``name``."""
        return Dictionary(self, self.send(calls.import_dictionary(name, D)))

    def label(
        self,
        reference: Reference,
        labels: Mapping[str, str | None] | None = None,
        concepts: Mapping[int, str | None] | None = None,
    ) -> "Dictionary":
        """Note something of a dictionary, and of its concepts by their index. None removes a label."""
        return Dictionary(self, self.send(calls.label(reference, labels, concepts)))

    def remove(self, reference: Reference) -> None:
        """Remove a version (``name@version``), or all of a name."""
        self.send(calls.remove(reference))

    # -- the service --------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether the service is there and takes work; it is asked once, and has ten seconds to answer.

        Raises:
            UnreadableAnswer: something else answers at its URL, such as a page to log in at.
        """
        try:
            return self.send(calls.ready(), self._policy.once())
        except Unavailable:
            return False

    def send(self, call: Call[T], policy: Policy | None = None) -> T:
        """What every method comes to: a call of `app.client.calls`, sent until there is an answer."""
        attempts = Attempts(policy or self._policy, call, self._url)
        while True:
            try:
                answer = self._exchange(call, attempts)
            except httpx.TransportError as error:
                pause = attempts.pause_after_error(error)
            else:
                if answer.is_good:
                    return call.read(answer)
                pause = attempts.pause_after_answer(answer)
            time.sleep(pause)

    def _exchange(self, call: Call[T], attempts: Attempts) -> Answer:
        content = None if call.body is None else _chunks(call.body, attempts)
        with (
            self._pools.under_way(),
            self._pools.calls.stream(
                **attempts.request(), content=content, extensions=self._pools.extensions
            ) as response,
        ):
            body = bytearray()
            try:
                for chunk in response.iter_bytes():
                    body += chunk
                    attempts.left()
            except httpx.DecodingError as error:
                return Answer.undecoded(response.status_code, response.headers, error)
            return Answer(response.status_code, response.headers, body)

    def __reduce__(self) -> "tuple[Callable[[], Client], tuple[()]]":
        return self._another, ()

    def close(self) -> None:
        """Calls that are under way in other threads end at once, as those after it do: in `ClientClosed`."""
        self._pools.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Job(JobRecord):
    """A fit under way or ended."""

    def __init__(self, client: Client, record: Record) -> None:
        super().__init__(record)
        self._client = client

    def refresh(self) -> Self:
        """Ask how it is now."""
        self.record = self._client.send(calls.job(self.id))
        return self

    def events(self, *, timeout: float | None = None) -> Iterator[Progress]:
        """Its progress as it comes, until it has ended. What this job tells of itself is kept up.

        Raises:
            StillRunning: it has not ended within ``timeout`` seconds.
        """
        following = Following(self.record, timeout)
        while not following.ended:
            if following.has_stream:
                for progress in self._stream(following):
                    self.record = following.record
                    yield progress
            if following.ended:
                break
            for progress in following.take_record(self._look(following)):
                self.record = following.record
                yield progress
            self.record = following.record
            if not following.ended:
                time.sleep(following.pause())
        self.record = following.record

    def _look(self, following: Following) -> Record:
        """The record now. A service that is gone is waited for, as long as a call may take: it takes its jobs up
        again."""
        try:
            return self._client.send(calls.job(self.id), following.patience(self._client._policy))
        except Unavailable as error:
            raise following.unanswered(error) from None

    def _stream(self, following: Following) -> Iterator[Progress]:
        """Until the stream ends, or breaks: then the job is looked at, and what is wrong shows."""
        pools = self._client._pools
        try:
            with (
                pools.under_way(),
                pools.streams.stream(**following.request(), extensions=pools.extensions) as response,
            ):
                if following.opened(response.status_code, response.headers):
                    for chunk in response.iter_bytes():
                        yield from following.feed(chunk)
                        if not following.listens:
                            return
        except (httpx.TransportError, httpx.DecodingError) as error:
            following.broke_off(error)

    def wait(self, *, timeout: float | None = None, progress: bool | None = False) -> "Dictionary":
        """The dictionary, once it is there.

        Args:
            timeout: seconds; None waits as long as it takes.
            progress: show a bar; None does where stderr is a terminal.

        Raises:
            StillRunning: it has not ended in time.
            JobFailed, JobCancelled: it ended without a dictionary.
        """
        try:
            with shown(progress, self.name) as show:
                for told in self.events(timeout=timeout):
                    show(told)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"job {self.id} goes on: `client.job({self.id!r}).cancel()` ends it")
            raise
        return self._client.dictionary(self.fitted())

    def cancel(self) -> None:
        """End it; one that has ended stays as it is. ``state`` tells how it ended."""
        self.record = self._client.send(calls.cancel(self.id))


class Dictionary(DictionaryRecord):
    """One version of a dictionary, to encode and decode with."""

    def __init__(self, client: Client, record: Record) -> None:
        super().__init__(record)
        self._client = client

    @overload
    def encode(self, A: object, *, full: Literal[True], **options: Unpack[EncodeOptions]) -> Encoded: ...

    @overload
    def encode(self, A: object, *, full: bool = ..., **options: Unpack[EncodeOptions]) -> Any: ...

    def encode(
        self,
        A: object,
        *,
        sparse: bool = False,
        top_k: int | None = None,
        clip: bool = False,
        full: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> Any:
        """As `Client.encode`."""
        return self._client.send(
            calls.encode(A, self.reference, sparse=sparse, top_k=top_k, clip=clip, full=full, dtype=dtype)
        )

    def decode(self, Z: object, *, dtype: Literal["float32", "float64"] = "float32") -> Array:
        """As `Client.decode`."""
        return self._client.decode(Z, self.reference, dtype=dtype)

    def get_dictionary(self) -> Array:
        """D, (nb_concepts, n_features)."""
        return self._client.get_dictionary(self.reference)


def _chunks(body: Body, attempts: Attempts) -> Iterator[bytes]:
    for chunk in body.chunks():
        attempts.left()
        yield cast(bytes, chunk)  # any buffer will do
