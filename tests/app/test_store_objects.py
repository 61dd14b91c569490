"""What is the object store's own: copies, what others see and when, those who die on the way, and no answer."""

import errno
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from typer.testing import CliRunner

from app import reachability, services
from app.cli import main
from app.errors import (
    DataChanged,
    DictionaryDamaged,
    PreconditionFailed,
    StoreAway,
    StoreFull,
    StoreUnavailable,
    UnknownDictionary,
)
from app.jobs import loops, retrying, runner
from app.jobs.jobs import Jobs
from app.main import create_app
from app.settings import Settings
from app.store import bucket, checkpoint_file, object_cache, shared_files
from app.store import objects as store_objects
from app.store import uploads as app_uploads
from app.store.bucket import Bucket, Entry, bucket_of
from app.store.checkpoint_file import FORMAT, Metadata
from app.store.checkpoints import Checkpoints
from app.store.object_store import ObjectStore
from app.store.records import Labels
from app.store.references import Reference
from app.store.shared_files import GRACE_SECONDS, SWEEP_SECONDS, SharedFiles
from app.store.store import Store
from app.store.uploads import Uploads
from demo.service import npy
from tests.app.conftest import D, WorkerDouble, ended, publish
from tests.figures import figures
from tests.s3 import S3
from tests.waiting import until

LISTING_SECONDS = 600.0  # longer than any machine takes for a test


@pytest.fixture
def objects(s3: S3) -> ObjectStore:
    return ObjectStore(s3.new_url(), s3.options, listing_seconds=LISTING_SECONDS)


@pytest.fixture
def store(objects: ObjectStore, tmp_path: Path) -> Store:
    return opened(tmp_path / "one", objects)


@pytest.fixture
def other(objects: ObjectStore, tmp_path: Path) -> Store:
    return opened(tmp_path / "other", objects)


def settings_of(directory: Path, objects: ObjectStore, **told: Any) -> Settings:
    """Of a service that has its dictionaries there."""
    return Settings(store=directory / "own", objects=objects.url, objects_options=objects.options, **told)


