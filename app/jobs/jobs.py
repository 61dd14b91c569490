"""Jobs, durable: one row each in an SQL database. A job is a fit that is queued, runs, or has ended.

A job that runs is its owner's, for one attempt: what that writes of it holds only as long as it is. Whoever finds
that its owner has no lease any more (``app.jobs.leases``) puts it back into the queue. Methods block on the database;
``app.jobs.database_threads`` calls them from threads of its own.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, get_args

import msgspec
import sqlalchemy as sql
from sqlalchemy.sql.dml import ReturningUpdate

from app.errors import InvalidFields, JobDamaged, JobsUnavailable, Overloaded, UnknownJob
from app.jobs.database import Database, metadata
from app.jobs.leases import held_by, lease_of
from app.problems import Problem, problem_of
from app.schemas import Job, ListedJob, Progress, State
from app.times import now, timestamp

logger = logging.getLogger("dictserve")

_ID = re.compile(r"[0-9a-f]{1,40}")  # others PostgreSQL may not even look for

STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")

_jobs = sql.Table(  # a change here needs one in app.jobs.migrations, for databases that there are
    "jobs",
    metadata,
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
    sql.Column(  # since an attempt came further than one before it
        "service_deaths", sql.Integer, nullable=False, server_default=sql.text("0")
    ),
    sql.Column("owner", sql.String(64)),
    sql.Column("created_at", sql.String(32), nullable=False),
    sql.Column("started_at", sql.String(32)),
    sql.Column("ended_at", sql.String(32)),
    sql.Column("error", sql.JSON),
    sql.Column("idempotency_key", sql.String(255), unique=True),
    sql.Column("request_hash", sql.String(64)),
    sql.Column("resumed_from", sql.Integer),
    sql.Column(  # of its owner, while it runs
        "cancel_requested", sql.Boolean, nullable=False, server_default=sql.text("FALSE")
    ),
    sql.Column(  # an attempt has begun to, or has: no cancel comes after it
        "publishing", sql.Boolean, nullable=False, server_default=sql.text("FALSE")
    ),
    sql.Column(  # what who runs it must know: see KNOWN
        "needs", sql.Integer, nullable=False, server_default=sql.text("1")
    ),
)

# What this version knows of jobs, as a number: to be raised where its jobs would fail with earlier versions, or mean
# something else to these (they have a parameter more, say). Those leave them to services that know as much.
KNOWN = 1

_queued = sql.select(sql.func.count()).where(_jobs.c.state == "queued")


def _claim(ours: sql.ColumnElement[bool]) -> ReturningUpdate[str]:
    """The oldest queued job of ours, if there is one, now running for a `claimer` from the time `claimed_at`."""
    oldest = sql.select(_jobs.c.id).where(_jobs.c.state == "queued", ours).order_by(_jobs.c.id).limit(1)
    oldest = oldest.with_for_update(skip_locked=True)  # on PostgreSQL: nobody waits for who claims another
    return (
        _jobs.update()
        .where(_jobs.c.id == oldest.scalar_subquery(), _jobs.c.state == "queued")
        .values(
            state="running",
            owner=sql.bindparam("claimer"),
            attempts=_jobs.c.attempts + 1,
            started_at=sql.func.coalesce(_jobs.c.started_at, sql.bindparam("claimed_at")),
        )
        .returning(_jobs.c.id)
    )


# By whether fits of files are to be had, too. Built once: an idle service asks every second, and to build it is most
# of what that costs.
_known = _jobs.c.needs <= sql.bindparam("known")
_claims = {True: _claim(_known), False: _claim(_known & _jobs.c.data["files"].as_string().is_(None))}


@dataclass(frozen=True)
class Record:
    """A job's row: what clients are told, and what only the service needs."""

    job: Job
    data: dict[str, Any]
    owner: str | None
    worker_deaths: int
    service_deaths: int
    request_hash: str | None
    cancel_requested: bool


class JobLost(Exception):
    """What an attempt was to write of its job did not hold: the job is another's meanwhile."""


