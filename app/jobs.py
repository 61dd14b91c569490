"""Jobs, durable: one row each in an SQL database. A job is a fit that is queued, runs, or has ended.

SQLite by default, in WAL mode with full synchronisation: what a method has returned from survives a power cut.
Methods block on the database; ``app.fits`` calls them from a thread of its own.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from app.errors import JobsUnavailable, Overloaded, UnknownJob
from app.migrations import settle
from app.schemas import Job, Progress, State
from app.store import now

STATES: tuple[State, ...] = ("queued", "running", "succeeded", "failed", "cancelled")
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")

_metadata = sql.MetaData()
_jobs = sql.Table(  # a change here needs one in app.migrations, for databases that there are
    "jobs",
    _metadata,
    sql.Column("id", sql.String(40), primary_key=True),  # sorts by the time it was made
    sql.Column("state", sql.String(16), nullable=False, index=True),
    sql.Column("name", sql.String(128), nullable=False),
    sql.Column("version", sql.Integer),
    sql.Column("parameters", sql.JSON, nullable=False),
    sql.Column("data", sql.JSON, nullable=False),
    sql.Column("progress", sql.JSON, nullable=False),
    sql.Column("loss_history", sql.JSON, nullable=False),
    sql.Column("attempts", sql.Integer, nullable=False),
    sql.Column("worker_deaths", sql.Integer, nullable=False),
    sql.Column("owner", sql.String(64)),
    sql.Column("created_at", sql.String(32), nullable=False),
    sql.Column("started_at", sql.String(32)),
    sql.Column("ended_at", sql.String(32)),
    sql.Column("error", sql.JSON),
    sql.Column("idempotency_key", sql.String(255), unique=True),
    sql.Column("request_hash", sql.String(64)),
    sql.Column("resumed_from", sql.Integer),
)


@dataclass(frozen=True)
class Record:
    """A job's row: what clients are told, and what only the service needs."""

    job: Job
    data: dict[str, Any]
    owner: str | None
    worker_deaths: int
    request_hash: str | None