def opened(root: Path, objects: ObjectStore) -> Store:
    store = Store(root, objects)
    store.workplace.open()
    return store


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What buckets have been asked for."""
    asked = []
    for name in ("read", "entries", "tag"):
        real = getattr(Bucket, name)

        def noted(self: Bucket, key: str = "", *, real=real) -> object:  # type: ignore[no-untyped-def]
            asked.append(key)
            return real(self, key)

        monkeypatch.setattr(Bucket, name, noted)
    return asked


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have so much time pass for what has been listed."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + seconds, time=time.time, sleep=time.sleep)
    monkeypatch.setattr(store_objects, "time", clock)


# -- copies -----------------------------------------------------------------------------------------------


def test_what_is_at_hand_asks_for_nothing(store: Store, other: Store, asked: list[str]) -> None:
    publish(store, "a", D)
    assert other.at_hand(Reference("a")) is None
    assert other.find_and_fetch(Reference("a")).version == 1
    asked.clear()
    record = other.at_hand(Reference("a"))
    assert record is not None
    assert record.version == 1
    np.testing.assert_array_equal(other.load("a", 1), D)
    assert other.at_hand(Reference("a", 2)) is None  # as far as is known without asking
    assert asked == []


def test_a_worker_loads_the_copies_that_the_service_has_made(
    store: Store, objects: ObjectStore, asked: list[str]
) -> None:
    publish(store, "a", D)
    worker = Store(store.root, objects)
    asked.clear()
    np.testing.assert_array_equal(worker.load("a", 1), D)
    assert asked == []


def test_a_damaged_copy_is_made_anew_and_a_damaged_object_refused(store: Store) -> None:
    publish(store, "a", D)
    copy = store.workplace.directory / "objects" / store.record(Reference("a")).sha256
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    np.testing.assert_array_equal(store.load("a", 1), D)
    assert store.bucket is not None
    store.bucket.put("a/1/dictionary.safetensors", b"x")
    np.testing.assert_array_equal(store.load("a", 1), D)  # the copy is whole
    with pytest.raises(DictionaryDamaged, match="SHA-256"):
        store.load("a", 1, cached=False)
    copy.unlink()
    with pytest.raises(DictionaryDamaged, match="SHA-256"):
        store.load("a", 1)
    assert not copy.exists()


def test_a_record_whose_copy_the_disk_has_lost_is_read_again(store: Store, objects: ObjectStore) -> None:
    """As after a power cut: copies are not fsynced. Else its job would publish a second time."""
    publish(store, "a", D, job="1")
    copy = store.workplace.directory / "objects" / "a@1"
    whole = copy.read_bytes()
    for lost in (b"", whole[:-1]):
        copy.write_bytes(lost)
        made = Store(store.root, objects).made_by("a", "1")
        assert made is not None
        assert copy.read_bytes() == whole


def test_copies_are_bounded(objects: ObjectStore, tmp_path: Path) -> None:
    weights = 1000
    store = opened(tmp_path / "small", ObjectStore(objects.url, objects.options, cache_bytes=3 * 4 * weights))
    for i in range(5):
        publish(store, "a", np.full((1, weights), i, np.float32))
    kept = sum(path.stat().st_size for path in (store.workplace.directory / "objects").iterdir())
    assert 4 * weights < kept <= 3 * 4 * weights
    assert [store.load("a", version)[0, 0] for version in range(1, 6)] == [0, 1, 2, 3, 4]


def test_without_room_for_copies_it_goes_on(store: Store, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "a", D)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(object_cache.Path, "write_bytes", full)
    assert other.find_and_fetch(Reference("a")).version == 1
    np.testing.assert_array_equal(other.load("a", 1), D)


# -- what others see --------------------------------------------------------------------------------------


def test_what_others_do_is_seen_after_the_time_that_is_told(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "a", D)
    assert (other.versions("a"), other.names()) == ([1], ["a"])
    publish(store, "a", D)
    assert store.versions("a") == [1, 2]
    assert other.versions("a") == [1]
    later(monkeypatch, LISTING_SECONDS)
    assert other.versions("a") == [1, 2]
    store.remove("a", [1, 2])
    assert store.names() == []
    assert other.versions("a") == [1, 2]
    later(monkeypatch, 2 * LISTING_SECONDS)
    assert other.names() == []


def test_that_there_is_none_is_not_told_by_an_old_list(store: Store, other: Store, asked: list[str]) -> None:
    """Who was told of it by another service asks this one next."""
    assert other.versions("a") == []
    publish(store, "a", D)
    assert other.resolve(Reference("a")) == ("a", 1)
    publish(store, "a", D)
    assert other.find_and_fetch(Reference("a", 2)).version == 2
    asked.clear()
    for _ in range(2):
        with pytest.raises(UnknownDictionary):
            other.resolve(Reference("a", 3))
    assert asked == ["a", "a"]


def test_nobody_waits_for_a_list_of_a_name_that_is_in_use(
    objects: ObjectStore, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, objects, objects_listing_seconds=LISTING_SECONDS)
    worker = WorkerDouble(settings)
    app = create_app(settings, supervisor=worker)
    worker.store = app.state.services.store
    goes_on = threading.Event()
    real = Bucket.entries

    def slow(self: Bucket, prefix: str = "") -> dict[str, Entry]:
        asked.append("slow")
        assert goes_on.wait(60)
        return real(self, prefix)

    with TestClient(app) as client:

        def encode() -> None:
            assert client.post("/encode?dictionary=a", content=npy(D)).status_code == 200

        assert client.put("/dictionaries/a", content=npy(D)).status_code == 201
        encode()
        asked.clear()
        later(monkeypatch, 0.7 * LISTING_SECONDS)
        encode()
        assert asked == []
        later(monkeypatch, 0.8 * LISTING_SECONDS)
        monkeypatch.setattr(Bucket, "entries", slow)
        for _ in range(3):
            encode()
        until(lambda: asked == ["slow"])
        goes_on.set()
        until(lambda: asked == ["slow", "a"])
        later(monkeypatch, 1.5 * LISTING_SECONDS)
        encode()
        assert asked == ["slow", "a"]


def test_what_is_changed_or_removed_is_looked_at_first(
    objects: ObjectStore, tmp_path: Path, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `If-Match` nothing goes that the client has not seen; without it, all goes that there is."""
    settings = settings_of(tmp_path, objects, objects_listing_seconds=LISTING_SECONDS)
    publish(other, "a", D)
    with served(settings) as client:

        def etag() -> dict[str, str]:
            return {"if-match": client.get("/dictionaries/a").headers["etag"]}

        for change in (
            lambda: other.relabel("a", 1, lambda old: Labels(labels={"keep": "this"})),
            lambda: publish(other, "a", D),
        ):
            seen = etag()
            change()
            assert client.delete("/dictionaries/a", headers=seen).status_code == 412
            assert client.patch("/dictionaries/a", json={"labels": {}}, headers=seen).status_code == 412
        assert other.versions("a") == [1, 2]
        publish(other, "a", D)
        assert client.delete("/dictionaries/a").status_code == 204
    assert other.bucket is not None
    assert not [key for key in other.bucket.entries("a") if key.endswith("meta.json")]


def test_a_listing_from_before_a_publication_is_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "a", D)
    real = Bucket.entries

    def slow(self: Bucket, prefix: str = "") -> dict[str, Entry]:
        entries = real(self, prefix)
        monkeypatch.setattr(Bucket, "entries", real)
        publish(store, "b", D)
        return entries

    monkeypatch.setattr(Bucket, "entries", slow)
    assert store.names() == ["a"]
    assert store.names() == ["a", "b"]


# -- who waits for a list ---------------------------------------------------------------------------------


class Counted:
    """A lock that tells how many have come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = threading.Semaphore(0)

    def __enter__(self) -> None:
        self._came.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, others: int) -> None:
        for _ in range(others):
            assert self._came.acquire(timeout=60)


@pytest.fixture
def waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Who waits to list something."""
    counted = Counted()
    monkeypatch.setattr(store._shelf, "_asking", [counted] * store_objects.LOCKS)
    monkeypatch.setattr(store._shelf, "_asking_names", counted, raising=False)
    return counted