class Jobs:
    """The jobs in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, id: str) -> Record:
        rows = self._select(_jobs.c.id == id) if _ID.fullmatch(id) else []
        if not rows:
            raise _unknown(id)
        return rows[0]

    def state(self, id: str) -> State:
        """Of a job, whether or not the rest of its record can be read."""
        states: Sequence[State] = []
        if _ID.fullmatch(id):
            with self._database.transaction() as connection:
                states = connection.scalars(sql.select(_jobs.c.state).where(_jobs.c.id == id)).all()
        if not states:
            raise _unknown(id)
        return states[0]

    def newest(self, limit: int, *, before: str | None, state: State | None, name: str | None) -> list[ListedJob]:
        """Jobs in this state and of this name, newest first, older than the one whose id is ``before``."""
        if before is not None and _ID.fullmatch(before) is None:
            raise InvalidFields.at("cursor", msg="not the `next` of a page")
        if name is not None and not (name.isascii() and name.isprintable()):  # nor may PostgreSQL look for it
            return []
        conditions = [
            *([_jobs.c.id < before] if before is not None else []),
            *([_jobs.c.state == state] if state is not None else []),
            *([_jobs.c.name == name] if name is not None else []),
        ]
        listed = sql.select(*(_jobs.c[column] for column in ListedJob.model_fields)).where(sql.true(), *conditions)
        with self._database.transaction() as connection:
            return _listed(connection, listed.order_by(_jobs.c.id.desc()).limit(limit))

    def of_key(self, idempotency_key: str) -> Record | None:
        rows = self._select(_jobs.c.idempotency_key == idempotency_key)
        return rows[0] if rows else None

    def data_files(self) -> set[str]:
        """Names of the files that unended jobs need; of those whose records cannot be read, jobs that have failed."""
        with self._database.transaction() as connection:
            try:
                return _data_files(connection)
            except ValueError:
                for id in connection.scalars(_unended(_jobs.c.id)).all():
                    _sound(connection, id)
                return _data_files(connection)

    def surely_data_files(self) -> set[str]:
        """The same, where no job is being added just now: not even by a connection that was lost.

        Raises:
            JobsUnavailable: one is.
        """
        with self._database.transaction() as connection:
            if not self._database.is_alone(connection, _jobs):
                raise JobsUnavailable("a job is being added just now")
            return _data_files(connection)

    def unended(self) -> set[str]:
        """Ids of the jobs that have not ended."""
        with self._database.transaction() as connection:
            return set(connection.scalars(_unended(_jobs.c.id)))

    def require_room(self, queue_jobs: int, idempotency_key: str | None) -> None:
        """What `add` would say now of the queue; what it says later is what counts.

        Raises:
            Overloaded: so many jobs wait already, and none has the key.
        """
        with self._database.transaction() as connection:
            is_full = connection.execute(_queued).scalar_one() >= queue_jobs
        if is_full and (idempotency_key is None or self.of_key(idempotency_key) is None):
            raise _full(queue_jobs)

    def counts(self) -> dict[State, int]:
        """How many jobs there are in each state."""
        statement = sql.select(_jobs.c.state, sql.func.count()).group_by(_jobs.c.state)
        with self._database.transaction() as connection:
            return {row[0]: row[1] for row in connection.execute(statement)}

    # -- the life of a job --------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        parameters: dict[str, Any],
        data: dict[str, Any],
        *,
        owner: str,
        queue_jobs: int,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> Job | None:
        """A new job, queued; durable when this returns. None where another job has the idempotency key.

        Args:
            owner: of the data's file. While its lease is there, nobody sweeps the file; once the job is, too.

        Raises:
            Overloaded: ``queue_jobs`` jobs wait already.
            JobsUnavailable: the owner's lease was ended meanwhile.
        """
        id = new_id()
        with self._database.transaction() as connection:
            self._database.one_at_a_time(connection, _jobs)  # what is counted below stays so
            is_new = self._database.insert_new(
                connection,
                _jobs,
                id=id,
                state="queued",
                name=name,
                parameters=parameters,
                data=data,
                progress=Progress(max_iter=parameters["max_iter"]).model_dump(),
                loss_history=[],
                attempts=0,
                worker_deaths=0,
                service_deaths=0,
                created_at=now(),
                idempotency_key=idempotency_key,
                request_hash=request_hash,
                cancel_requested=False,
                publishing=False,
                needs=KNOWN,
            )
            if not is_new:
                return None
            if connection.execute(_queued).scalar_one() > queue_jobs:
                raise _full(queue_jobs)
            if connection.execute(lease_of(owner)).first() is None:
                told = "this service has no lease in the jobs' database: it was taken for dead, or only begins"
                raise JobsUnavailable(f"{told}; send the fit again")
            return self._select_in(connection, _jobs.c.id == id)[0].job

    def claim(self, owner: str, *, reads_files: bool = True) -> Record | None:
        """The oldest queued job, now running for this owner; no two owners get the same one. One whose record cannot
        be read has failed.

        Args:
            reads_files: whether fits of files of the data directory are to be had, too.
        """
        claimed, told = _claims[reads_files], {"claimer": owner, "claimed_at": now(), "known": KNOWN}
        with self._database.transaction() as connection:
            while (id := connection.scalar(claimed, told)) is not None:
                if (record := _sound(connection, id)) is not None:
                    return record
        return None

    def beyond(self) -> int:
        """How many jobs are queued that only a later version can run."""
        beyond = _queued.where(_jobs.c.needs > KNOWN)
        with self._database.transaction() as connection:
            return connection.execute(beyond).scalar_one()

    def is_wanted(self, claimed: Record) -> bool:
        """Whether a job is this attempt's still, and nobody wants it cancelled."""
        wanted = sql.select(_jobs.c.id).where(_of(claimed), ~_jobs.c.cancel_requested)
        with self._database.transaction() as connection:
            return connection.execute(wanted).first() is not None

    def record_progress(
        self,
        claimed: Record,
        progress: Progress,
        loss_history: Sequence[tuple[int, float]],
        resumed_from: int | None,
    ) -> bool:
        """Whether the job is wanted still. Raises JobLost, as all does that an attempt writes, where it is another's
        meanwhile."""
        return not self._write(claimed, **_progress(progress, loss_history, resumed_from)).cancel_requested

    def record_data(self, claimed: Record, data: dict[str, Any]) -> None:
        self._write(claimed, data=data)

    def begin_publishing(self, claimed: Record) -> bool:
        """Whether the job is this attempt's still, and nobody wants it cancelled; then nobody can any more.

        That holds for good, whoever takes the job up: this attempt may publish at any time from now on, even one that
        is taken for dead meanwhile.
        """
        return self._update(sql.and_(_of(claimed), ~_jobs.c.cancel_requested), publishing=True)

    def succeed(self, claimed: Record, version: int) -> None:
        self._write(claimed, state="succeeded", version=version, ended_at=now(), owner=None)

    def fail(self, claimed: Record, problem: Problem) -> None:
        self._write(claimed, state="failed", error=msgspec.to_builtins(problem), ended_at=now(), owner=None)

    def end_cancelled(self, claimed: Record) -> None:
        self._write(claimed, state="cancelled", ended_at=now(), owner=None)

    def requeue(self, claimed: Record, *, worker_died: bool, newer: dict[str, Any] | None = None) -> Record:
        """Put a job back into the queue, for another attempt (or end it, where that was asked for): as it is then.

        Args:
            newer: what ``record_progress`` takes, of how far it came.
        """
        deaths = _jobs.c.worker_deaths + (1 if worker_died else 0)
        progress = {} if newer is None else _progress(**newer)
        return self._write(claimed, worker_deaths=deaths, **_left(), **progress)

    def take_over(self, owner: str, ours: Collection[str]) -> list[Record]:
        """Put the jobs of owners that have no lease back into the queue (or end them, as above), as they are then.
        Those whose records cannot be read have failed.

        Args:
            owner: of whom only ``ours`` are known to run: the answer to the claim of any other was lost.
        """
        deaths = _jobs.c.service_deaths + sql.case((_jobs.c.owner == owner, 0), else_=1)
        lost = sql.and_(_jobs.c.owner == owner, _jobs.c.id.not_in(ours))
        left = sql.or_(_jobs.c.owner.is_(None), ~held_by(_jobs.c.owner), lost)
        taken = (
            _jobs.update()
            .where(_jobs.c.state == "running", left)
            .values(**_left(), service_deaths=deaths)
            .returning(_jobs.c.id)
        )
        with self._database.transaction() as connection:
            records = [_sound(connection, id) for id in connection.scalars(taken).all()]
        return [record for record in records if record is not None]

    def cancel_queued(self, id: str) -> bool:
        """End a job that waits; False where it does not any more, or may have a dictionary already."""
        queued = sql.and_(_jobs.c.id == id, _jobs.c.state == "queued", ~_jobs.c.publishing)
        return self._update(queued, state="cancelled", ended_at=now())

    def request_cancel(self, id: str) -> bool:
        """Ask whoever runs a job to end it, unless it publishes already; once this is written it never does. False
        where it may have a dictionary, whichever attempt publishes that, or has moved on."""
        asked = sql.and_(_jobs.c.id == id, _jobs.c.state == "running", ~_jobs.c.publishing)
        return self._update(asked, cancel_requested=True)

    def delete(self, id: str) -> bool:
        """Remove the record of an ended job."""
        with self._database.transaction() as connection:
            ended = sql.and_(_jobs.c.id == id, _jobs.c.state.in_(ENDED))
            return connection.execute(_jobs.delete().where(ended)).rowcount > 0

    def forget_ended(self, before: datetime) -> int:
        """Remove the records of jobs that ended before this time; says how many. Of younger jobs nothing is read:
        there may be very many, and this is asked often."""
        made = _jobs.c.id < _id_at(before.timestamp())  # what ended before was made before
        with self._database.transaction() as connection:
            return connection.execute(_jobs.delete().where(made, _jobs.c.ended_at < timestamp(before))).rowcount

    # -- the database -------------------------------------------------------------------------------------

    def _select(self, condition: sql.ColumnElement[bool]) -> list[Record]:
        with self._database.transaction() as connection:
            return self._select_in(connection, condition)

    @staticmethod
    def _select_in(connection: sql.Connection, condition: sql.ColumnElement[bool]) -> list[Record]:
        return _records(connection.execute(sql.select(_jobs).where(condition).order_by(_jobs.c.id)))

    def _update(self, condition: sql.ColumnElement[bool], **values: Any) -> bool:
        with self._database.transaction() as connection:
            return connection.execute(_jobs.update().where(condition).values(**values)).rowcount > 0

    def _write(self, claimed: Record, **values: Any) -> Record:
        written = _jobs.update().where(_of(claimed)).values(**values).returning(_jobs.c.id)
        with self._database.transaction() as connection:
            id = connection.scalar(written)
            record = None if id is None else _sound(connection, id)
        if record is None:
            raise JobLost(f"job {claimed.job.id} is not attempt {claimed.job.attempts}'s any more")
        return record


