"""The client against the app, a double in its worker's place; and what importing it loads."""

import asyncio
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

import app.client
from app.client import (
    AsyncClient,
    AsyncDictionary,
    AsyncJob,
    Client,
    Dictionary,
    Encoded,
    Job,
    UnknownConcept,
    UnknownDictionary,
)
from app.client import calls as api
from app.client.errors import ClientClosed, InvalidFields
from app.client.records import DictionaryRecord
from app.main import create_app
from app.schemas import EncodeRequest, FitParameters
from app.settings import Settings
from tests.app.conftest import D as CONCEPTS
from tests.app.conftest import WorkerDouble

A = np.array([[1, 0, 0, 2], [0, 3, 3, 0], [0, 0, 0, 0]], np.float32)


@pytest.fixture
def calls(client: TestClient) -> Iterator[Client]:
    with Client("http://testserver", transport=client._transport, retries=0) as calls:
        yield calls


def test_fit_encode_decode(calls: Client) -> None:
    fitted = calls.fit(A, nb_concepts=2, name="x")
    assert (fitted.reference, fitted.nb_concepts, fitted.n_features) == ("x@1", 2, 4)
    assert fitted.metrics == {"relative_error": 0.5}
    D = fitted.get_dictionary()
    np.testing.assert_array_equal(D, A[:2])
    Z = fitted.encode(A)
    np.testing.assert_array_equal(Z, A @ D.T)
    np.testing.assert_array_equal(fitted.decode(Z), Z @ D)
    Z += 1  # it is the caller's own


def test_codes_in_every_form(calls: Client, digits: str) -> None:
    Z = A @ CONCEPTS.T
    full = calls.encode(A, digits, full=True)
    assert isinstance(full, Encoded)
    assert (full.converged, full.dictionary, full.version) == (True, "digits", 1)
    np.testing.assert_array_equal(full.codes, Z)
    assert full.relative_error is not None
    assert full.relative_error.shape == (3,)
    sparse = calls.encode(A, digits, sparse=True)
    assert sparse.format == "csr"
    np.testing.assert_array_equal(sparse.toarray(), Z)
    np.testing.assert_array_equal(calls.encode(A, digits, top_k=1), Z)  # each row has one code
    np.testing.assert_array_equal(calls.decode(sparse, digits), Z @ CONCEPTS)
    np.testing.assert_array_equal(calls.encode(-A, digits, clip=True), np.zeros((3, 2)))


def test_float64(calls: Client, digits: str) -> None:
    Z = calls.encode(A, digits, dtype="float64")
    assert Z.dtype == np.float64
    np.testing.assert_array_equal(Z, A @ CONCEPTS.T)
    assert calls.decode(Z, digits, dtype="float64").dtype == np.float64


def test_a_fit_of_files(settings: Settings, tmp_path: Path) -> None:
    np.save(tmp_path / "A.npy", A)
    settings = settings.model_copy(update={"data_dir": tmp_path})
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        calls = Client("http://testserver", transport=client._transport, retries=0)
        fitted = calls.fit(files=["*.npy"], nb_concepts=2, name="x", tol=None)
        np.testing.assert_array_equal(fitted.get_dictionary(), A[:2])
        with pytest.raises(InvalidFields, match=r"none\.npy"):
            calls.fit(files=["none.npy"], nb_concepts=2, name="x")
    for both_or_neither in ({}, {"A": A, "files": ["*.npy"]}):
        with pytest.raises(TypeError, match="give one of the two"):
            calls.fit(**both_or_neither, nb_concepts=2, name="x")


def test_dictionaries_are_imported_labelled_listed_and_removed(calls: Client) -> None:
    made = calls.import_dictionary("y", CONCEPTS)
    assert made.reference == "y@1"
    labelled = calls.label("y", {"team": "vision"}, {1: "loop"})
    assert (labelled.labels, labelled.record["concept_labels"]) == ({"team": "vision"}, {"1": "loop"})
    assert calls.label("y@1", {"team": None}).labels == {}
    assert [d.reference for d in calls.dictionaries()] == ["y@1"]
    np.testing.assert_array_equal(calls.get_dictionary("y"), CONCEPTS)
    calls.remove("y@1")
    with pytest.raises(UnknownDictionary):
        calls.dictionary("y")


def test_concepts(calls: Client, digits: str) -> None:
    assert calls.concepts(digits)["nb_concepts"] == 2
    assert calls.concept("digits@1", 1)["weights"] == CONCEPTS[1].tolist()
    with pytest.raises(UnknownConcept, match="has 2, from 0"):
        calls.concept(digits, 2)


def test_comparison(calls: Client, digits: str) -> None:
    calls.import_dictionary("turned", CONCEPTS[::-1])
    told = calls.compare(digits, "turned@1")
    assert {(pair["a"], pair["b"]) for pair in told["matches"]} == {(0, 1), (1, 0)}
    assert told["stability"] == 1


