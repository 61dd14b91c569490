"""Databases of jobs that other versions of the service made."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sql

from app.errors import JobsAway, JobsUnavailable
from app.jobs import migrations
from app.jobs.database import Database
from app.jobs.jobs import Jobs
from app.jobs.leases import Leases
from app.store.store import Store
from demo.service import serve_command

# As version 0.1.0 made it, before schemas were counted. This never changes.
SCHEMA_1 = """
CREATE TABLE jobs (
    id VARCHAR(40) NOT NULL, state VARCHAR(16) NOT NULL, name VARCHAR(128) NOT NULL, version INTEGER,
    parameters JSON NOT NULL, data JSON NOT NULL, progress JSON NOT NULL, loss_history JSON NOT NULL,
    attempts INTEGER NOT NULL, worker_deaths INTEGER NOT NULL, owner VARCHAR(64), created_at VARCHAR(32) NOT NULL,
    started_at VARCHAR(32), ended_at VARCHAR(32), error JSON, idempotency_key VARCHAR(255), request_hash VARCHAR(64),
    PRIMARY KEY (id), UNIQUE (idempotency_key)
);
CREATE INDEX ix_jobs_state ON jobs (state);
INSERT INTO jobs VALUES (
    '1', 'succeeded', 'digits', 1, '{"max_iter": 5}', '{"file": "x"}', '{"max_iter": 5}', '[]', 1, 0, NULL,
    '2026-01-01', NULL, NULL, NULL, NULL, NULL
);
"""


@contextmanager
def connected(url: str) -> Iterator[sql.Connection]:
    database = Database(url)
    with database.transaction() as connection:
        yield connection
    database.close()


@pytest.fixture
def old(database_url: str) -> str:
    with connected(database_url) as connection:
        for statement in filter(str.strip, SCHEMA_1.split(";")):
            connection.exec_driver_sql(statement)
    return database_url


def opened(url: str) -> None:
    database = Database(url)
    try:
        database.open()
    finally:
        database.close()


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    with connected(url) as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def described(url: str) -> dict[str, object]:
    """Tables, columns (the order of these aside), what they are where a service of an earlier version does not tell,
    and indexes."""
    told: dict[str, object] = {}
    with connected(url) as connection:
        inspector = sql.inspect(connection)
        for table in inspector.get_table_names():
            columns = [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)]
            indexes = [(i["column_names"], i["unique"]) for i in inspector.get_indexes(table)]
            keys = inspector.get_pk_constraint(table)["constrained_columns"]
            told[table] = (sorted(columns), sorted(indexes), keys, inspector.get_unique_constraints(table))
    return told


def versions(url: str) -> list[tuple[object, ...]]:
    return rows(url, "SELECT version FROM jobs_schema")


def test_an_old_database_becomes_what_a_new_one_is(old: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    new = f"sqlite:///{tmp_path / 'new.sqlite3'}"
    if old.startswith("postgresql"):
        new = request.getfixturevalue("postgres").new_database()
    opened(old)
    opened(new)
    assert described(old) == described(new), "no migration has a statement for what has changed in app.jobs.jobs"
    assert versions(old) == versions(new) == [(1 + len(migrations.MIGRATIONS),)]
    database = Database(old)
    assert Jobs(database).get("1").job.name == "digits"
    database.close()


TWO_MORE = ("ALTER TABLE jobs ADD COLUMN note VARCHAR(9)", "UPDATE jobs SET note = 'was ' || version")


def test_statements_are_applied_in_order_and_once(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(old)
    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, *TWO_MORE])
    for _ in range(2):
        opened(old)
        assert rows(old, "SELECT note FROM jobs") == [("was 1",)]
        assert versions(old) == [(1 + len(migrations.MIGRATIONS),)]


def test_services_that_start_at_once_migrate_once(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, *TWO_MORE])
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(opened, [old] * 8))  # a column that is there already would be an error
    assert versions(old) == [(1 + len(migrations.MIGRATIONS),)]


def test_services_that_start_at_once_on_nothing_make_one_database(database_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(opened, [database_url] * 8))
    assert versions(database_url) == [(1 + len(migrations.MIGRATIONS),)]


def test_a_migration_that_fails_changes_nothing(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(old)
    before, version = described(old), versions(old)
    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, *TWO_MORE, "UPDATE jobs SET absent = 1"])
    with pytest.raises(JobsUnavailable, match="absent"):
        opened(old)
    assert (described(old), versions(old)) == (before, version)


def brought_on(url: str, monkeypatch: pytest.MonkeyPatch, oldest: int) -> None:
    """By a later version, with which services go on that know the schema ``oldest``."""
    with monkeypatch.context() as later:
        later.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, *TWO_MORE])
        later.setattr(migrations, "OLDEST", oldest)
        opened(url)


def test_a_service_goes_on_with_a_newer_database_that_allows_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = 1 + len(migrations.MIGRATIONS)
    opened(database_url)
    brought_on(database_url, monkeypatch, oldest=newest)
    before = described(database_url)
    opened(database_url)
    assert (described(database_url), versions(database_url)) == (before, [(newest + 2,)])


def test_a_service_refuses_a_newer_database_that_does_not_allow_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = 1 + len(migrations.MIGRATIONS)
    opened(database_url)
    brought_on(database_url, monkeypatch, oldest=newest + 1)
    with pytest.raises(JobsUnavailable, match=f"schema {newest + 2}, .* knows none past {newest}"):
        opened(database_url)


def test_what_others_could_not_go_on_with_waits_for_them(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, database = Store(tmp_path / "models"), Database(old)
    store.workplace.open()
    database.open()
    leases = Leases(database, store.workplace, seconds=60)
    leases.take()
    before = described(old)
    with pytest.raises(JobsAway, match=r"services of an earlier version, .* 1 of them"):
        brought_on(old, monkeypatch, oldest=2 + len(migrations.MIGRATIONS))
    assert described(old) == before
    brought_on(old, monkeypatch, oldest=1 + len(migrations.MIGRATIONS))  # what they go on with does not
    leases.give_back()
    database.close()
    brought_on(old, monkeypatch, oldest=2 + len(migrations.MIGRATIONS))


def test_a_newer_database_ends_the_start_with_a_line(tmp_path: Path) -> None:
    private = tmp_path / "models" / ".dictserve"
    private.mkdir(parents=True)
    url = f"sqlite:///{private / 'jobs.sqlite3'}"
    opened(url)
    with connected(url) as connection:
        connection.exec_driver_sql("UPDATE jobs_schema SET version = 99, oldest = 99")
    run = subprocess.run(serve_command(0, tmp_path / "models"), capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith(
        "dictserve: the jobs' database has schema 99, and this version of dictserve knows none past"
    )
    assert versions(url) == [(99,)]
