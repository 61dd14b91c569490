"""Lines that are lost: one call finds out, those after it are told at once, and it comes back without being asked."""

import socket
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sql

from app import reachability
from app.errors import JobsAway, JobsUnavailable, StoreUnavailable
from app.jobs import database
from app.jobs.database import Database
from app.reachability import SILENT_SECONDS, Reachability, give_up_in_time
from app.store.object_store import ObjectStore
from app.store.references import Reference
from app.store.store import Store
from tests.app.conftest import D, publish
from tests.postgres import Cluster
from tests.s3 import S3
from tests.waiting import until


@pytest.fixture(autouse=True)
def _asked_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "ASK_SECONDS", 0.02)


class Other:
    """What is at the other end."""

    def __init__(self) -> None:
        self.is_there = False
        self.asked = 0
        self.threads: set[str] = set()

    def ask(self) -> None:
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        if not self.is_there:
            raise ConnectionError


def test_one_thread_asks_until_there_is_an_answer() -> None:
    other = Other()
    reachability = Reachability("the other", other.ask)
    reachability.require_up()
    for _ in range(10):
        reachability.lose(StoreUnavailable("it is gone"))
    until(lambda: other.asked > 2)
    assert not reachability.is_up
    with pytest.raises(StoreUnavailable, match=r"^it is gone$"):
        reachability.require_up()
    assert other.threads == {"reach the other"}
    assert sum(thread.name == "reach the other" for thread in threading.enumerate()) == 1
    other.is_there = True
    until(lambda: reachability.is_up)
    reachability.require_up()
    other.is_there = False
    reachability.lose(StoreUnavailable("it is gone once more"))
    until(lambda: other.asked > 4)
    reachability.close()
    until(lambda: not any(thread.name == "reach the other" for thread in threading.enumerate()))


def test_connections_are_given_up_in_time() -> None:
    with give_up_in_time(socket.socket()) as connection:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert told == 1000 * SILENT_SECONDS


# -- the jobs' database -----------------------------------------------------------------------------------


def asked(database: Database, question: str = "SELECT 1") -> object:
    with database.transaction() as connection:
        return connection.execute(sql.text(question)).scalar_one()


def test_a_database_that_goes_and_comes_back(postgres: Cluster) -> None:
    database = Database(postgres.new_database())
    assert asked(database) == 1
    postgres.stop()
    try:
        for _ in range(2):
            with pytest.raises(JobsUnavailable):
                asked(database)
        assert not database.is_up
    finally:
        postgres.start()
    until(lambda: database.is_up)  # though nobody has asked for anything
    assert asked(database) == 1
    postgres.stop()
    postgres.start()
    assert asked(database) == 1  # connections that were lost meanwhile are replaced
    database.close()


def test_a_server_that_only_reads_is_not_kept(postgres: Cluster) -> None:
    """As after a failover, when an address leads to the standby for a moment: its connections are good, and stay."""
    url = postgres.new_database()
    database, only_reads = Database(url), f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only"
    asked(database, "SELECT 1")
    with postgres.connected() as other:
        other.autocommit = True
        other.cursor().execute(f"{only_reads} = on")
        database._engine.dispose()
        with pytest.raises(JobsAway, match="read-only"):
            asked(database, "CREATE TABLE t (i int); SELECT 1")
        other.cursor().execute(f"{only_reads} = off")
    assert asked(database, "CREATE TABLE t (i int); SELECT 1") == 1
    database.close()


def test_a_statement_that_fails_is_no_lost_line(postgres: Cluster) -> None:
    database = Database(postgres.new_database())
    with pytest.raises(JobsUnavailable, match="division by zero"):
        asked(database, "SELECT 1 / 0")
    assert database.is_up
    assert asked(database) == 1
    database.close()


def test_the_server_lets_go_of_the_silent_too(postgres: Cluster) -> None:
    database = Database(postgres.new_database())
    told = "SELECT current_setting('tcp_keepalives_idle') || ' ' || current_setting('tcp_keepalives_interval')"
    assert asked(database, told) == "30 10"
    database.close()


def test_a_database_that_takes_connections_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_one = Database(f"postgresql://user:s3cret@127.0.0.1:{silent.getsockname()[1]}/jobs")
        for patience in (30.0, 0.15):  # and those who come next are told at once
            begun = time.monotonic()
            with pytest.raises(JobsUnavailable, match="its server does not answer") as raised:
                silent_one.open()
            assert time.monotonic() - begun < patience
            assert "s3cret" not in str(raised.value)
        silent_one.close()


# -- the object store -------------------------------------------------------------------------------------


def test_what_is_at_hand_stays_so_while_the_object_store_is_away(tmp_path: Path) -> None:
    """What is asked of it otherwise is refused, what is not known included."""
    own = S3()
    store = Store(tmp_path, ObjectStore(own.new_url(), own.options, listing_seconds=0.0))
    store.workplace.open()
    publish(store, "a", D)
    publish(store, "a", 2 * D)
    publish(store, "removed", D)
    for reference in (Reference("a"), Reference("a", 1), Reference("removed")):
        store.find_and_fetch(reference)
    store.remove("removed", [1])
    own.server.stop()
    try:
        assert store.at_hand(Reference("a")) is None  # how it is now must be asked
        assert store.find_and_fetch(Reference("a")).version == 2
        assert store.find_and_fetch(Reference("a", 1)).version == 1
        for reference in (Reference("a", 3), Reference("b"), Reference("removed"), Reference("removed", 1)):
            with pytest.raises(StoreUnavailable):
                store.find_and_fetch(reference)
        with pytest.raises(StoreUnavailable):
            store.record(Reference("a"))
    finally:
        own.start()
    assert store.bucket is not None
    bucket = store.bucket
    until(lambda: bucket.is_up)
    assert store.record(Reference("a")).version == 2
    own.server.stop()


def test_sockets_to_the_object_store_are_given_up_in_time(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.store import bucket

    made = []
    monkeypatch.setattr(bucket, "give_up_in_time", lambda connection: made.append(connection) or connection)
    bucket.bucket_of(ObjectStore(s3.new_url(), s3.options)).entries()
    assert made
