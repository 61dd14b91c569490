"""Jobs and leases, statement by statement, on each kind of database: what two processes do to one record at once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path

import pytest
import sqlalchemy as sql

from app.errors import InvalidFields, JobDamaged, JobsUnavailable, Overloaded, UnknownJob
from app.jobs.database import Database
from app.jobs.jobs import KNOWN, JobLost, Jobs, Record, new_id
from app.jobs.leases import Leases, leases
from app.problems import Problem
from app.schemas import Job, ListedJob, Progress
from app.store.workplace import Workplace

PROBLEM = Problem("x", "X", 500, "it failed")
SECONDS = 30.0  # of a lease: longer than any of these tests


def test_ids_of_one_moment_are_in_the_order_in_which_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue goes by them, and so do pages."""
    monkeypatch.setattr("app.jobs.jobs.time.time", lambda: 1.75e9)
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


class Replica:
    """What a process has of a database and a store that it shares."""

    def __init__(self, url: str, root: Path, *, machine: str | None = None) -> None:
        self.workplace = Workplace(root)
        if machine is not None:  # whose locks nobody here can ask
            self.workplace.owner = f"{machine}-{self.workplace.owner.partition('-')[2]}"
        self.workplace.open()
        self.database = Database(url)
        self.database.open()
        self.jobs = Jobs(self.database)
        self.leases = Leases(self.database, self.workplace, SECONDS)
        self.leases.take()

    def add(self, name: str = "a", key: str | None = None, queue_jobs: int = 1000) -> Job | None:
        return self.jobs.add(
            name,
            {"max_iter": 1},
            {"file": f"{self.workplace.owner}.x.npy"},
            owner=self.workplace.owner,
            queue_jobs=queue_jobs,
            idempotency_key=key,
        )

    def claim(self) -> Record:
        record = self.jobs.claim(self.workplace.owner)
        assert record is not None
        return record

    def take_over(self) -> list[Record]:
        self.leases.end_dead()
        return self.jobs.take_over(self.workplace.owner, set())

    def let_lease_run_out(self) -> None:
        with self.database.transaction() as connection:
            ran_out = leases.update().where(leases.c.owner == self.workplace.owner).values(until=1.0)
            connection.execute(ran_out)

    def judge_others_now(self) -> None:
        """As if it had renewed its own lease for the time that it gives others."""
        self.leases._judges_from = 0.0

    def close(self) -> None:
        self.database.close()
        self.workplace.close()