def slow_at_first(store: Store, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> list[str]:
    """Have something happen before the answer to a store's first list is there; what it lists."""
    assert store.bucket is not None
    real, listed = store.bucket.entries, []

    def entries(prefix: str = "") -> dict[str, Entry]:
        listed.append(prefix)
        first, found = len(listed) == 1, real(prefix)
        if first:
            meanwhile()
        return found

    monkeypatch.setattr(store.bucket, "entries", entries)
    return listed


MANY = 8


@pytest.mark.parametrize("what", ["", "a"])
def test_a_list_that_takes_longer_than_it_holds_serves_all_who_wait(
    store: Store, other: Store, waiting: Counted, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(other, "a", D)

    def meanwhile() -> None:
        waiting.wait(MANY)
        later(monkeypatch, 2 * LISTING_SECONDS)

    listed = slow_at_first(store, monkeypatch, meanwhile)
    with ThreadPoolExecutor(MANY) as threads:
        found = list(threads.map(lambda _: store.versions(what) if what else store.names(), range(MANY)))
    assert found == [[1] if what else ["a"]] * MANY
    assert listed == [what]
    assert not store.knows("a")  # for who comes now


def test_what_is_to_be_fresh_was_asked_for_after_the_call(
    store: Store, other: Store, waiting: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of those who wait, for all of them."""
    publish(other, "a", D)
    begun = threading.Event()

    def meanwhile() -> None:
        publish(other, "a", D)
        begun.set()
        waiting.wait(MANY)

    def fresh(_: int) -> list[int]:
        return store._shelf._fresh("a").versions  # type: ignore[attr-defined]

    listed = slow_at_first(store, monkeypatch, meanwhile)
    with ThreadPoolExecutor(MANY) as threads:
        first = threads.submit(fresh, 0)
        assert begun.wait(60)
        others = list(threads.map(fresh, range(1, MANY)))
    assert (first.result(), others) == ([1], [[1, 2]] * (MANY - 1))
    assert listed == ["a", "a"]


def test_who_waits_for_a_list_sees_what_was_written_here_before(
    store: Store, other: Store, waiting: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(other, "a", D)
    begun = threading.Event()

    def meanwhile() -> None:
        begun.set()
        waiting.wait(2)

    slow_at_first(store, monkeypatch, meanwhile)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(store.labels, "a", 1)
        assert begun.wait(60)
        store.relabel("a", 1, lambda labels: labels.model_copy(update={"labels": {"b": "c"}}))
        assert store.labels("a", 1).labels == {"b": "c"}
        assert first.result().labels == {}
    assert store.labels("a", 1).labels == {"b": "c"}


def test_no_name_waits_for_the_list_of_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done = threading.Event(), threading.Event()

    def meanwhile() -> None:
        begun.set()
        assert done.wait(60)

    slow_at_first(store, monkeypatch, meanwhile)
    each = {hash(name) % store_objects.LOCKS: name for name in (f"n{i}" for i in range(2000))}
    with ThreadPoolExecutor(2) as threads:
        names = threads.submit(store.names)
        try:
            assert begun.wait(60)
            assert threads.submit(store.versions, each[0]).result(timeout=30) == []
        finally:
            done.set()
        assert names.result() == []


def test_a_version_that_was_seen_is_not_hidden_by_an_older_list(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(other, "a", D)

    def meanwhile() -> None:
        publish(other, "a", D)
        assert store.versions("a") == [1, 2]

    slow_at_first(store, monkeypatch, meanwhile)
    assert store.names() == ["a"]
    assert store.versions("a") == [1, 2]


# -- who dies on the way ----------------------------------------------------------------------------------


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever publishes dies once the weights are there."""
    real = Bucket.put

    def put(self: Bucket, key: str, content: bytes) -> None:
        if key.endswith("meta.json"):
            raise KeyboardInterrupt
        real(self, key, content)

    monkeypatch.setattr(Bucket, "put", put)


@pytest.mark.usefixtures("dying")
def test_half_a_version_is_none_and_is_swept_once_it_is_old(
    store: Store, other: Store, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        publish(store, "a", D)
    assert store.bucket is not None
    left = {"a/1/claim", "a/1/dictionary.safetensors"}
    assert set(store.bucket.entries()) == left
    assert other.names() == other.versions("a") == []
    other.sweep()
    assert set(store.bucket.entries()) == left  # whoever writes it may be alive
    monkeypatch.undo()
    assert publish(other, "a", D) == 2
    clock = SimpleNamespace(
        monotonic=time.monotonic, time=lambda: time.time() + store_objects.GRACE_SECONDS + 60, sleep=time.sleep
    )
    monkeypatch.setattr(store_objects, "time", clock)
    other.sweep()
    assert set(store.bucket.entries()) == {"a/2/claim", "a/2/dictionary.safetensors", "a/2/meta.json"}
    other.remove("a", [2])
    other.sweep()
    assert set(store.bucket.entries()) == {"a/2/claim"}
    assert publish(other, "a", D) == 3


def test_who_publishes_too_slowly_gives_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_objects, "PUBLISH_SECONDS", 0.0)
    with pytest.raises(StoreUnavailable, match="too long"):
        publish(store, "a", D)
    assert store.names() == []


def test_an_attempt_that_another_overtakes_publishes_nothing(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing but the claim."""
    assert store.bucket is not None
    put = store.bucket.put

    def overtaken(key: str, content: bytes) -> None:
        put(key, content)
        publish(other, "a", D, job="1")

    monkeypatch.setattr(store.bucket, "put", overtaken)
    assert publish(store, "a", 2 * D, job="1") == 2
    left = {"a/1/claim", "a/2/claim", "a/2/dictionary.safetensors", "a/2/meta.json"}
    assert store.bucket.entries("a").keys() == left
    np.testing.assert_array_equal(store.load("a", 2), D)


def test_what_was_swept_while_its_machine_slept_is_not_published(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For hours, which its own clock does not count."""
    publish(store, "a", D)
    real = Bucket.put
    hours = store_objects.GRACE_SECONDS + 60

    def put(self: Bucket, key: str, content: bytes) -> None:
        real(self, key, content)
        with monkeypatch.context() as patch:
            clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + hours, sleep=time.sleep)
            patch.setattr(store_objects, "time", clock)
            other.sweep()

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", put)
        with pytest.raises(StoreUnavailable, match="swept"):
            publish(store, "a", D)
    assert store.versions("a") == [1]
    assert publish(store, "a", D) == 2  # all of it is written again
    np.testing.assert_array_equal(other.load("a", 2), D)


def test_versions_that_were_copied_into_the_bucket_are_versions(store: Store, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    local.workplace.open()
    publish(local, "a", D)
    assert store.bucket is not None
    for path in (local.root / "a" / "1").iterdir():
        store.bucket.upload(path, f"a/1/{path.name}")
    np.testing.assert_array_equal(store.load(*store.resolve(Reference("a"))), D)
    store.remove("a", [1])
    assert publish(store, "a", D) == 2


# -- no answer --------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_is_silent_is_not_waited_for(
    silent: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket.S3_CONFIG, "read_timeout", 0.2)
    monkeypatch.setattr(reachability, "ASK_SECONDS", 60.0)
    options = s3.options | {"endpoint_url": silent, "config_kwargs": {}}
    store = Store(tmp_path, ObjectStore("s3://bucket/models", options))
    for patience in (30.0, 0.5):  # and those who come next are told at once
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot be used: ReadTimeoutError"):
            store.record(Reference("a"))
        assert time.monotonic() - begun < patience
    assert store.bucket is not None
    assert not store.bucket.is_up


def test_nobody_listens(s3: S3, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = s3.options | {"endpoint_url": f"http://127.0.0.1:{port}"}
    store = Store(tmp_path, ObjectStore("s3://bucket/models", options))
    with pytest.raises(StoreUnavailable, match="EndpointConnectionError"):
        store.names()


def test_no_bucket(s3: S3, tmp_path: Path) -> None:
    store = Store(tmp_path, ObjectStore("s3://there-is-none/models", s3.options))
    with pytest.raises(StoreUnavailable, match="no bucket"):
        store.names()
    with pytest.raises(StoreUnavailable, match="no bucket"):
        publish(store, "a", D)


@pytest.mark.parametrize(
    ("code", "status", "kind", "said"),
    [
        ("AccessDenied", 403, StoreUnavailable, "refuses this service: AccessDenied"),
        ("QuotaExceeded", 400, StoreFull, "no room"),
        ("XMinioStorageFull", 507, StoreFull, "no room"),
        ("InvalidRequest", 400, StoreUnavailable, "refuses this service: InvalidRequest"),
        ("RequestTimeout", 400, StoreAway, "cannot be used: RequestTimeout"),
        ("SlowDown", 503, StoreAway, "cannot be used: SlowDown"),
        ("InternalError", 500, StoreAway, "cannot be used: InternalError"),
    ],
)
def test_what_the_server_refuses(  # type: ignore[no-untyped-def]
    store: Store, monkeypatch: pytest.MonkeyPatch, code: str, status: int, kind, said: str
) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    def refuse(*_: object, **__: object) -> None:
        answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise translate_boto_error(ClientError(answer, "PutObject"))

    assert store.bucket is not None
    monkeypatch.setattr(store.bucket._fs, "pipe_file", refuse)
    with pytest.raises(kind, match=said) as raised:
        publish(store, "a", D)
    assert type(raised.value) is kind
    assert store.bucket.is_up == (kind is not StoreAway)


@pytest.mark.parametrize("status", [500, 503])
def test_a_request_that_the_server_fails_once_is_sent_again(store: Store, s3: S3, status: int) -> None:
    """S3 says that clients are to."""
    for before in range(5):  # of a publication's requests
        s3.failures[:] = [0] * before + [status]
        assert publish(store, "a", D) == before + 1
        assert s3.failures == []
    assert store.bucket is not None
    assert store.bucket.is_up
    s3.failures[:] = [status] * 2
    with pytest.raises(StoreAway):
        publish(store, "a", D)


def test_urls_that_are_none(tmp_path: Path) -> None:
    for bad in ("models", "s3://", "memory://models"):
        with pytest.raises(ValueError, match=r"not the URL|one process's own"):
            Settings(objects=bad)
    with pytest.raises(ValueError, match="DICTSERVE_OBJECTS"):
        Settings(store="s3://bucket/models")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        Store(tmp_path, ObjectStore("what://bucket/models"))


def served(settings: Settings) -> TestClient:
    return TestClient(create_app(settings, supervisor=WorkerDouble(settings)), raise_server_exceptions=False)


def test_a_start_while_it_is_away_serves_jobs_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(services, "AGAIN_SECONDS", 0.02)
    own = S3()
    settings = Settings(
        store=tmp_path / "own",
        objects=own.new_url(),
        objects_options=own.options,
        database_url=f"sqlite:///{tmp_path / 'jobs.sqlite3'}",
    )
    own.server.stop()
    with served(settings) as client:

        def fit() -> Response:
            return client.post("/fit?name=a&nb_concepts=2", content=npy(D))

        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert figures(client)["dictserve_store_available",] == 0
        for refused in (client.get("/dictionaries"), fit()):
            assert (refused.status_code, refused.json()["type"]) == (503, "store-unavailable")
        own.start()
        accepted = until(lambda: answer if (answer := fit()).status_code == 202 else None, every=0.05)
        assert ended(client, accepted.json()["id"])["version"] == 1
    own.server.stop()


@pytest.fixture
def fitting(objects: ObjectStore, tmp_path: Path) -> Iterator[TestClient]:
    """A service whose jobs others may take up."""
    with served(settings_of(tmp_path, objects, database_url=f"sqlite:///{tmp_path / 'jobs.sqlite3'}")) as client:
        yield client


def fit(client: TestClient) -> str:
    id: str = client.post("/fit?name=a&nb_concepts=2", content=npy(D)).json()["id"]
    return id


def test_a_fit_is_left_to_others_while_the_store_does_not_answer_here(
    fitting: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "AWAY_SECONDS", 0.0)
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(loops, "LOOK_SECONDS", 0.02)
    is_up = True

    def away(*_: object) -> None:
        nonlocal is_up
        is_up = False
        raise StoreAway("the object store cannot be used")

    def told(id: str) -> tuple[str, int]:
        job = fitting.get(f"/jobs/{id}").json()
        return job["state"], job["attempts"]

    with monkeypatch.context() as patch:
        patch.setattr(Store, "made_by", away)
        patch.setattr(Store, "is_up", property(lambda _: is_up))
        id = fit(fitting)
        until(lambda: told(id) == ("queued", 1))
        time.sleep(0.2)
        assert told(id) == ("queued", 1)
    assert (ended(fitting, id)["state"], told(id)) == ("succeeded", ("succeeded", 2))


def test_who_was_taken_for_dead_at_the_last_moment_publishes_nothing(
    fitting: TestClient, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()
    monkeypatch.setattr(Jobs, "is_wanted", lambda *_: asked.set())
    id = fit(fitting)
    assert asked.wait(60)
    until(lambda: not fitting.app.state.services.fits._loops.runner_of(id))  # type: ignore[attr-defined]
    assert fitting.get(f"/jobs/{id}").json()["version"] is None
    assert other.versions("a") == []


def test_a_store_that_is_away_is_told_and_comes_back(tmp_path: Path) -> None:
    """tests/e2e/test_hosts.py has real services, whose object store is silent."""
    own = S3()
    settings = Settings(
        store=tmp_path / "own", objects=own.new_url(), objects_options=own.options, objects_listing_seconds=0.0
    )
    worker = WorkerDouble(settings)
    app = create_app(settings, supervisor=worker)
    worker.store = app.state.services.store
    with TestClient(app) as client:

        def encode(name: str) -> Response:
            return client.post(f"/encode?dictionary={name}", content=npy(D))

        def put() -> Response:
            return client.put("/dictionaries/digits", content=npy(D))

        assert put().status_code == 201
        before = encode("digits")
        assert before.status_code == 200
        own.server.stop()
        for refused in (
            lambda: client.get("/dictionaries"),
            lambda: client.get("/dictionaries/digits"),
            lambda: encode("another"),
            put,
        ):
            begun = time.monotonic()
            answer = refused()
            assert (answer.status_code, answer.json()["type"]) == (503, "store-unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert time.monotonic() - begun < 30
        assert encode("digits").content == before.content  # its dictionary is at hand
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["away"]) == (200, ["store"])
        assert figures(client)["dictserve_store_available",] == 0
        own.start()
        until(lambda: client.get("/dictionaries/digits").status_code == 200)
        assert client.get("/readyz").json()["away"] == []
        assert encode("digits").content == before.content
    own.server.stop()


@pytest.mark.parametrize("wrong", ["bucket", "credentials"])
def test_a_start_with_what_will_not_come_by_itself_is_refused(
    s3: S3, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3.environment:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    url, options, told = "s3://there-is-none/models", s3.options, "there is no bucket"
    if wrong == "credentials":
        url, options, told = s3.new_url(), {"endpoint_url": s3.endpoint}, "Unable to locate credentials"
    settings = Settings(store=tmp_path / "own", objects=url, objects_options=options)
    with pytest.raises(StoreUnavailable, match=told) as refused, served(settings):
        pass
    assert not isinstance(refused.value, StoreAway)


# -- the local disk beside it -----------------------------------------------------------------------------


def test_what_is_brought_is_whole_however_many_pieces_it_has(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PIECE_BYTES", 10)
    monkeypatch.setattr(bucket, "PIECES_AT_ONCE", 2)
    assert store.bucket is not None
    for nbytes in (0, 10, 20, 45):
        content = os.urandom(nbytes)
        store.bucket.put("a", content)
        store.bucket.download("a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        store.bucket.download("b", tmp_path / "b")


@pytest.mark.parametrize("meanwhile", ["removed", "replaced"])
def test_what_changes_while_it_is_brought_is_asked_for_again(
    store: Store, tmp_path: Path, meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = store.bucket
    assert objects is not None
    objects.put("a", b"content")
    real = objects._fs.cat_ranges

    def changed(*told: object, **how: object) -> object:
        objects.delete("a") if meanwhile == "removed" else objects.put("a", b"longer content")
        return real(*told, **how)

    monkeypatch.setattr(objects._fs, "cat_ranges", changed)
    with pytest.raises(StoreUnavailable, match="replaced or removed"):
        objects.download("a", tmp_path / "a")


@pytest.mark.parametrize(
    ("what", "kind", "told"),
    [
        ("full", StoreFull, "the store's disk is full"),
        ("away", StoreUnavailable, "the store cannot be used: No such file or directory"),
        ("gone", StoreUnavailable, "the store cannot be used: No such file or directory"),
        ("failing", StoreUnavailable, "the store cannot be used: Input/output error"),
    ],
)
def test_errors_of_the_local_disk_are_not_told_as_the_object_stores(  # type: ignore[no-untyped-def]
    store: Store, tmp_path: Path, what: str, kind, told: str
) -> None:
    objects, full = store.bucket, tmp_path / "full"
    assert objects is not None
    full.symlink_to("/dev/full")
    objects.put("a", b"content")
    moved: dict[str, Callable[[], None]] = {
        "full": lambda: objects.download("a", full),
        "away": lambda: objects.download("a", tmp_path / "none" / "a"),
        "gone": lambda: objects.upload(tmp_path / "none", "b"),
        "failing": lambda: objects.upload(Path("/proc/self/mem"), "b"),
    }
    with pytest.raises(kind, match=told) as raised:
        moved[what]()
    assert type(raised.value) is kind
    assert objects.is_up


# -- a directory as an object store -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["put", "create", "upload", "copy"])
def test_what_is_written_to_a_directory_is_on_its_disk_before_it_has_its_name(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = bucket_of(ObjectStore(f"file://{tmp_path}"))
    directory.put("a", b"content")
    placed, real, synced = tmp_path / "b" / "c", os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, placed.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write: dict[str, Callable[[], object]] = {
        "put": lambda: directory.put("b/c", b"content"),
        "create": lambda: directory.create("b/c", b"content"),
        "upload": lambda: directory.upload(tmp_path / "a", "b/c"),
        "copy": lambda: directory.copy("a", "b/c"),
    }
    write[way]()
    assert synced == [(placed.stat().st_ino, False), (placed.parent.stat().st_ino, True)]
    assert placed.read_bytes() == b"content"


# -- check ------------------------------------------------------------------------------------------------


def test_check_reads_the_objects_and_sets_damage_aside(store: Store, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("a", "a", "b"):
        publish(store, name, D)
    assert store.bucket is not None
    store.bucket.put("a/2/dictionary.safetensors", b"x")
    store.bucket.put("notes.txt", b"")

    def check(*options: str) -> tuple[int, str]:
        told = ["check", "--store", str(store.root), "--objects", store.bucket.url, *options]  # type: ignore[union-attr]
        result = CliRunner().invoke(main, told)
        return result.exit_code, result.output

    code, told = check()
    assert code == 1
    assert told.startswith("damaged: a@2: dictionary.safetensors of a@2 is not what was written")
    assert "stray: notes.txt: not an object of a dictionary's version\n" in told
    code, told = check("--repair")
    assert code == 0
    aside = f"{store.bucket.url}/.dictserve/quarantine/a@2."
    assert f"set aside as {aside}" in told
    kept = [key for key in store.bucket.entries() if key.startswith(".dictserve/quarantine/a@2.")]
    assert {key.rpartition("/")[2] for key in kept} == {"dictionary.safetensors", "meta.json"}
    assert check()[0] == 0
    assert publish(store, "a", D) == 3


# -- files of jobs ----------------------------------------------------------------------------------------


def shared(store: Store, kind: str) -> SharedFiles:
    assert store.bucket is not None
    return SharedFiles(store.bucket, kind)


def test_an_upload_is_had_by_who_takes_the_job_up(store: Store, other: Store) -> None:
    uploads, others = (Uploads(s.workplace, shared(s, "uploads")) for s in (store, other))
    data = uploads.stage(D, uploads.new_path()).as_record()
    others.path(data["file"]).write_bytes(b"as an attempt before has left it")
    others.fetch(data)
    assert others.path(data["file"]).read_bytes() == uploads.path(data["file"]).read_bytes()
    others.discard(data["file"])
    others.discard(data["file"])
    assert not others.path(data["file"]).exists()
    with pytest.raises(DataChanged, match="send them again"):
        others.fetch(data)
    uploads.fetch(data)  # its own are there


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
def test_an_upload_that_the_disk_does_not_tell_of_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    uploads = Uploads(store.workplace, shared(store, "uploads"))
    data = uploads.stage(D, uploads.new_path()).as_record()
    look = os.stat

    def failing(path: Any, *args: Any, **told: Any) -> os.stat_result:
        if str(path).endswith(data["file"]):
            raise OSError(code, os.strerror(code))
        return look(path, *args, **told)

    monkeypatch.setattr("os.stat", failing)
    with pytest.raises(StoreUnavailable, match=os.strerror(code)):
        uploads.fetch(data)


def test_uploads_that_no_job_needs_are_swept_once_they_are_old(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, others = (Uploads(s.workplace, shared(s, "uploads")) for s in (store, other))
    needed, ended = (uploads.stage(D, uploads.new_path()).file for _ in range(2))
    alive = {store.workplace.owner, other.workplace.owner}
    for each in (uploads, others):
        each.sweep(lambda: alive, lambda: {needed})
        each.sweep_shared(lambda: {needed})
    assert {path.name for path in store.workplace.activations.iterdir()} == {needed, ended}
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + SWEEP_SECONDS, time=lambda: time.time() + GRACE_SECONDS + 60
    )
    for module in (app_uploads, shared_files):
        monkeypatch.setattr(module, "time", clock)
    uploads.sweep(lambda: alive, lambda: {needed})
    others.sweep_shared(lambda: {needed})
    assert [path.name for path in store.workplace.activations.iterdir()] == [needed]
    assert store.bucket is not None
    assert [key.rpartition("/")[2] for key in store.bucket.entries(".dictserve/uploads")] == [needed]


def checkpoint(iteration: int) -> bytes:
    metadata = Metadata(FORMAT, "job", {}, {"iteration": float(iteration)}, 0.0)
    file = io.BytesIO()
    checkpoint_file.write(file, metadata, {}, lambda: False)
    return file.getvalue()


@pytest.mark.parametrize(("here", "there"), [(7, 5), (5, 7), (7, None), (None, 7)])
def test_the_checkpoint_that_is_further_on_is_gone_on_with(
    store: Store, other: Store, here: int | None, there: int | None
) -> None:
    """Those of this disk may be newer than the objects, which could not be written for a while."""
    mine = Checkpoints(other.workplace, shared(other, "checkpoints"))
    if here is not None:
        (other.workplace.checkpoints / "1-dead.job.safetensors").write_bytes(checkpoint(here))
    if there is not None:
        assert store.bucket is not None
        key = mine.shared_as("job")
        assert key is not None
        store.bucket.put(key, checkpoint(there))
    mine.adopt("job")
    assert mine.path("job").read_bytes() == checkpoint(7)
    assert list(other.workplace.staging.iterdir()) == []


@pytest.mark.parametrize("asked", ["entries", "download"])
def test_a_checkpoint_of_this_disk_is_adopted_though_objects_cannot_be_asked(
    other: Store, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    assert other.bucket is not None
    other.bucket.put(".dictserve/checkpoints/2-dead.job.safetensors", checkpoint(5))
    mine = Checkpoints(other.workplace, shared(other, "checkpoints"))
    (other.workplace.checkpoints / "1-dead.job.safetensors").write_bytes(checkpoint(7))

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(other.bucket, asked, away)
    with pytest.raises(StoreUnavailable):  # so that it is asked again
        mine.adopt("job")
    assert mine.path("job").read_bytes() == checkpoint(7)


def test_a_checkpoint_is_had_by_who_takes_the_job_up(store: Store, other: Store) -> None:
    one, another = (Checkpoints(s.workplace, shared(s, "checkpoints")) for s in (store, other))
    key = one.shared_as("job")
    assert key is not None
    assert not another.exists("job")
    another.adopt("job")
    assert not another.path("job").exists()
    assert store.bucket is not None
    store.bucket.put(key, b"state")
    another.path("job").write_bytes(b"older")
    assert another.exists("job")
    another.adopt("job")
    assert another.path("job").read_bytes() == b"state"
    another.discard("job")
    assert not another.exists("job")
    assert list(store.bucket.entries(".dictserve")) == []


def test_a_job_s_next_attempt_replaces_the_objects_of_those_before_it(
    settings: Settings, worker: WorkerDouble, tmp_path: Path
) -> None:
    told = {"database_url": f"sqlite:///{tmp_path}/jobs.sqlite3", "objects": f"memory://{tmp_path}"}
    settings, bucket = settings.model_copy(update=told), bucket_of(ObjectStore(told["objects"]))
    worker.fits_hang = True
    with TestClient(create_app(settings, supervisor=worker)) as client:
        id = client.post("/fit", json={"name": "a", "nb_concepts": 2, "data": D.tolist()}).json()["id"]
        until(lambda: worker.fits, every=0.01)
        earlier = f".dictserve/checkpoints/dead.{id}.safetensors"
        bucket.put(earlier, checkpoint(7))
        worker.fits_hang = False
        assert client.portal is not None
        assert worker._listener is not None
        client.portal.call(worker._listener, None)  # it dies
        assert ended(client, id)["state"] == "succeeded"
        first, second = (fit.checkpoint for fit in worker.fits)
    assert first is not None
    assert second is not None
    assert (first.replaces, second.replaces) == ([], [earlier])
    assert bucket.entries(".dictserve/checkpoints") == {}


def test_activations_of_jobs_that_ended_elsewhere_are_swept(store: Store, other: Store) -> None:
    """At once: a replica that only takes requests would fill its disk with what others have fitted."""
    one, another = (Uploads(s.workplace, shared(s, "uploads")) for s in (store, other))
    files = []
    for _ in range(3):
        A = np.ones((2, 3), np.float32)
        files.append(one.stage(A, one.new_path()))
    on_record, ended, without_job = files
    for staged in (on_record, ended):
        one.note_on_record(staged.file)
    another.fetch(ended.as_record())
    for uploads in (one, another):
        uploads.sweep(lambda: {store.workplace.owner, other.workplace.owner}, lambda: {on_record.file})
    assert {path.name for path in store.workplace.activations.iterdir()} == {on_record.file, without_job.file}
    assert list(other.workplace.activations.iterdir()) == []


# -- the first version ------------------------------------------------------------------------------------


def publish_first(store: Store) -> int:
    return store.publish("a", D, only_first=True, parameters={}, data={}, metrics={}, software={}).version


def test_who_would_be_the_first_waits_for_who_has_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = store.bucket
    assert bucket is not None
    assert bucket.create("a/1/claim", b"")
    with pytest.raises(StoreUnavailable, match="just now"):
        publish_first(store)
    monkeypatch.setattr(store_objects, "UNDER_WAY_SECONDS", -60.0)  # it has died on the way
    assert publish_first(store) == 2


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, file: str) -> Iterator[None]:
    """While the object store has no room for one of a version's files."""
    real = Bucket.put

    def put(self: Bucket, key: str, content: bytes) -> None:
        if key.endswith(file):
            raise StoreFull("no room")
        real(self, key, content)

    with monkeypatch.context() as filled:
        filled.setattr(Bucket, "put", put)
        yield


@pytest.mark.parametrize(
    ("file", "seconds"),
    [
        ("dictionary.safetensors", store_objects.RESUMED_SECONDS),
        ("meta.json", store_objects.TOLD_SECONDS),  # which may come to be there, late
    ],
)
def test_a_publication_that_fails_keeps_nobody_from_being_the_first(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, file: str, seconds: float
) -> None:
    with failing(monkeypatch, file), pytest.raises(StoreFull):
        publish_first(store)
    with pytest.raises(StoreUnavailable, match="just now"):
        publish_first(other)
    for after in (0.9 * seconds, 1.1 * seconds):
        later(monkeypatch, after)
        store.settle()
        assert store.bucket is not None
        left = store.bucket.entries("a")
        assert left["a/1/claim"].size == (0 if after < seconds else len(store_objects.GONE))
    assert left.keys() == {"a/1/claim"}
    assert publish_first(other) == 2


@pytest.mark.parametrize("file", ["dictionary.safetensors", "meta.json"])
def test_what_failed_is_gone_on_with_under_its_number(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    for _ in range(3):
        with failing(monkeypatch, file), pytest.raises(StoreFull):
            publish_first(store)
    assert publish_first(store) == 1
    with failing(monkeypatch, file), pytest.raises(StoreFull):
        publish(store, "a", D)
    assert publish(store, "a", 2 * D) == 3  # the other's files may still be on their way
    assert publish(other, "a", D) == 4
    assert publish(store, "a", D) == 5  # there is a later one by now


@pytest.mark.parametrize("publishes", [publish_first, lambda store: publish(store, "a", D, job="1")])
def test_a_record_that_comes_to_be_there_late_is_kept(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, publishes: Callable[[Store], int]
) -> None:
    late = []
    real = Bucket.put

    def put(self: Bucket, key: str, content: bytes) -> None:
        if key.endswith("meta.json") and not late:
            late.append((key, content))
            raise StoreAway("no answer")
        real(self, key, content)
        if key.endswith("dictionary.safetensors") and late:
            real(self, *late[0])

    monkeypatch.setattr(Bucket, "put", put)
    with pytest.raises(StoreAway):
        publishes(store)
    assert publishes(store) == 1
    np.testing.assert_array_equal(other.load("a", 1), D)


def test_labels_of_one_service_are_changed_one_after_another(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "a", D)
    tries = []
    real = Bucket.replace

    def replace(self: Bucket, key: str, content: bytes, tag: str) -> bool:
        tries.append(key)
        return real(self, key, content, tag)

    assert store.bucket is not None
    monkeypatch.setattr(type(store.bucket), "replace", replace)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: store.relabel("a", 1, lambda old: labelled(old, n)), range(8)))
    assert store.labels("a", 1).concept_labels == dict.fromkeys(range(8), "x")
    assert len(tries) == 7  # the first was created
    monkeypatch.setattr(store_objects, "RELABEL_SECONDS", 0.05)
    with store._shelf._relabelling[store_objects._nth("a")], pytest.raises(StoreUnavailable, match="all the time"):  # type: ignore[attr-defined]
        store.relabel("a", 1, lambda old: old)


def labelled(old: Labels, concept: int) -> Labels:
    return Labels(labels=old.labels, concept_labels=old.concept_labels | {concept: "x"})


def test_a_version_that_comes_meanwhile_is_the_first(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bucket.put

    def put(self: Bucket, key: str, content: bytes) -> None:
        if key == "a/1/dictionary.safetensors":
            publish(other, "a", D)
        real(self, key, content)

    monkeypatch.setattr(Bucket, "put", put)
    with pytest.raises(PreconditionFailed):
        publish_first(store)
    assert other.versions("a") == [2]
    assert store.bucket is not None
    assert list(store.bucket.entries("a/1")) == ["a/1/claim"]