def test_jobs(calls: Client, worker: WorkerDouble) -> None:
    worker.fits_hang = True
    job = calls.fit(A, nb_concepts=2, name="x", wait=False)
    assert calls.job(job.id).name == "x"
    job.cancel()
    assert job.state == "cancelled"
    job.cancel()  # its record stays
    assert [j.id for j in calls.jobs(state="cancelled", name="x")] == [job.id]
    assert calls.jobs(state="failed") == []


def test_jobs_come_in_as_many_pages_as_are_asked_for(calls: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those past the newest thousand could not be had."""
    monkeypatch.setattr(api, "MOST_JOBS", 2)
    ids = [calls.fit(A, nb_concepts=2, name="x", wait=False).id for _ in range(5)]
    newest_first = sorted(ids, reverse=True)
    for limit in (1, 2, 3, 4, 5, 100):
        assert [job.id for job in calls.jobs(name="x", limit=limit)] == newest_first[:limit]
    with pytest.raises(InvalidFields):
        calls.jobs(limit=0)


def test_both_clients_turn_pages_alike() -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        job = {"id": str(len(asked)), "name": "x", "state": "queued", "progress": {}}
        return httpx.Response(200, json={"jobs": [job] * 1000 if len(asked) < 3 else [], "next": f"n{len(asked)}"})

    async def listed() -> int:
        async with AsyncClient(transport=httpx.MockTransport(answer)) as client:
            return len(await client.jobs(limit=10_000))

    pages = [{"limit": "1000"}, {"limit": "1000", "cursor": "n1"}, {"limit": "1000", "cursor": "n2"}]
    with Client(transport=httpx.MockTransport(answer)) as client:
        assert len(client.jobs(limit=10_000)) == 2000
    assert asked == pages  # and no more: an empty page is the last, whatever it says
    asked.clear()
    assert asyncio.run(listed()) == 2000
    assert asked == pages


def test_ready(calls: Client, worker: WorkerDouble) -> None:
    assert calls.ready()
    worker.alive = False
    assert not calls.ready()


def test_the_async_client(settings: Settings, worker: WorkerDouble) -> None:
    async def all_of_it() -> None:
        service = create_app(settings, supervisor=worker)
        async with (
            service.router.lifespan_context(service),
            AsyncClient("http://testserver", transport=httpx.ASGITransport(service)) as client,
        ):
            fitted = await client.fit(A, nb_concepts=2, name="x")
            Z = await fitted.encode(A)
            np.testing.assert_array_equal(Z, A @ (await fitted.get_dictionary()).T)
            np.testing.assert_array_equal(await fitted.decode(Z), await client.decode(Z, "x@1"))
            assert (await client.encode(A, "x", full=True)).version == 1
            assert (await client.import_dictionary("x", CONCEPTS)).version == 2
            assert (await client.label("x", {"a": "b"})).labels == {"a": "b"}
            assert [d.reference for d in await client.dictionaries()] == ["x@2"]
            await client.remove("x@2")
            assert (await client.dictionary("x")).version == 1
            assert (await client.concepts("x"))["uses"] == [3, 3]
            assert (await client.concept("x", 1))["weights"] == A[1].tolist()
            assert (await client.compare("x", "x"))["mean_cosine"] == pytest.approx(1)
            (job,) = await client.jobs()
            await job.cancel()
            assert (await job.refresh()).state == "succeeded"
            assert await client.ready()

    asyncio.run(all_of_it())


@pytest.mark.parametrize(
    ("blocking", "asynchronous"), [(Client, AsyncClient), (Job, AsyncJob), (Dictionary, AsyncDictionary)]
)
def test_both_clients_have_the_same_methods(blocking: type, asynchronous: type) -> None:
    def methods(cls: type) -> dict[str, list[inspect.Parameter]]:
        public = {name: f for name, f in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}
        return {
            name.replace("aclose", "close"): list(inspect.signature(f).parameters.values())
            for name, f in public.items()
        }

    assert methods(blocking) == methods(asynchronous)


def test_fit_takes_every_parameter_of_a_fit_and_encode_every_one_of_an_encode() -> None:
    assert set(FitParameters.model_fields) <= set(inspect.signature(Client.fit).parameters)
    instead = {"encoding_format", "data", "reconstruct"}  # JSON's own; A; `full`
    assert set(EncodeRequest.model_fields) - instead <= set(inspect.signature(Client.encode).parameters)


def test_what_is_exported_exists_and_is_sorted() -> None:
    assert sorted(app.client.__all__) == app.client.__all__
    assert all(hasattr(app.client, name) for name in app.client.__all__)


def test_importing_the_client_loads_nothing_of_the_service() -> None:
    unwanted = {
        "torch",
        "numba",
        "sklearn",
        "scipy",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "sqlalchemy",
        "core",
    }
    code = f"import sys, app.client; print(sorted({unwanted!r} & set(sys.modules)))"
    root = Path(app.client.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"


def test_a_dictionary_is_told_by_what_the_client_knows_of_it() -> None:
    """Its version with it; and what is no name is told before anything is sent."""
    known = DictionaryRecord({"name": "digits", "version": 2, "nb_concepts": 2, "n_features": 3})
    made: list[Callable[[Any], api.Call[Any]]] = [api.remove, api.concepts, api.weights, api.dictionary]
    for make in made:
        assert make(known).path.startswith("/dictionaries/digits@2")
    assert api.compare(known, "b").path == "/dictionaries/digits@2/compare/b"
    A = np.ones((2, 3), np.float32)
    options = {"sparse": False, "top_k": None, "clip": False, "full": False, "dtype": "float32"}
    assert api.encode(A, known, **options).query["dictionary"] == "digits@2"  # type: ignore[arg-type]
    assert api.decode(A, known, dtype="float32").query["dictionary"] == "digits@2"
    assert api.fit(A, {"init": known}).query["init"] == "digits@2"
    with pytest.raises(TypeError, match="a dictionary is told by its name"):
        api.encode(A, 7, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a job is told by its id, and not by 7"):
        api.job(7)  # type: ignore[arg-type]


def test_a_concept_is_told_by_its_index() -> None:
    assert api.concept("digits", np.int64(3)).path == "/dictionaries/digits/concepts/3"  # type: ignore[arg-type]
    for no_index in (1.0, "1", None):
        with pytest.raises(
            TypeError, match=f"a concept is told by its index, a whole number, and not by {no_index!r}"
        ):
            api.concept("digits", no_index)  # type: ignore[arg-type]


def unpickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


def test_a_client_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As joblib does, for its processes."""
    known = {"name": "x", "version": 2, "nb_concepts": 2, "n_features": 3}
    with Client("http://there:1", token="ds_a", retries=3, timeout=7, transport=Told()) as client:  # noqa: S106 - none
        digits = unpickled(Dictionary(client, known))
    told = digits._client.job("1").record["progress"]  # asked by the copy, which is not closed
    assert told == {"url": "http://there:1/jobs/1", "authorization": "Bearer ds_a"}
    assert (digits.reference, digits._client._policy) == ("x@2", client._policy)

    monkeypatch.setenv("DICTSERVE_URL", "http://elsewhere:2")

    async def asked() -> dict[str, str]:
        async with unpickled(AsyncClient(token="ds_b", transport=Told())) as client:  # noqa: S106 - none
            return dict((await client.job("1")).record["progress"])

    assert asyncio.run(asked()) == {"url": "http://elsewhere:2/jobs/1", "authorization": "Bearer ds_b"}


class Told(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers with a job, in whose progress is what was asked."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = {"url": str(request.url), "authorization": request.headers["authorization"]}
        return httpx.Response(200, json={"id": "1", "name": "x", "state": "running", "progress": asked})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def test_a_client_that_is_closed_says_so() -> None:
    client = Client(transport=Told(), token="ds_a")  # noqa: S106 - none
    job = client.job("1")
    for _ in range(2):
        client.close()
        for call in (client.jobs, client.ready, job.refresh, job.wait):
            with pytest.raises(ClientClosed, match="make another one"):
                call()
    assert issubclass(ClientClosed, RuntimeError)  # as httpx has it

    async def run() -> None:
        client = AsyncClient(transport=Told(), token="ds_a")  # noqa: S106 - none
        job = await client.job("1")
        for _ in range(2):
            await client.aclose()
            for call in (client.jobs, client.ready, job.refresh, job.wait):
                with pytest.raises(ClientClosed, match="make another one"):
                    await call()

    asyncio.run(run())


@pytest.mark.parametrize("files", ["**/*_relu.npy", Path("**/*_relu.npy"), [Path("**/*_relu.npy")]])
def test_one_pattern_of_files_is_one(files: api.Files) -> None:
    call = api.fit(None, {"name": "a", "nb_concepts": 2}, files)
    assert call.body is not None
    assert json.loads(b"".join(call.body.pieces))["files"] == ["**/*_relu.npy"]  # type: ignore[attr-defined]


def test_a_fit_of_files_takes_numbers_of_numpy() -> None:
    """As one of an array does, whose parameters are a query."""
    told: dict[str, Any] = {"nb_concepts": np.int64(4), "tol": np.float32(0.5), "clip": np.bool_(False)}
    call = api.fit(None, told, ["A.npy"])
    assert call.body is not None
    asked = json.loads(b"".join(call.body.pieces))  # type: ignore[attr-defined]
    assert asked == {"nb_concepts": 4, "tol": 0.5, "clip": False, "files": ["A.npy"]}
    with pytest.raises(TypeError, match="is no parameter"):
        api.fit(None, {"seed": object()}, ["A.npy"])  # type: ignore[dict-item]


IMPATIENT = [{"timeout": None}, {"timeout": 0}, {"timeout": -1}, {"retries": -1}, {"retries": None}]


@pytest.mark.parametrize("options", IMPATIENT)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_is_no_patience_is_refused_at_once(kind: type[Client | AsyncClient], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(timeout|retries) is "):
        kind("http://127.0.0.1:1", **options)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_patience_may_be_a_number_of_numpy(kind: type[Client | AsyncClient]) -> None:
    policy = kind(timeout=np.float32(5), retries=np.int64(2))._policy  # type: ignore[arg-type]
    assert (policy.timeout_seconds, policy.retries) == (5, 2)
    assert type(policy.timeout_seconds) is float  # a clock's time in float32 is off by minutes
