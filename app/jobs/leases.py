"""Who is alive: each serving process has a lease in the jobs' database, and renews it.

What names its owner (jobs that run, activations, checkpoints, what is staged) is its owner's as long as the lease is
there. A process gives its own back when it stops. Of one that cannot, another ends it: at once where both are on one
machine and the kernel has let go of the file lock that the dead one held (``app.store.workplace``), and wherever it
was once the lease has run out, by the database's clock. File locks of other machines are never asked.

A lease that was ended does not come back. Its process may live after all (it was held up, or cut off): it goes on
under a new name, and what it was at under the old one is another's.
"""

import logging
import math
import time

import sqlalchemy as sql

from app.jobs.database import Database, metadata
from app.store.workplace import Workplace

logger = logging.getLogger("dictserve")

leases = sql.Table(  # a change here needs one in app.jobs.migrations, for databases that there are
    "leases",
    metadata,
    sql.Column("owner", sql.String(64), primary_key=True),
    sql.Column("until", sql.Float, nullable=False),  # seconds since 1970, by the database's clock
)


def held_by(owner: sql.ColumnElement[str | None]) -> sql.ColumnElement[bool]:
    """Whether an owner has a lease, as a condition."""
    return sql.exists(sql.select(leases.c.owner).where(leases.c.owner == owner))


def lease_of(owner: str) -> sql.Select[tuple[str]]:
    """An owner's lease, which nobody ends before the transaction that looks for it has ended."""
    return sql.select(leases.c.owner).where(leases.c.owner == owner).with_for_update(read=True)


class Leases:
    """This process's lease, and those of others."""

    def __init__(self, database: Database, workplace: Workplace, seconds: float) -> None:
        self._database = database
        self._workplace = workplace
        self._seconds = seconds
        self._judges_from = math.inf  # when, by this process's clock, it may think that others do not renew

    def take(self) -> None:
        """Begin a lease under this process's present name."""
        with self._database.transaction() as connection:
            self._database.insert_new(connection, leases, owner=self._workplace.owner, until=0.0)
            connection.execute(self._extended())
        self._judges_from = time.monotonic() + self._seconds

    def renew(self) -> bool:
        """Have it for as long again; False where it was ended: `take_another` is to follow."""
        # After a time in which the database was away, or this process, leases of others may have run out who could
        # not renew them either, and now will: they are given the time. `inf` until this has come through.
        judges_from, self._judges_from = self._judges_from, math.inf
        mine = sql.select(leases.c.until < self._database.now).where(leases.c.owner == self._workplace.owner)
        with self._database.transaction() as connection:
            had_run_out = connection.execute(mine.with_for_update()).scalar_one_or_none()
            if not connection.execute(self._extended()).rowcount:
                return False
        held_up = had_run_out is not False or judges_from == math.inf
        self._judges_from = time.monotonic() + self._seconds if held_up else judges_from
        return True

    def take_another(self) -> None:
        """Go on under a new name, after another process has ended the lease."""
        was = self._workplace.owner
        self._workplace.rename_owner()
        logger.error(
            "%s was taken for dead and goes on as %s; what it was at is lost to it", was, self._workplace.owner
        )
        self.take()

    def give_back(self) -> None:
        with self._database.transaction() as connection:
            connection.execute(leases.delete().where(leases.c.owner == self._workplace.owner))

    def end_dead(self) -> set[str]:
        """End the leases of dead processes: the owners that have one then."""
        renewed, owners = self.renew(), self.alive()
        if not renewed:
            return owners
        gone = [owner for owner in owners if self._workplace.lock_is_free(owner)]
        dead: sql.ColumnElement[bool] = leases.c.owner.in_(gone)
        if time.monotonic() >= self._judges_from:
            # Where ours has run out by now, it was this process that was held up, or the clock was set.
            mine = leases.alias()
            ours_holds = sql.exists().where(mine.c.owner == self._workplace.owner, mine.c.until >= self._database.now)
            dead |= (leases.c.until < self._database.now) & ours_holds
        others = leases.c.owner != self._workplace.owner
        with self._database.transaction() as connection:
            ended = connection.execute(leases.delete().where(others, dead).returning(leases.c.owner)).scalars().all()
        for owner in ended:
            logger.warning("process %s %s", owner, "has died" if owner in gone else "does not renew its lease")
        return owners - set(ended)

    def alive(self) -> set[str]:
        """The owners that have a lease."""
        with self._database.transaction() as connection:
            return set(connection.execute(sql.select(leases.c.owner)).scalars())

    def _extended(self) -> sql.Update:
        until = self._database.now + self._seconds
        return leases.update().where(leases.c.owner == self._workplace.owner).values(until=until)