class Jobs:
    """The jobs' database."""

    def __init__(self, url: str) -> None:
        self._engine = sql.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sql.event.listen(self._engine, "connect", _make_durable)

    def open(self) -> None:
        with _database_errors():
            settle(self._engine, _metadata)

    def close(self) -> None:
        self._engine.dispose()

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, id: str) -> Record:
        rows = self._select(_jobs.c.id == id)
        if not rows:
            raise UnknownJob(f"there is no job {id[:60]!r}; GET /jobs lists them")
        return rows[0]

    def newest(self, limit: int, *, before: str | None, state: State | None, name: str | None) -> list[Record]:
        """Jobs in this state and of this name, newest first, older than the one whose id is ``before``."""
        conditions = [
            *([_jobs.c.id < before] if before is not None else []),
            *([_jobs.c.state == state] if state is not None else []),
            *([_jobs.c.name == name] if name is not None else []),
        ]
        return self._select(sql.and_(sql.true(), *conditions), limit=limit, newest_first=True)

    def of_key(self, idempotency_key: str) -> Record | None:
        rows = self._select(_jobs.c.idempotency_key == idempotency_key)
        return rows[0] if rows else None

    def running(self) -> list[Record]:
        return self._select(_jobs.c.state == "running")

    def data_files(self) -> set[str]:
        """Names of the files that unended jobs need."""
        return {record.data["file"] for record in self._select(_jobs.c.state.in_(["queued", "running"]))}

    def unended(self) -> set[str]:
        """Ids of the jobs that have not ended."""
        return {record.job.id for record in self._select(_jobs.c.state.in_(["queued", "running"]))}

    def counts(self) -> dict[State, int]:
        """How many jobs there are in each state."""
        statement = sql.select(_jobs.c.state, sql.func.count()).group_by(_jobs.c.state)
        with self._transaction() as connection:
            return {row[0]: row[1] for row in connection.execute(statement)}

    # -- the life of a job --------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        parameters: dict[str, Any],
        data: dict[str, Any],
        *,
        queue_jobs: int,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> Job | None:
        """A new job, queued; durable when this returns. None where another job has the idempotency key.

        Raises:
            Overloaded: ``queue_jobs`` jobs wait already.
        """
        id = new_id()
        with suppress(_KeyTaken), self._transaction() as connection:
            connection.execute(
                _jobs.insert().values(
                    id=id,
                    state="queued",
                    name=name,
                    parameters=parameters,
                    data=data,
                    progress=Progress(max_iter=parameters["max_iter"]).model_dump(),
                    loss_history=[],
                    attempts=0,
                    worker_deaths=0,
                    created_at=now(),
                    idempotency_key=idempotency_key,
                    request_hash=request_hash,
                )
            )
            queued = sql.select(sql.func.count()).where(_jobs.c.state == "queued")
            if connection.execute(queued).scalar_one() > queue_jobs:  # the insert keeps others out until now
                raise Overloaded(f"{queue_jobs} fits wait already; send this one again later")
            return self._select_in(connection, _jobs.c.id == id)[0].job
        return None

    def claim(self, owner: str) -> Record | None:
        """The oldest queued job, now running for this owner; no two owners get the same one."""
        oldest = sql.select(_jobs.c.id).where(_jobs.c.state == "queued").order_by(_jobs.c.id).limit(1)
        with self._transaction() as connection:
            id = connection.execute(oldest).scalar_one_or_none()
            if id is None:
                return None
            connection.execute(
                _jobs.update()
                .where(_jobs.c.id == id, _jobs.c.state == "queued")
                .values(
                    state="running",
                    owner=owner,
                    attempts=_jobs.c.attempts + 1,
                    started_at=sql.func.coalesce(_jobs.c.started_at, now()),
                )
            )
            mine = sql.and_(_jobs.c.id == id, _jobs.c.owner == owner)
            claimed = self._select_in(connection, mine)  # as one: a claim that its owner does not hear of is lost
        return claimed[0] if claimed else None

    def record_progress(
        self, id: str, progress: Progress, loss_history: Sequence[tuple[int, float]], resumed_from: int | None
    ) -> None:
        self._update(_running(id), **_progress(progress, loss_history, resumed_from))

    def record_data(self, id: str, data: dict[str, Any]) -> None:
        self._update(_running(id), data=data)

    def succeed(self, id: str, version: int) -> None:
        self._update(_running(id), state="succeeded", version=version, ended_at=now(), owner=None)

    def fail(self, id: str, problem: dict[str, Any]) -> None:
        self._update(_running(id), state="failed", error=problem, ended_at=now(), owner=None)

    def cancel(self, id: str, state: State) -> bool:
        """End a job that is in this state; False where it has left it meanwhile."""
        condition = sql.and_(_jobs.c.id == id, _jobs.c.state == state)
        return self._update(condition, state="cancelled", ended_at=now(), owner=None)

    def requeue(self, id: str, owner: str | None, *, worker_died: bool, told: dict[str, Any] | None = None) -> None:
        """Put a job that runs for this owner back into the queue, for another attempt.

        Args:
            told: what ``record_progress`` takes, of how far it came.
        """
        deaths = _jobs.c.worker_deaths + (1 if worker_died else 0)
        condition = sql.and_(_running(id), _jobs.c.owner == owner)  # not from one who has taken it up meanwhile
        progress = {} if told is None else _progress(**told)
        self._update(condition, state="queued", owner=None, worker_deaths=deaths, **progress)

    def delete(self, id: str) -> bool:
        """Remove the record of an ended job."""
        with self._transaction() as connection:
            ended = sql.and_(_jobs.c.id == id, _jobs.c.state.in_(ENDED))
            return connection.execute(_jobs.delete().where(ended)).rowcount > 0

    def forget_ended(self, before: str) -> int:
        """Remove the records of jobs that ended before this time; says how many."""
        old = sql.and_(_jobs.c.state.in_(ENDED), _jobs.c.ended_at < before)
        with self._transaction() as connection:
            return connection.execute(_jobs.delete().where(old)).rowcount

    # -- the database -------------------------------------------------------------------------------------

    def _select(
        self, condition: sql.ColumnElement[bool], *, limit: int | None = None, newest_first: bool = False
    ) -> list[Record]:
        order = _jobs.c.id.desc() if newest_first else _jobs.c.id
        with self._transaction() as connection:
            return self._select_in(connection, condition, order, limit)

    @staticmethod
    def _select_in(
        connection: sql.Connection,
        condition: sql.ColumnElement[bool],
        order: sql.ColumnElement[str] = _jobs.c.id,
        limit: int | None = None,
    ) -> list[Record]:
        rows = connection.execute(sql.select(_jobs).where(condition).order_by(order).limit(limit))
        return [_record(row) for row in rows.mappings()]

    def _update(self, condition: sql.ColumnElement[bool], **values: Any) -> bool:
        with self._transaction() as connection:
            return connection.execute(_jobs.update().where(condition).values(**values)).rowcount > 0

    @contextmanager
    def _transaction(self) -> Iterator[sql.Connection]:
        with _database_errors(), self._engine.begin() as connection:
            yield connection


def new_id() -> str:
    """Sorts by time; unique whatever the clock does."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def _progress(
    progress: Progress, loss_history: Sequence[tuple[int, float]], resumed_from: int | None
) -> dict[str, Any]:
    return {"progress": progress.model_dump(), "loss_history": list(loss_history), "resumed_from": resumed_from}


def _running(id: str) -> sql.ColumnElement[bool]:
    return sql.and_(_jobs.c.id == id, _jobs.c.state == "running")


def _record(row: sql.RowMapping) -> Record:
    told = {name: row[name] for name in Job.model_fields}
    return Record(Job.model_validate(told), row["data"], row["owner"], row["worker_deaths"], row["request_hash"])


def _make_durable(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class _KeyTaken(Exception):
    pass


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:  # the one constraint that can be violated
        raise _KeyTaken from error
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise JobsUnavailable(f"the jobs' database cannot be used: {cause}") from error
    except ValueError as error:  # JSON that is none, or no job's
        raise JobsUnavailable("the jobs' database holds a record that cannot be read") from error