@pytest.fixture
def replicas(database_url: str, tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    """Two processes on two machines, as far as they can tell."""
    both = Replica(database_url, tmp_path / "models"), Replica(database_url, tmp_path / "models", machine="elsewhere")
    yield both
    for replica in both:
        replica.close()


DAMAGE = {"progress": "{}", "data": "{}", "parameters": "[]", "loss_history": "7"}


def damage(replica: Replica, id: str, column: str) -> None:
    """A record as a fault, a hand or another version may leave it: JSON, but no job's."""
    with replica.database.transaction() as connection:
        connection.execute(sql.text(f"UPDATE jobs SET {column} = '{DAMAGE[column]}' WHERE id = '{id}'"))  # noqa: S608


def test_each_job_is_claimed_once_the_oldest_first(replicas: tuple[Replica, Replica]) -> None:
    ids = [job.id for _ in range(40) if (job := replicas[0].add()) is not None]
    claimed: list[list[str]] = [[], []]

    def work(i: int) -> None:
        while (record := replicas[i].jobs.claim(replicas[i].workplace.owner)) is not None:
            assert (record.job.state, record.job.attempts, record.owner) == (
                "running",
                1,
                replicas[i].workplace.owner,
            )
            claimed[i].append(record.job.id)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert sorted(claimed[0] + claimed[1]) == sorted(ids)
    assert [sorted(own) for own in claimed] == claimed


def test_a_claim_waits_for_nobody_elses(database_url: str, tmp_path: Path) -> None:
    """On PostgreSQL: another takes the next job, while a claim of the oldest has not ended."""
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has one writer at a time")
    replica = Replica(database_url, tmp_path / "models")
    first, second = replica.add(), replica.add()
    assert first is not None
    assert second is not None
    with replica.database.transaction() as connection:
        connection.exec_driver_sql(f"SELECT id FROM jobs WHERE id = '{first.id}' FOR UPDATE")  # noqa: S608
        assert replica.claim().job.id == second.id
    assert replica.claim().job.id == first.id
    replica.close()


def test_no_more_wait_than_may_whoever_adds_them(replicas: tuple[Replica, Replica]) -> None:
    gate = threading.Barrier(8)

    def add(i: int) -> bool:
        gate.wait()
        try:
            return replicas[i % 2].add(queue_jobs=5) is not None
        except Overloaded:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 5
    assert replicas[0].jobs.counts() == {"queued": 5}


def test_room_is_asked_for_as_it_will_be_added_to(replicas: tuple[Replica, Replica]) -> None:
    for made in range(3):
        replicas[0].jobs.require_room(3, None)
        replicas[1].add(key=f"key {made}")
    with pytest.raises(Overloaded, match="3 fits wait already"):
        replicas[0].jobs.require_room(3, None)
    with pytest.raises(Overloaded):
        replicas[0].jobs.require_room(3, "another key")
    replicas[0].jobs.require_room(3, "key 1")  # that job is there
    assert replicas[0].claim() is not None
    replicas[1].jobs.require_room(3, None)


def test_a_key_makes_one_job_whoever_adds_it(replicas: tuple[Replica, Replica]) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [job for job in pool.map(lambda i: replicas[i % 2].add(key="k"), range(8)) if job is not None]
    assert len(made) == 1
    record = replicas[1].jobs.of_key("k")
    assert record is not None
    assert record.job.id == made[0].id


def test_pages_states_and_names(replicas: tuple[Replica, Replica]) -> None:
    ids = [job.id for i in range(5) if (job := replicas[i % 2].add("ab"[i % 2])) is not None]
    replicas[0].jobs.fail(replicas[0].claim(), PROBLEM)

    def page(before: str | None, **filtered: str | None) -> list[str]:
        told = {"state": None, "name": None} | filtered
        listed = replicas[1].jobs.newest(2, before=before, **told)  # type: ignore[arg-type]
        return [job.id for job in listed]

    assert page(None) == ids[:2:-1]
    assert page(ids[3]) == ids[2:0:-1]
    assert page(ids[1]) == ids[:1]
    assert page(None, state="failed") == page(None, state="failed", name="a") == ids[:1]
    assert page(None, name="b") == [ids[3], ids[1]]
    assert page(None, name="\0") == page(None, name="ä") == []
    for cursor in ("\0", "x", "ä"):
        with pytest.raises(InvalidFields):
            page(cursor)
    for id in ("\0", "x", "0", "ä"):
        with pytest.raises(UnknownJob):
            replicas[0].jobs.get(id)
    assert replicas[0].jobs.forget_ended(datetime.now(UTC) + timedelta(days=1)) == 1
    assert not replicas[0].jobs.delete(ids[1])  # it waits


def test_to_forget_what_is_old_reads_nothing_of_what_is_not(tmp_path: Path) -> None:
    """Jobs of a month, with their histories, may be gigabytes; and this is asked every few seconds."""
    replica = Replica(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", tmp_path / "models")

    def steps() -> int:
        """Of SQLite's machine."""
        counted = []
        with replica.database.transaction() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.set_progress_handler(lambda: counted.append(1), 1)
        replica.jobs.forget_ended(datetime.now(UTC) - timedelta(days=30))
        raw.set_progress_handler(None, 1)
        return len(counted)

    def end_some(count: int) -> None:
        for _ in range(count):
            replica.add()
            replica.jobs.succeed(replica.claim(), 1)

    end_some(1)
    few = steps()
    end_some(100)
    assert steps() < few + 20
    replica.close()


def test_the_life_of_a_job_is_written_as_told(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    one.add()
    attempt = other.claim()
    assert one.jobs.unended() == {attempt.job.id}
    assert other.jobs.record_progress(attempt, Progress(iteration=1, max_iter=9, loss=0.5), [(1, 0.5)], 7)
    other.jobs.record_data(attempt, {"file": "y", "rows": 3})
    record = one.jobs.get(attempt.job.id)
    assert (record.job.progress.loss, record.job.loss_history, record.job.resumed_from) == (0.5, [(1, 0.5)], 7)
    assert one.jobs.data_files() == {"y"}
    put_back = other.jobs.requeue(attempt, worker_died=True)
    assert (put_back.job.state, put_back.owner, put_back.worker_deaths) == ("queued", None, 1)
    again = one.claim()
    assert (again.job.attempts, again.worker_deaths, again.job.started_at) == (2, 1, attempt.job.started_at)
    one.jobs.succeed(again, 3)
    ended = other.jobs.get(attempt.job.id).job
    assert (ended.state, ended.version) == ("succeeded", 3)
    assert one.jobs.unended() == set()


def test_deaths_of_services_count_until_a_fit_comes_further(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    one.add()

    def died(resumed_from: int | None) -> int:
        """How many are counted once another service has died on the job, which went on from there."""
        attempt = other.claim()
        other.jobs.record_progress(attempt, Progress(max_iter=9), [], resumed_from)
        other.let_lease_run_out()
        one.judge_others_now()
        (left,) = one.take_over()
        other.leases.take_another()
        return left.service_deaths

    assert [died(from_) for from_ in (None, 5, 5, 5, 8, None, 8)] == [1, 1, 2, 3, 1, 2, 1]
    one.claim()  # the answer is lost: nobody has died
    assert one.take_over()[0].service_deaths == 1
    attempt = other.claim()
    assert other.jobs.requeue(attempt, worker_died=True).service_deaths == 1


def test_fits_of_files_are_had_by_who_can_read_them(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    of_files = one.jobs.add(
        "a", {"max_iter": 1}, {"file": "x", "files": [{"name": "a.npy"}]}, owner=one.workplace.owner, queue_jobs=9
    )
    sent = one.add()
    assert of_files is not None
    assert sent is not None
    record = other.jobs.claim(other.workplace.owner, reads_files=False)
    assert record is not None
    assert record.job.id == sent.id
    assert other.jobs.claim(other.workplace.owner, reads_files=False) is None
    assert one.claim().job.id == of_files.id


def test_what_an_earlier_version_does_not_know_it_leaves(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, earlier = replicas
    with monkeypatch.context() as later:
        later.setattr("app.jobs.jobs.KNOWN", KNOWN + 1)
        ours = one.add()
    theirs = earlier.add()
    assert ours is not None
    assert theirs is not None
    assert (earlier.jobs.beyond(), earlier.claim().job.id) == (1, theirs.id)
    assert earlier.jobs.claim(earlier.workplace.owner) is None
    monkeypatch.setattr("app.jobs.jobs.KNOWN", KNOWN + 1)
    assert (one.jobs.beyond(), one.claim().job.id) == (0, ours.id)


WRITES = {
    "progress": lambda jobs, attempt: jobs.record_progress(attempt, Progress(max_iter=1), [], None),
    "data": lambda jobs, attempt: jobs.record_data(attempt, {"file": "x.npy"}),
    "succeed": lambda jobs, attempt: jobs.succeed(attempt, 1),
    "fail": lambda jobs, attempt: jobs.fail(attempt, PROBLEM),
    "cancelled": lambda jobs, attempt: jobs.end_cancelled(attempt),
    "requeue": lambda jobs, attempt: jobs.requeue(attempt, worker_died=True),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_a_lost_attempt_writes_does_not_hold(replicas, write) -> None:  # type: ignore[no-untyped-def]
    """Not while another has the job, nor when it has come back to the same owner for another attempt."""
    one, other = replicas
    one.add()
    first = one.claim()
    one.jobs.requeue(first, worker_died=False)
    second = other.claim()
    before = other.jobs.get(first.job.id)
    with pytest.raises(JobLost):
        write(one.jobs, first)
    assert not one.jobs.is_wanted(first)
    assert not one.jobs.begin_publishing(first)
    assert other.jobs.get(first.job.id) == before
    other.jobs.requeue(second, worker_died=False)
    third = one.claim()
    with pytest.raises(JobLost):
        write(one.jobs, first)
    assert one.jobs.get(first.job.id) == third
    assert one.jobs.is_wanted(third)
    write(one.jobs, third)


def test_a_lease_that_runs_out_costs_its_owner_the_job(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    one.add()
    attempt = other.claim()
    one.judge_others_now()
    assert one.take_over() == []  # it is renewed
    other.let_lease_run_out()
    (left,) = one.take_over()
    assert (left.job.state, left.owner) == ("queued", None)
    assert one.leases.alive() == {one.workplace.owner}
    assert one.claim().job.attempts == 2
    was = other.workplace.owner
    assert not other.leases.renew()
    other.leases.take_another()
    assert other.workplace.owner != was
    assert one.leases.alive() == {one.workplace.owner, other.workplace.owner}
    assert not other.jobs.is_wanted(attempt)
    with pytest.raises(JobsUnavailable, match="taken for dead"):
        other.jobs.add("a", {"max_iter": 1}, {"file": "x"}, owner=was, queue_jobs=9)  # its file may be swept
    assert other.leases.renew()


def test_a_lease_is_renewed_before_anybody_ends_it(replicas: tuple[Replica, Replica]) -> None:
    """Whoever could not renew its own, or has only come, gives others the time in which they can."""
    one, other = replicas
    one.add()
    attempt = other.claim()
    other.let_lease_run_out()
    assert one.take_over() == []  # it has only come
    one.judge_others_now()
    one.let_lease_run_out()  # as others' do when the database is away
    assert one.take_over() == []
    assert other.leases.renew()
    assert other.jobs.is_wanted(attempt)
    one.judge_others_now()
    assert one.take_over() == []


def test_a_clock_that_is_set_ends_nobodys_lease(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It, or this process, may jump between any two statements: then its own lease has run out, too."""
    one, other = replicas
    one.judge_others_now()
    alive = one.leases.alive

    def after_a_jump() -> set[str]:
        one.let_lease_run_out()
        other.let_lease_run_out()
        return alive()

    monkeypatch.setattr(one.leases, "alive", after_a_jump)
    one.leases.end_dead()
    assert alive() == {one.workplace.owner, other.workplace.owner}


def test_a_dead_process_on_this_machine_loses_its_jobs_at_once(database_url: str, tmp_path: Path) -> None:
    one, other = (Replica(database_url, tmp_path / "models") for _ in range(2))
    one.add()
    attempt = other.claim()
    assert one.take_over() == []
    assert other.workplace._owner_lock is not None
    other.workplace._owner_lock.close()  # as the kernel does
    assert [record.job.id for record in one.take_over()] == [attempt.job.id]
    one.workplace.sweep(one.leases.alive)
    assert [path.name for path in (one.workplace.directory / "owners").iterdir()] == [one.workplace.owner]
    one.close()
    other.close()


def test_who_gives_its_lease_back_has_none(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    other.leases.give_back()
    assert one.leases.alive() == {one.workplace.owner}
    other.leases.take()
    other.leases.take()  # as a process does that starts again under its name
    assert one.leases.alive() == {one.workplace.owner, other.workplace.owner}


def test_a_claim_whose_answer_was_lost(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    for _ in range(2):
        one.add()
    lost, known = one.claim(), one.claim()
    assert other.jobs.take_over(other.workplace.owner, set()) == []
    (left,) = one.jobs.take_over(one.workplace.owner, {known.job.id})
    assert left.job.id == lost.job.id
    assert other.claim().job.id == lost.job.id


def test_a_job_is_cancelled_or_published(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    outcomes: set[bool] = set()
    turns = takewhile(lambda turn: turn < 20 or len(outcomes) < 2, range(1000))  # until either has come first
    with ThreadPoolExecutor(2) as pool:
        for turn in turns:
            one.add()
            attempt = other.claim()
            calls = [(other.jobs.begin_publishing, attempt), (one.jobs.request_cancel, attempt.job.id)]
            first, second = (pool.submit(*call) for call in (calls if turn % 2 else calls[::-1]))
            told = first.result(), second.result()
            publishes, cancelled = told if turn % 2 else told[::-1]
            assert publishes == (not cancelled) == other.jobs.is_wanted(attempt)
            outcomes.add(publishes)
            other.let_lease_run_out()
            one.judge_others_now()
            (left,) = one.take_over()
            assert left.job.state == ("queued" if publishes else "cancelled")
            assert not one.jobs.cancel_queued(left.job.id)  # ended, or may have a dictionary
            if publishes:
                again = one.claim()
                assert not one.jobs.request_cancel(again.job.id)
                assert one.jobs.begin_publishing(again)
                one.jobs.succeed(again, turn)
            other.leases.take_another()
    assert outcomes == {True, False}


def test_a_cancel_is_asked_of_whoever_runs_the_job(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    for _ in range(4):
        one.add()
    told, put_back, left = (other.claim() for _ in range(3))
    for attempt in (told, put_back, left):
        assert not one.jobs.cancel_queued(attempt.job.id)
        one.jobs.request_cancel(attempt.job.id)
        assert one.jobs.get(attempt.job.id).job.state == "running"  # until its owner has heard
        assert not other.jobs.is_wanted(attempt)
    assert not other.jobs.record_progress(told, Progress(max_iter=1), [], None)
    other.jobs.end_cancelled(told)
    assert other.jobs.requeue(put_back, worker_died=True).job.state == "cancelled"
    other.leases.give_back()
    assert [record.job.state for record in one.take_over()] == ["cancelled"]
    waiting = one.jobs.newest(1, before=None, state="queued", name=None)[0].id
    one.jobs.request_cancel(waiting)  # not of one that waits
    assert other.jobs.cancel_queued(waiting)
    assert one.jobs.counts() == {"cancelled": 4}
    assert all(job.ended_at for job in one.jobs.newest(9, before=None, state=None, name=None))


@pytest.mark.parametrize("column", DAMAGE)
def test_a_record_that_cannot_be_read_fails_its_job_and_holds_up_no_other(
    replicas: tuple[Replica, Replica], column: str
) -> None:
    one, other = replicas
    queued, next_one, running = (job.id for _ in range(3) if (job := one.add()) is not None)
    damage(one, queued, column)
    with pytest.raises(JobDamaged, match="send the fit again"):
        one.jobs.get(queued)
    assert one.jobs.state(queued) == "queued"
    listed = one.jobs.newest(10, before=None, state=None, name=None)
    assert [job.id for job in listed] == [running, next_one, queued]
    assert [job.error and job.error["type"] for job in listed[:2]] == [None, None]
    if column in ListedJob.model_fields:
        assert listed[2].error is not None
        assert (listed[2].state, listed[2].error["type"]) == ("queued", "job-damaged")
    assert one.claim().job.id == next_one  # the oldest that can be read
    attempt = one.claim()
    assert attempt.job.id == running
    damage(one, running, column)
    with pytest.raises(JobLost):
        one.jobs.succeed(attempt, 1)
    damage(one, next_one, column)
    one.let_lease_run_out()
    other.judge_others_now()
    assert other.take_over() == []
    for id in (queued, next_one, running):
        job = other.jobs.get(id).job
        assert (job.state, job.error is not None and job.error["type"]) == ("failed", "job-damaged")
        assert other.jobs.delete(id)


def test_files_are_known_of_jobs_that_can_be_read(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    ids = [job.id for _ in range(2) if (job := one.add()) is not None]
    damage(one, ids[0], "data")
    with pytest.raises(JobsUnavailable):
        one.jobs.surely_data_files()  # and nothing is removed
    assert one.jobs.data_files() == {f"{one.workplace.owner}.x.npy"}
    assert one.jobs.state(ids[0]) == "failed"


def test_json_that_is_none_fails_its_job(tmp_path: Path) -> None:
    """PostgreSQL would not take it."""
    replica = Replica(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", tmp_path / "models")
    ids = [job.id for _ in range(2) if (job := replica.add()) is not None]
    with replica.database.transaction() as connection:
        connection.execute(sql.text("UPDATE jobs SET data = '{' WHERE id = :id"), {"id": ids[0]})
    assert [job.id for job in replica.jobs.newest(10, before=None, state=None, name=None)] == ids[::-1]
    assert replica.claim().job.id == ids[1]
    assert replica.jobs.state(ids[0]) == "failed"
    replica.close()


def test_a_state_is_told_of_what_there_is(replicas: tuple[Replica, Replica]) -> None:
    for id in ("0", "no id"):
        with pytest.raises(UnknownJob):
            replicas[0].jobs.state(id)
