"""The client for asyncio: `app.client.blocking` with `await`; all that is no I/O is shared."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, Unpack, cast, overload

import httpx

from app.client import calls
from app.client.answers import Answer, Encoded
from app.client.bodies import Array, Body
from app.client.calls import Call, EncodeOptions, Files, FitParameters, Parameter, Record, Reference, T
from app.client.config import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_SECONDS,
    http_options,
    place_of,
)
from app.client.display import shown
from app.client.errors import Unavailable
from app.client.following import QUIET, Following
from app.client.loops import Loops
from app.client.records import DictionaryRecord, JobRecord, Progress
from app.client.retries import Attempts, Policy


class AsyncClient:
    """As `Client`, with every method to be awaited. Several event loops may use it, one after another or at once.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._another = partial(type(self), url, token=token, retries=retries, timeout=timeout, transport=transport)
        options = http_options(url, token, transport)
        self._loops = Loops(options)
        self._url = place_of(options)
        self._policy = Policy(retries, timeout)

    # -- fit ----------------------------------------------------------------------------------------------

    @overload
    async def fit(
        self,
        A: object = ...,
        *,
        wait: Literal[True] = ...,
        progress: bool | None = ...,
        **parameters: Unpack[FitParameters],
    ) -> "AsyncDictionary": ...

    @overload
    async def fit(
        self,
        A: object = ...,
        *,
        wait: Literal[False],
        progress: bool | None = ...,
        **parameters: Unpack[FitParameters],
    ) -> "AsyncJob": ...

    @overload
    async def fit(
        self,
        A: object = ...,
        *,
        wait: bool,
        progress: bool | None = ...,
        **parameters: Unpack[FitParameters],
    ) -> "AsyncDictionary | AsyncJob": ...

    async def fit(
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
    ) -> "AsyncDictionary | AsyncJob":
        """As `Client.fit`."""
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
        job = AsyncJob(self, await self.send(calls.fit(A, parameters, files)))
        return await job.wait(progress=progress) if wait else job

    async def jobs(self, *, state: str | None = None, name: str | None = None, limit: int = 100) -> "list[AsyncJob]":
        """As `Client.jobs`."""
        found, cursor = await self.send(calls.jobs(state, name, limit))
        while cursor is not None and len(found) < limit:
            more, cursor = await self.send(calls.jobs(state, name, limit - len(found), cursor))
            found += more
        return [AsyncJob(self, record) for record in found]

    async def job(self, id: str) -> "AsyncJob":
        return AsyncJob(self, await self.send(calls.job(id)))

    # -- encode and decode --------------------------------------------------------------------------------

    @overload
    async def encode(
        self, A: object, dictionary: Reference, *, full: Literal[True], **options: Unpack[EncodeOptions]
    ) -> Encoded: ...

    @overload
    async def encode(
        self, A: object, dictionary: Reference, *, full: bool = ..., **options: Unpack[EncodeOptions]
    ) -> Any: ...

    async def encode(
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
        """As `Client.encode`."""
        return await self.send(
            calls.encode(A, dictionary, sparse=sparse, top_k=top_k, clip=clip, full=full, dtype=dtype)
        )

    async def decode(
        self, Z: object, dictionary: Reference, *, dtype: Literal["float32", "float64"] = "float32"
    ) -> Array:
        """As `Client.decode`."""
        return await self.send(calls.decode(Z, dictionary, dtype=dtype))

    # -- dictionaries -------------------------------------------------------------------------------------

    async def dictionaries(self) -> "list[AsyncDictionary]":
        """As `Client.dictionaries`."""
        return [AsyncDictionary(self, record) for record in await self.send(calls.dictionaries())]

    async def dictionary(self, reference: Reference) -> "AsyncDictionary":
        """As `Client.dictionary`."""
        return AsyncDictionary(self, await self.send(calls.dictionary(reference)))

    async def get_dictionary(self, reference: Reference) -> Array:
        """As `Client.get_dictionary`."""
        return await self.send(calls.weights(reference))

    async def concepts(self, reference: Reference) -> Record:
        """As `Client.concepts`."""
        return await self.send(calls.concepts(reference))

    async def concept(self, reference: Reference, index: int) -> Record:
        """As `Client.concept`."""
        return await self.send(calls.concept(reference, index))

    async def compare(self, a: Reference, b: Reference) -> Record:
        """As `Client.compare`."""
        return await self.send(calls.compare(a, b))

    async def import_dictionary(self, name: str, D: object) -> "AsyncDictionary":
        """As `Client.import_dictionary`."""
        return AsyncDictionary(self, await self.send(calls.import_dictionary(name, D)))

    async def label(
        self,
        reference: Reference,
        labels: Mapping[str, str | None] | None = None,
        concepts: Mapping[int, str | None] | None = None,
    ) -> "AsyncDictionary":
        """As `Client.label`."""
        return AsyncDictionary(self, await self.send(calls.label(reference, labels, concepts)))

    async def remove(self, reference: Reference) -> None:
        """As `Client.remove`."""
        await self.send(calls.remove(reference))

    # -- the service --------------------------------------------------------------------------------------

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            return await self.send(calls.ready(), self._policy.once())
        except Unavailable:
            return False

    async def send(self, call: Call[T], policy: Policy | None = None) -> T:
        """As `Client.send`."""
        attempts = Attempts(policy or self._policy, call, self._url)
        while True:
            try:
                answer = await self._exchange(call, attempts)
            except httpx.TransportError as error:
                pause = attempts.pause_after_error(error)
            else:
                if answer.is_good:
                    return call.read(answer)
                pause = attempts.pause_after_answer(answer)
            await asyncio.sleep(pause)

    async def _exchange(self, call: Call[T], attempts: Attempts) -> Answer:
        here = self._loops.here()
        bound = asyncio.timeout(attempts.left())
        try:
            async with bound, here.turns, here.client() as client:
                return await _exchange(client, call, attempts)
        except TimeoutError:
            if bound.expired():
                raise attempts.timed_out() from None
            raise  # of a file on a disk that is away

    def __reduce__(self) -> "tuple[Callable[[], AsyncClient], tuple[()]]":
        return self._another, ()

    async def aclose(self) -> None:
        """As `Client.close`, of calls in other tasks."""
        await self._loops.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncJob(JobRecord):
    """A fit under way or ended."""

    def __init__(self, client: AsyncClient, record: Record) -> None:
        super().__init__(record)
        self._client = client

    async def refresh(self) -> Self:
        """As `Job.refresh`."""
        self.record = await self._client.send(calls.job(self.id))
        return self

    async def events(self, *, timeout: float | None = None) -> AsyncIterator[Progress]:  # noqa: ASYNC109 - as in `Job`
        """As `Job.events`."""
        following = Following(self.record, timeout)
        while not following.ended:
            if following.has_stream:
                async for progress in self._stream(following):
                    self.record = following.record
                    yield progress
            if following.ended:
                break
            for progress in following.take_record(await self._look(following)):
                self.record = following.record
                yield progress
            self.record = following.record
            if not following.ended:
                await asyncio.sleep(following.pause())
        self.record = following.record

    async def _look(self, following: Following) -> Record:
        """The record now. A service that is gone is waited for, as long as a call may take: it takes its jobs up
        again."""
        try:
            return await self._client.send(calls.job(self.id), following.patience(self._client._policy))
        except Unavailable as error:
            raise following.unanswered(error) from None

    async def _stream(self, following: Following) -> AsyncIterator[Progress]:
        """Until the stream ends, or breaks: then the job is looked at, and what is wrong shows."""
        try:
            async with self._client._loops.here().client() as client:
                request = client.build_request(**following.request())
                async with aclosing(await _in_time(client.send(request, stream=True), following)) as response:
                    if following.opened(response.status_code, response.headers):
                        chunks = response.aiter_bytes()
                        while (
                            following.listens
                            and (chunk := await _in_time(anext(chunks, None), following)) is not None
                        ):
                            for progress in following.feed(chunk):
                                yield progress
        except (httpx.TransportError, httpx.DecodingError) as error:
            following.broke_off(error)

    async def wait(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as in `Job`
        progress: bool | None = False,
    ) -> "AsyncDictionary":
        """As `Job.wait`."""
        with shown(progress, self.name) as show:
            async for told in self.events(timeout=timeout):
                show(told)
        return await self._client.dictionary(self.fitted())

    async def cancel(self) -> None:
        """As `Job.cancel`."""
        self.record = await self._client.send(calls.cancel(self.id))


class AsyncDictionary(DictionaryRecord):
    """One version of a dictionary, to encode and decode with."""

    def __init__(self, client: AsyncClient, record: Record) -> None:
        super().__init__(record)
        self._client = client

    @overload
    async def encode(self, A: object, *, full: Literal[True], **options: Unpack[EncodeOptions]) -> Encoded: ...

    @overload
    async def encode(self, A: object, *, full: bool = ..., **options: Unpack[EncodeOptions]) -> Any: ...

    async def encode(
        self,
        A: object,
        *,
        sparse: bool = False,
        top_k: int | None = None,
        clip: bool = False,
        full: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> Any:
        """As `Dictionary.encode`."""
        return await self._client.send(
            calls.encode(A, self.reference, sparse=sparse, top_k=top_k, clip=clip, full=full, dtype=dtype)
        )

    async def decode(self, Z: object, *, dtype: Literal["float32", "float64"] = "float32") -> Array:
        """As `Dictionary.decode`."""
        return await self._client.decode(Z, self.reference, dtype=dtype)

    async def get_dictionary(self) -> Array:
        """As `Dictionary.get_dictionary`."""
        return await self._client.get_dictionary(self.reference)


async def _exchange(client: httpx.AsyncClient, call: Call[T], attempts: Attempts) -> Answer:
    content = None if call.body is None else _chunks(call.body, attempts)
    async with client.stream(**attempts.request(), content=content) as response:
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                attempts.left()
        except httpx.DecodingError as error:
            return Answer.undecoded(response.status_code, response.headers, error)
        return Answer(response.status_code, response.headers, body)


async def _in_time(waiting: Awaitable[T], following: Following) -> T:
    """What comes of a stream next. Each wait has its own bound: between them it is the caller's turn."""
    try:
        async with asyncio.timeout(following.quiet()):
            return await waiting
    except TimeoutError:
        raise httpx.ReadTimeout(QUIET) from None


async def _chunks(body: Body, attempts: Attempts) -> AsyncIterator[bytes]:
    """A body's chunks; the disk is waited for in a thread."""
    chunks = body.chunks()
    while (chunk := await asyncio.to_thread(next, chunks, None) if body.on_disk else next(chunks, None)) is not None:
        attempts.left()
        yield cast(bytes, chunk)  # any buffer will do