def _unknown(id: str) -> UnknownJob:
    return UnknownJob(f"there is no job {id[:60]!r}; GET /jobs lists them")


def _full(queue_jobs: int) -> Overloaded:
    return Overloaded(f"{queue_jobs} fits wait already; send this one again later")


class _Ids:
    """Of the moment, and counted within it: those that a process makes in one moment are in their order."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._moment, self._count = "", 0

    def next(self) -> str:
        with self._guard:
            moment = _id_at(time.time())
            self._moment, self._count = moment, self._count + 1 if moment == self._moment else 0
            return f"{moment}{self._count:04x}{secrets.token_hex(6)}"


_ids = _Ids()


def new_id() -> str:
    """Sorts by time; unique whatever the clock does."""
    return _ids.next()


def _id_at(seconds: float) -> str:
    """What ids begin with that are made at this time, in seconds since 1970."""
    return f"{int(1000 * seconds):012x}"


def _unended(column: sql.Column[Any]) -> sql.Select[Any]:
    """One column of the jobs that have not ended: their histories of losses may be long."""
    return sql.select(column).where(_jobs.c.state.in_(["queued", "running"]))


def _progress(
    progress: Progress, loss_history: Sequence[tuple[int, float]], resumed_from: int | None
) -> dict[str, Any]:
    """An attempt that goes on from further than the one before it has not died of what that died of."""
    told = {"progress": progress.model_dump(), "loss_history": list(loss_history), "resumed_from": resumed_from}
    if resumed_from is None:
        return told
    came_further = sql.func.coalesce(_jobs.c.resumed_from, 0) < resumed_from
    return told | {"service_deaths": sql.case((came_further, 0), else_=_jobs.c.service_deaths)}


def _of(claimed: Record) -> sql.ColumnElement[bool]:
    """The job while it is this attempt's."""
    return sql.and_(
        _jobs.c.id == claimed.job.id,
        _jobs.c.state == "running",
        _jobs.c.owner == claimed.owner,
        _jobs.c.attempts == claimed.job.attempts,
    )


