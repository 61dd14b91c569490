"""``GET /dictionaries/{a}/compare/{b}``, each in a process of its own."""

import asyncio
import os
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from fastapi.testclient import TestClient

from app import comparison
from app.comparison import Comparisons
from app.errors import Overloaded, WorkerUnavailable
from app.http.disconnects import LEAVING, Leaving
from app.memory_cache import KeptBytes
from app.settings import Settings
from app.store.records import DictionaryRecord
from app.store.references import Reference
from app.store.store import Store
from app.worker.matching import compared
from app.worker.messages import Compare
from core.matching import match
from tests.app.conftest import publish
from tests.waiting import until

RANDOM = np.random.default_rng(0)
A, B = RANDOM.random((6, 5)).astype(np.float32), RANDOM.random((9, 5)).astype(np.float32)


@pytest.fixture
def both(client: TestClient, store: Store) -> None:
    publish(store, "a", A)
    publish(store, "b", B)
    publish(store, "wide", np.ones((2, 7), np.float32))


def children() -> list[str]:
    """Processes of comparisons that this one has started."""
    found = []
    for pid in os.listdir("/proc"):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().decode().split("\0")
        except (OSError, ValueError):
            continue
        if "app.worker.matching" in line and str(os.getpid()) in line:
            found.append(pid)
    return found


