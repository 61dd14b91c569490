"""The jobs' database from one version of the service to the next.

A new database is made as ``app.jobs.jobs`` and ``app.jobs.leases`` describe it. One that an earlier version of the
service made is brought there by the statements below, at the start and in one transaction. There is no way back: an
older version refuses a newer schema.

A database has an identity, which tells it from all others: it is made with the table for it, and never changes.
"""

import logging
import secrets
from collections.abc import Sequence

import sqlalchemy as sql

from app.errors import JobsUnavailable

logger = logging.getLogger("dictserve")

# The first statement makes schema 2 of schema 1, and so on: none is ever changed or taken out, new ones come last.
MIGRATIONS: Sequence[str] = (
    "ALTER TABLE jobs ADD COLUMN resumed_from INTEGER",
    "ALTER TABLE jobs ADD COLUMN cancel_requested BOOLEAN DEFAULT FALSE NOT NULL",
    "CREATE TABLE leases (owner VARCHAR(64) NOT NULL PRIMARY KEY, until FLOAT NOT NULL)",
    "ALTER TABLE jobs ADD COLUMN publishing BOOLEAN DEFAULT FALSE NOT NULL",
    "ALTER TABLE jobs ADD COLUMN service_deaths INTEGER DEFAULT 0 NOT NULL",
    "CREATE TABLE jobs_identity (identity VARCHAR(32) NOT NULL PRIMARY KEY)",
)

_metadata = sql.MetaData()
_schema = sql.Table("jobs_schema", _metadata, sql.Column("version", sql.Integer, nullable=False))
_identity = sql.Table("jobs_identity", _metadata, sql.Column("identity", sql.String(32), primary_key=True))


def settle(engine: sql.Engine, described: sql.MetaData) -> None:
    """Have the database as it is described, made anew or brought on from an earlier schema.

    Raises:
        JobsUnavailable: it has a schema that only a later version of the service knows.
    """
    newest = 1 + len(MIGRATIONS)
    with engine.connect() as connection:
        if _counted(connection) == newest:
            return
    with engine.connect() as connection:
        # Of two services that start now, one is first.
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(_schema.name))))
        found = _counted(connection)
        if found is None:  # versions were not counted at first
            found = 1 if sql.inspect(connection).has_table("jobs") else 0
        if found > newest:
            raise JobsUnavailable(
                f"the jobs' database has schema {found}, and this version of dictserve knows none past {newest}: "
                "start the version that it was last used with"
            )
        if found == 0:
            described.create_all(connection)
        else:
            for statement in MIGRATIONS[found - 1 :]:
                connection.exec_driver_sql(statement)
            if found < newest:
                logger.info("the jobs' database is brought from schema %d to %d", found, newest)
        _metadata.create_all(connection)
        connection.execute(_schema.delete())
        connection.execute(_schema.insert().values(version=newest))
        if connection.scalar(sql.select(_identity)) is None:
            connection.execute(_identity.insert().values(identity=secrets.token_hex(16)))
        connection.commit()


def identity_of(connection: sql.Connection) -> str:
    """What tells the database from all others."""
    identity: str = connection.execute(sql.select(_identity)).scalar_one()
    return identity


def _counted(connection: sql.Connection) -> int | None:
    if not sql.inspect(connection).has_table(_schema.name):
        return None
    version: int = connection.execute(sql.select(_schema.c.version)).scalar_one()
    return version