def _left() -> dict[str, Any]:
    """What becomes of a job that ran and does no more: it waits again, unless it was to be cancelled."""
    unwanted = _jobs.c.cancel_requested
    return {
        "state": sql.case((unwanted, "cancelled"), else_="queued"),
        "ended_at": sql.case((unwanted, now()), else_=None),
        "owner": None,
    }


def _data_files(connection: sql.Connection) -> set[str]:
    return {_file_of(data) for data in connection.scalars(_unended(_jobs.c.data)).all()}


def _file_of(data: Any) -> str:
    match data:
        case {"file": str(file)}:
            return file
    raise ValueError("a job's record does not say which file its activations are in")


def _listed(connection: sql.Connection, statement: sql.Select[Any]) -> list[ListedJob]:
    """What is selected; of a record that cannot be read, that it cannot."""
    try:
        return [ListedJob.model_validate(dict(row)) for row in connection.execute(statement).mappings()]
    except ValueError:
        ids = connection.scalars(statement.with_only_columns(_jobs.c.id)).all()
    return [_listed_alone(connection, statement, id) for id in ids]


def _listed_alone(connection: sql.Connection, statement: sql.Select[Any], id: str) -> ListedJob:
    try:
        row = connection.execute(sql.select(*statement.selected_columns).where(_jobs.c.id == id)).mappings().one()
        return ListedJob.model_validate(dict(row))
    except ValueError as error:
        problem = problem_of(_damaged(error))
    plain = sql.select(_jobs.c.id, _jobs.c.state, _jobs.c.name, _jobs.c.attempts, _jobs.c.created_at)
    told = connection.execute(plain.where(_jobs.c.id == id)).mappings().one()
    nothing = {"parameters": {}, "progress": Progress(max_iter=0), "error": msgspec.to_builtins(problem)}
    return ListedJob.model_validate({**told, **nothing})