def test_a_comparison(client: TestClient, both: None) -> None:
    answer = client.get("/dictionaries/a/compare/b@1")
    told, wanted = answer.json(), match(A, B)
    assert answer.status_code == 200, answer.text
    assert told["a"] == {"dictionary": "a", "version": 1, "nb_concepts": 6}
    assert told["b"] == {"dictionary": "b", "version": 1, "nb_concepts": 9}
    assert told["n_features"] == 5
    assert [(pair["a"], pair["b"]) for pair in told["matches"]] == list(zip(wanted.a, wanted.b, strict=True))
    assert [pair["cosine"] for pair in told["matches"]] == pytest.approx(wanted.cosines)
    assert told["mean_cosine"] == pytest.approx(wanted.cosines.mean())
    assert told["median_cosine"] == pytest.approx(np.median(wanted.cosines))
    assert told["stability"] == pytest.approx(wanted.stability)
    assert (
        client.get("/dictionaries/a/compare/b", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    )
    assert children() == []


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons are made in this process, for who asks what is known of them: each other one imports SciPy anew."""

    async def compare(self: Comparisons, a: DictionaryRecord, b: DictionaryRecord) -> bytes:
        told = Compare(str(self._settings.store), self._settings.object_store, str(a.reference), str(b.reference))
        return msgspec.json.encode(compared(told))

    monkeypatch.setattr(Comparisons, "_compare", compare)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The references of the comparisons that were made."""
    made, real = [], Comparisons._compare

    async def counted(self: Comparisons, a: DictionaryRecord, b: DictionaryRecord) -> bytes:
        made.append(tuple(f"{record.name}@{record.version}" for record in (a, b)))
        return await real(self, a, b)

    monkeypatch.setattr(Comparisons, "_compare", counted)
    return made


def test_what_was_found_is_kept_by_what_was_compared(
    client: TestClient, store: Store, both: None, here: None, made: list[tuple[str, ...]]
) -> None:
    first = client.get("/dictionaries/a/compare/b")
    again = client.get("/dictionaries/a@1/compare/b")
    assert (again.content, again.headers["etag"]) == (first.content, first.headers["etag"])
    publish(store, "same", B)
    same = client.get("/dictionaries/a/compare/same").json()
    assert same["b"]["dictionary"] == "same"
    assert same["matches"] == first.json()["matches"]
    assert made == [("a@1", "b@1")]

    publish(store, "b", B[::-1])  # another version, with another order of its concepts
    known = {"if-none-match": first.headers["etag"]}
    newer = client.get("/dictionaries/a/compare/b", headers=known)
    assert newer.status_code == 200
    assert newer.headers["etag"] != first.headers["etag"]
    assert [pair["b"] for pair in newer.json()["matches"]] == [8 - pair["b"] for pair in first.json()["matches"]]
    assert made == [("a@1", "b@1"), ("a@1", "b@2")]


def test_a_tag_that_is_known_is_answered_without_comparing(
    client: TestClient, both: None, here: None, made: list[tuple[str, ...]]
) -> None:
    tag = client.head("/dictionaries/a/compare/b").headers["etag"]
    assert made == [("a@1", "b@1")]
    comparisons = client.app.state.services.comparisons  # type: ignore[attr-defined]
    comparisons._kept = KeptBytes(0, len)
    known = client.get("/dictionaries/a/compare/b", headers={"if-none-match": f"W/{tag}"})
    assert (known.status_code, known.headers["etag"], known.content) == (304, tag, b"")
    assert len(made) == 1
    assert client.get("/dictionaries/a/compare/wide", headers={"if-none-match": "*"}).status_code == 422


def test_what_was_removed_is_not_told_from_what_is_kept(client: TestClient, both: None, here: None) -> None:
    tag = client.get("/dictionaries/a/compare/b").headers["etag"]
    assert client.delete("/dictionaries/b@1").status_code == 204
    for headers in ({}, {"if-none-match": tag}):
        answer = client.get("/dictionaries/a/compare/b", headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (404, "unknown-dictionary")


def test_who_ask_for_the_same_at_once_share_a_process(
    settings: Settings,
    store: Store,
    records: tuple[DictionaryRecord, DictionaryRecord],
    made: list[tuple[str, ...]],
) -> None:
    async def share() -> None:
        comparisons = Comparisons(settings, store)
        waiting = [asyncio.create_task(comparisons.between(*records)) for _ in range(3 * comparison.MOST_WAITING)]
        await asyncio.to_thread(until, lambda: len(made) == 1)
        waiting[0].cancel()  # the one that began it: the others wait on
        first, *others = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert others[0]["n_features"] == 5  # type: ignore[index]
        assert all(other == others[0] for other in others)
        assert await comparisons.between(*records) == others[0]
        await comparisons.end()

    asyncio.run(share())
    assert made == [("a@1", "b@1")]


def test_what_does_not_compare(client: TestClient, both: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, status, said in (
        ("a/compare/wide", 422, "wide@1 has 7 features, a@1 has 5"),
        ("a/compare/nope", 404, "no dictionary 'nope'"),
        ("a@3/compare/b", 404, "no version 3"),
        ("a/compare/.b", 422, "not a name"),
    ):
        answer = client.get(f"/dictionaries/{path}")
        assert answer.status_code == status, answer.text
        assert said in answer.json()["detail"]
    monkeypatch.setattr(comparison, "MOST_CONCEPTS", 8)
    answer = client.get("/dictionaries/a/compare/b")
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["b"])
    assert "b@1 has 9 concepts; at most 8 compare" in answer.json()["detail"]


def test_a_damaged_dictionary_is_told_as_elsewhere(client: TestClient, store: Store, both: None) -> None:
    weights = store.root / "b" / "1" / "dictionary.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    answer = client.get("/dictionaries/a/compare/b")
    assert (answer.status_code, answer.json()["type"]) == (500, "dictionary-damaged"), answer.text


@pytest.fixture
def records(client: TestClient, store: Store, both: None) -> tuple[DictionaryRecord, DictionaryRecord]:
    return store.record(Reference("a")), store.record(Reference("b"))


@pytest.fixture
def forever(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Comparisons whose process waits for what it is never sent."""
    real = asyncio.subprocess.Process.communicate

    async def never(process: asyncio.subprocess.Process, told: bytes) -> tuple[bytes, bytes]:
        await process.wait()
        return await real(process, told)

    monkeypatch.setattr(asyncio.subprocess.Process, "communicate", never)
    yield
    until(lambda: children() == [])


def test_a_process_ends_with_whoever_waited_for_it(
    settings: Settings, store: Store, records: tuple[DictionaryRecord, DictionaryRecord], forever: None
) -> None:
    async def leave() -> None:
        comparisons = Comparisons(settings, store)
        waiting = asyncio.create_task(comparisons.between(*records))
        await asyncio.to_thread(until, lambda: len(children()) == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        await comparisons.end()
        assert children() == []

    asyncio.run(leave())


def test_one_that_takes_too_long_is_given_up(
    settings: Settings,
    store: Store,
    records: tuple[DictionaryRecord, DictionaryRecord],
    forever: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "MOST_SECONDS", 0.2)
    with pytest.raises(Overloaded, match="given up"):
        asyncio.run(Comparisons(settings, store).between(*records))


def test_a_stop_ends_those_under_way_and_waiting(
    settings: Settings,
    store: Store,
    records: tuple[DictionaryRecord, DictionaryRecord],
    forever: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stop() -> None:
        comparisons = Comparisons(settings, store)
        others = [records[1].model_copy(update={"version": i}) for i in range(1, comparison.MOST_WAITING + 1)]
        monkeypatch.setattr(store, "find_and_fetch", lambda reference: None)  # of versions that there are not
        waiting = [asyncio.create_task(comparisons.between(records[0], other)) for other in others]
        await asyncio.to_thread(until, lambda: len(children()) == 1)
        with pytest.raises(Overloaded, match="wait already"):
            await comparisons.between(records[1], records[0])
        await comparisons.end()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {WorkerUnavailable}
        with pytest.raises(WorkerUnavailable):
            await comparisons.between(*records)

    asyncio.run(stop())


def test_a_process_that_dies_is_told(
    settings: Settings, store: Store, records: tuple[DictionaryRecord, DictionaryRecord], forever: None
) -> None:
    async def kill() -> None:
        waiting = asyncio.create_task(Comparisons(settings, store).between(*records))
        await asyncio.to_thread(until, lambda: len(children()) == 1)
        os.kill(int(children()[0]), 9)
        with pytest.raises(WorkerUnavailable, match="died"):
            await waiting

    asyncio.run(kill())


def test_the_client_that_leaves_takes_the_process_with_it(client: TestClient, both: None, forever: None) -> None:
    """As our server tells of it: the app is called with a request whose connection is then lost."""
    app, sent = client.app, []

    async def ask() -> None:
        leaving = Leaving()

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        path = "/dictionaries/a/compare/b"
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": path}
        scope |= {"raw_path": path.encode(), "query_string": b"", "headers": [], "scheme": "http", "root_path": ""}
        scope[LEAVING] = leaving
        asking = asyncio.create_task(app(scope, receive, send))  # type: ignore[operator]
        await asyncio.to_thread(until, lambda: len(children()) == 1)
        leaving.leave()
        await asking
        await asyncio.to_thread(until, lambda: children() == [])

    client.portal.call(ask)  # type: ignore[union-attr]
    assert sent == []
