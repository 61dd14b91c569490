"""The jobs' database from one version of the service to the next.

A new database is made as ``app.jobs.jobs`` and ``app.jobs.leases`` describe it. One that an earlier version of the
service made is brought there by the statements below, at the start and in one transaction. There is no way back.

Services of two versions may use one database at once, as they do while replicas are updated one after another: the
database says which schema is the oldest whose services go on with it as it is. What they add to a table has therefore
a default, with which these insert rows. Where they could not go on, the new one waits until they have stopped.

A database has an identity, which tells it from all others: it is made with the table for it, and never changes.
"""

import logging
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sql

from app.errors import JobsAway, JobsUnavailable

logger = logging.getLogger("dictserve")

# The first statement makes schema 2 of schema 1, and so on: none is ever changed or taken out, new ones come last.
MIGRATIONS: Sequence[str] = (
    "ALTER TABLE jobs ADD COLUMN resumed_from INTEGER",
    "ALTER TABLE jobs ADD COLUMN cancel_requested BOOLEAN DEFAULT FALSE NOT NULL",
    "CREATE TABLE leases (owner VARCHAR(64) NOT NULL PRIMARY KEY, until FLOAT NOT NULL)",
    "ALTER TABLE jobs ADD COLUMN publishing BOOLEAN DEFAULT FALSE NOT NULL",
    "ALTER TABLE jobs ADD COLUMN service_deaths INTEGER DEFAULT 0 NOT NULL",
    "CREATE TABLE jobs_identity (identity VARCHAR(32) NOT NULL PRIMARY KEY)",
    "ALTER TABLE jobs ADD COLUMN needs INTEGER DEFAULT 1 NOT NULL",
)
# The oldest schema whose services go on with a database of the newest. To be raised with a statement that takes away
# what they use, and by what means something else to them.
OLDEST = 8

_metadata = sql.MetaData()
_schema = sql.Table(
    "jobs_schema",
    _metadata,
    sql.Column("version", sql.Integer, nullable=False),
    sql.Column("oldest", sql.Integer, nullable=False),
)
_identity = sql.Table("jobs_identity", _metadata, sql.Column("identity", sql.String(32), primary_key=True))
_leases = sql.table("leases", sql.column("until"))  # of app.jobs.leases


class _Schema(NamedTuple):
    version: int
    oldest: int


def migrate(engine: sql.Engine, described: sql.MetaData, now: sql.ColumnElement[float]) -> None:
    """Have the database as it is described, made anew or brought on from an earlier schema; or as a later version of
    the service has it, if this one goes on with that.

    Args:
        now: by the database's clock.

    Raises:
        JobsAway: services of an earlier version use it, which could not go on.
        JobsUnavailable: it has a schema that only a later version of the service knows.
    """
    newest = 1 + len(MIGRATIONS)
    with engine.connect() as connection:
        found = _found(connection)
        if found.version >= newest >= found.oldest:
            if found.version > newest:
                logger.info(
                    "the jobs' database has schema %d, of a later version; this one knows %d", found.version, newest
                )
            return
    with engine.connect() as connection:
        # Of two services that start now, one is first.
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(_schema.name))))
        found = _found(connection)
        if found.oldest > newest:
            raise JobsUnavailable(
                f"the jobs' database has schema {found.version}, and this version of dictserve knows none past "
                f"{newest}: start the version that it was last used with"
            )
        if found.version >= newest:
            return
        if found.version == 0:
            described.create_all(connection)
        else:
            if found.version < OLDEST:
                _require_alone(connection, now)
            for statement in MIGRATIONS[found.version - 1 :]:
                connection.exec_driver_sql(statement)
            logger.info("the jobs' database is brought from schema %d to %d", found.version, newest)
        _schema.drop(connection, checkfirst=True)  # earlier ones had a column less
        _metadata.create_all(connection)
        connection.execute(_schema.insert().values(version=newest, oldest=OLDEST))
        if connection.scalar(sql.select(_identity)) is None:
            connection.execute(_identity.insert().values(identity=secrets.token_hex(16)))
        connection.commit()


def identity_of(connection: sql.Connection) -> str:
    """What tells the database from all others."""
    identity: str = connection.execute(sql.select(_identity)).scalar_one()
    return identity


def _found(connection: sql.Connection) -> _Schema:
    """0 of an empty database."""
    inspector = sql.inspect(connection)
    if not inspector.has_table(_schema.name):  # versions were not counted at first
        return _Schema(1, 1) if inspector.has_table("jobs") else _Schema(0, 0)
    told = connection.execute(sql.select(sql.text("*")).select_from(_schema)).mappings().one()
    return _Schema(told["version"], told.get("oldest", told["version"]))


def _require_alone(connection: sql.Connection, now: sql.ColumnElement[float]) -> None:
    """Raises JobsAway where others use the database: theirs are the leases that have not run out."""
    if not sql.inspect(connection).has_table(_leases.name):
        return
    others = connection.scalar(sql.select(sql.func.count()).select_from(_leases).where(_leases.c.until > now))
    if others:
        raise JobsAway(
            "the jobs' database is in use by services of an earlier version, which cannot go on with what this one "
            f"makes of it: {others} of them; stop those, or, where they were killed, wait until their leases run out"
        )