def _sound(connection: sql.Connection, id: str) -> Record | None:
    """A job's record. None where it cannot be read, as nobody could run it: then the job has failed, with one that
    can."""
    try:
        return _records(connection.execute(sql.select(_jobs).where(_jobs.c.id == id)))[0]
    except JobDamaged as error:
        logger.error("job %s has failed: %s", id, error)
        problem = problem_of(error)
    failed = _jobs.update().where(_jobs.c.id == id)
    connection.execute(
        failed.values(
            state="failed",
            error=msgspec.to_builtins(problem),
            ended_at=now(),
            owner=None,
            parameters={},
            data={"file": ""},
            progress=Progress(max_iter=0).model_dump(),
            loss_history=[],
        )
    )
    return None


def _records(rows: sql.CursorResult[Any]) -> list[Record]:
    try:
        return [_record(row) for row in rows.mappings().all()]
    except ValueError as error:
        raise _damaged(error) from error


def _damaged(error: ValueError) -> JobDamaged:
    """JSON that is none, or no job's."""
    told = " ".join(str(error).split())
    return JobDamaged(f"the job's record cannot be read; send the fit again ({told})")


def _record(row: sql.RowMapping) -> Record:
    _file_of(row["data"])
    told = {name: row[name] for name in Job.model_fields}
    rest = {field.name: row[field.name] for field in fields(Record) if field.name != "job"}
    return Record(Job.model_validate(told), **rest)
