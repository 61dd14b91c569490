"""A store belongs to one jobs' database: no service removes the activations of another database's jobs."""

import sqlite3
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.errors import JobsAway, JobsUnavailable, StoreFull, StoreUnavailable
from app.jobs.database import LOCK_SECONDS, Database
from app.jobs.store_owner import MARKER, claim
from app.main import create_app
from app.settings import Settings
from app.store import shared_files
from app.store.bucket import Bucket, LocalBucket
from app.store.object_store import ObjectStore
from app.store.store import Store
from app.store.workplace import Workplace
from demo.service import npy, serve_command
from tests.app.conftest import WorkerDouble, ended
from tests.postgres import Cluster
from tests.s3 import S3

A = npy(np.random.default_rng(0).random((3, 4), np.float32))
OTHER = "the jobs of this store are in another database"

NewDatabase = Callable[[], str]


@pytest.fixture
def new_database(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> NewDatabase:
    """URLs of databases, each another, that are not in the store: of each kind."""
    names = iter("abcdefgh")

    def new() -> str:
        if database_url.startswith("sqlite"):
            return f"sqlite:///{tmp_path / next(names)}.sqlite3"
        cluster: Cluster = request.getfixturevalue("postgres")
        return cluster.new_database()

    return new


def served(settings: Settings) -> TestClient:
    return TestClient(create_app(settings, supervisor=WorkerDouble(settings)), raise_server_exceptions=False)


def accepted(settings: Settings) -> str:
    """A fit that waits when the service has stopped."""
    with served(settings.model_copy(update={"fits": False})) as client:
        id: str = client.post("/fit?name=a&nb_concepts=2", content=A).json()["id"]
    return id


def succeeds(settings: Settings, id: str) -> bool:
    with served(settings) as client:
        return ended(client, id)["state"] == "succeeded"


def is_refused(settings: Settings, match: str) -> None:
    """It does not start, and tells why in a line."""
    with pytest.raises(JobsUnavailable, match=match) as refused, served(settings):
        pass
    assert not isinstance(refused.value, JobsAway)
    assert "\n" not in str(refused.value)


# -- from the store's own database to another -------------------------------------------------------------


def test_a_store_whose_own_database_has_jobs_that_wait_is_not_another_databases(
    settings: Settings, new_database: NewDatabase
) -> None:
    id = accepted(settings)
    moved = settings.model_copy(update={"database_url": new_database()})
    for _ in range(2):
        is_refused(moved, r"holds jobs that have not ended \(1\)")
    assert succeeds(settings, id)
    with served(moved) as client:
        assert client.get("/jobs").json()["jobs"] == []


def test_where_it_cannot_be_told_whether_the_stores_own_database_has_jobs(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is locked may tell in a moment; one that is damaged will not."""
    accepted(settings)
    moved = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/a.sqlite3"})
    store, database = Store(settings.store), Database(str(moved.database_url))
    database.open()
    file, cannot = store.workplace.database, "holds jobs that have not ended cannot be told"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr("sqlite3.connect", partial(sqlite3.connect, timeout=0))
        with pytest.raises(JobsAway, match=f"{cannot}: database is locked"):
            claim(store, database)
    database.close()
    file.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    is_refused(moved, cannot)


def test_the_stores_own_database_is_read_as_it_is(settings: Settings, tmp_path: Path) -> None:
    """What a killed service has left in the write-ahead log alone, too."""
    accepted(settings)
    file = Store(settings.store).workplace.database
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        (data,) = connection.execute("SELECT data FROM jobs").fetchone()
        connection.execute("UPDATE jobs SET data = data || ' '")
        connection.commit()
        copies = [path.read_bytes() for path in (file, Path(f"{file}-wal"))]
        assert f"{data} ".encode() not in copies[0]
    for path, content in zip((file, Path(f"{file}-wal")), copies, strict=True):
        path.write_bytes(content)
    is_refused(settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/a.sqlite3"}), "have not ended")
    assert [path.read_bytes() for path in (file, Path(f"{file}-wal"))] == copies


def test_fits_of_files_that_wait_in_the_stores_own_database(
    settings: Settings, new_database: NewDatabase, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"data_dir": tmp_path})
    (tmp_path / "A.npy").write_bytes(A)
    with served(settings.model_copy(update={"fits": False})) as client:
        fit = {"name": "a", "nb_concepts": 2, "files": ["A.npy"]}
        assert client.post("/fit", json=fit).status_code == 202
    is_refused(settings.model_copy(update={"database_url": new_database()}), r"have not ended \(1\)")


def test_jobs_with_nothing_left_to_lose_refuse_nobody(settings: Settings, new_database: NewDatabase) -> None:
    """As where a service of a version that did not look has gone on with another database."""
    accepted(settings)
    for path in Store(settings.store).workplace.activations.iterdir():
        path.unlink()
    with served(settings.model_copy(update={"database_url": new_database()})) as client:
        assert client.get("/jobs").status_code == 200


def test_what_is_no_database_of_jobs_is_told(settings: Settings, new_database: NewDatabase) -> None:
    store = Store(settings.store)
    store.workplace.open()
    store.workplace.close()
    moved = settings.model_copy(update={"database_url": new_database()})
    store.workplace.database.touch()  # empty, as SQLite's shell makes it
    with served(moved):
        pass
    store.workplace.database.write_bytes(b"garbage" * 1000)
    is_refused(moved, "file is not a database; if it is not needed, move it away")


# -- from one database to another -------------------------------------------------------------------------


def test_a_directory_belongs_to_one_database(settings: Settings, new_database: NewDatabase) -> None:
    one, other = (settings.model_copy(update={"database_url": new_database()}) for _ in range(2))
    id = accepted(one)
    is_refused(other, OTHER)
    is_refused(settings, OTHER)  # nor is it the store's own
    assert succeeds(one, id)
    (settings.store / ".dictserve" / MARKER).unlink()
    with served(other):
        pass
    is_refused(one, OTHER)


def test_a_bucket_belongs_to_one_database(
    s3: S3, new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.new_url()

    def service(name: str, database_url: str | None) -> Settings:
        return Settings(
            store=tmp_path / name, objects=url, objects_options=s3.options, database_url=database_url, lease_seconds=1
        )

    one, other = new_database(), new_database()
    id = accepted(service("one", one))
    later = time.time() + 2 * shared_files.GRACE_SECONDS
    with monkeypatch.context() as patched:
        patched.setattr(shared_files, "time", SimpleNamespace(monotonic=time.monotonic, time=lambda: later))
        is_refused(service("other", other), f"{OTHER}, as {url}/.dictserve/{MARKER} tells")
    with served(service("alone", None)):  # its jobs, and their activations, are its own
        pass
    assert succeeds(service("another", one), id)


@pytest.mark.parametrize("kind", ["directory", "s3", "file"])
def test_of_databases_that_come_at_once_one_has_the_store(
    kind: str, new_database: NewDatabase, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        s3: S3 = request.getfixturevalue("s3")
        objects = ObjectStore(s3.new_url(), s3.options)
    else:
        objects = ObjectStore((tmp_path / "bucket").as_uri())
        (tmp_path / "bucket").mkdir()
    stores = [
        Store(tmp_path / "models") if kind == "directory" else Store(tmp_path / str(i), objects) for i in range(4)
    ]
    databases = [Database(new_database()) for _ in stores]
    for store, database in zip(stores, databases, strict=True):
        store.workplace.open()
        database.open()

    def is_had(store: Store, database: Database) -> bool:
        try:
            claim(store, database)
        except JobsUnavailable:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        had = list(pool.map(is_had, stores, databases))
    assert had.count(True) == 1
    assert [is_had(*pair) for pair in zip(stores, databases, strict=True)] == had
    for database in databases:
        database.close()


# -- what refuses nobody ----------------------------------------------------------------------------------


def test_a_marker_that_cannot_be_written_refuses_nobody(
    settings: Settings, new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services that only read, or whose disk is full, start as they did before there was one."""

    def full(*_: object) -> None:
        raise StoreFull("the store's disk is full; nothing was written")

    monkeypatch.setattr(Workplace, "replace", full)
    monkeypatch.setattr(LocalBucket, "create", full)
    (tmp_path / "bucket").mkdir()
    objects = {"objects": (tmp_path / "bucket").as_uri()}
    for more in ({}, objects):
        with served(settings.model_copy(update={"database_url": new_database(), **more})) as client:
            assert client.get("/jobs").status_code == 200
            assert client.post("/fit?name=a&nb_concepts=2", content=A).status_code == 202


def test_a_marker_that_cannot_be_read_is_not_passed_over(
    settings: Settings, new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket").mkdir()
    away = {"database_url": new_database(), "objects": (tmp_path / "bucket").as_uri()}

    def silent(*_: object) -> bytes:
        raise StoreUnavailable("the object store cannot be used")

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "read", silent)
        with pytest.raises(StoreUnavailable), served(settings.model_copy(update=away)):
            pass
    (settings.store / ".dictserve" / MARKER).symlink_to(tmp_path)
    with pytest.raises(StoreUnavailable, match="cannot be read"), served(settings.model_copy(update=away)):
        pass


def test_the_stores_own_database_by_its_url(settings: Settings) -> None:
    """As good as without: nothing is refused, whichever way round."""
    own = settings.model_copy(
        update={"database_url": f"sqlite:///{Store(settings.store).workplace.database.absolute()}"}
    )
    id = accepted(own)
    assert accepted(settings) != id
    assert succeeds(own, id)
    assert not (settings.store / ".dictserve" / MARKER).exists()


def test_a_start_says_whose_the_store_is_in_a_line(settings: Settings, tmp_path: Path) -> None:
    with served(settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/a.sqlite3"})):
        pass
    run = subprocess.run(serve_command(0, settings.store), capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith(
        f"dictserve: {OTHER}, as {settings.store}/.dictserve/{MARKER} tells: set DICTSERVE_DATABASE"
    )


def test_a_file_that_may_only_be_read_is_told_at_once(tmp_path: Path) -> None:
    """And not tried for as long as one that others have locked."""
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE others (a)")
    database = Database(f"sqlite:///file:{path}?mode=ro&uri=true")
    begun = time.monotonic()
    with pytest.raises(JobsUnavailable, match="can only be read"):
        database.open()
    assert time.monotonic() - begun < LOCK_SECONDS
