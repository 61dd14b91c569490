"""Several services that share a PostgreSQL and a store: work is shared, and nothing is lost or done twice."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.jobs.database import Database
from app.jobs.jobs import Jobs
from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.asked import long_fit, problem, served_here, suspended
from tests.postgres import Cluster
from tests.waiting import until

pytestmark = pytest.mark.slow

LEASE_SECONDS = 3
HELD_UP_ITERATIONS = 200
A = np.random.default_rng(0).random((400, 32), np.float32)


@pytest.fixture(scope="module")
def replicas(postgres: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """Two, of which a test may leave one dead."""
    store = tmp_path_factory.mktemp("replicas") / "models"
    told = {
        "DICTSERVE_DATABASE_URL": postgres.new_database(),
        "DICTSERVE_LEASE_SECONDS": str(LEASE_SECONDS),
        "DICTSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.2",
    }
    both = Service(store, **told), Service(store, **told)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Service.start, both))
    yield both
    for service in both:
        if not service.is_running:
            service.start()  # which mends what its death has left
        assert service.stop() == 0
        assert "unexpected error" not in service.log.read_text()
    private = store / ".dictserve"
    assert [path for path in private.glob("*/*") if path.parent.name != "quarantine"] == []


@pytest.fixture
def pair(replicas: tuple[Service, Service]) -> tuple[Service, Service]:
    """Both of them, that run."""
    for service in replicas:
        if not service.is_running:
            service.start()
    return replicas


@pytest.fixture
def one_alone(replicas: tuple[Service, Service]) -> tuple[Service, Service]:
    """One that runs, and one that does not: whichever was killed before, as a start costs seconds."""
    one, other = sorted(replicas, key=lambda service: service.is_running, reverse=True)
    if other.is_running:
        assert other.stop() == 0
    return one, other


def count(service: Service, *states: str) -> int:
    """Jobs in these states, in one look: between two, a dead one's job goes from running back to queued."""
    jobs = service.client.get("/jobs", params={"limit": 1000}).raise_for_status().json()["jobs"]
    return sum(job["state"] in states for job in jobs)


def made(store: Path) -> Counter[str]:
    """How many versions each job has made."""
    return Counter(json.loads(path.read_bytes())["job"] for path in store.glob("*/*/meta.json"))


def fitted(service: Service) -> set[str]:
    """The jobs whose fits this service has brought to their end."""
    return set(re.findall(r"job (\w+) has fitted", service.log.read_text()))


def until_all_have_their_database(*services: Service) -> None:
    """Wait until each has heard that it is back: each asks again by itself, once a second."""
    until(lambda: all(service.client.get("/jobs").status_code == 200 for service in services))


def by_who_runs(pair: tuple[Service, Service], id: str) -> tuple[Service, Service]:
    """First the one that runs a job."""
    database = Database(pair[0].environment["DICTSERVE_DATABASE_URL"])
    owner = Jobs(database).get(id).owner
    database.close()
    assert owner is not None
    pid = int(owner.split("-")[1])
    return pair if pair[0].pid == pid else pair[::-1]


def test_one_that_is_held_up_loses_its_job_and_goes_on(pair: tuple[Service, Service]) -> None:
    """It lives, but does not renew its lease: when it comes to, the job is another's, and is published once."""
    id = long_fit(pair[0], name="held-up", max_iter=HELD_UP_ITERATIONS)
    one, other = by_who_runs(pair, id)
    with suspended(one.pid):
        job = other.ended(id)
    assert (job["state"], job["attempts"]) == ("succeeded", 2)
    until(lambda: "was taken for dead" in one.log.read_text() and "it is left alone" in one.log.read_text())
    until(lambda: one.job(id) == job)  # told by what it ran itself, until it has let go of that
    assert made(one.store)[id] == 1
    again = one.ended(one.fit(A, name="held-up", nb_concepts=8))
    assert (again["state"], again["version"]) == ("succeeded", 2)


def test_any_replica_cancels_and_tells_of_any_job(pair: tuple[Service, Service]) -> None:
    id = long_fit(pair[0], name="cancelled")
    one, other = by_who_runs(pair, id)
    with ThreadPoolExecutor(1) as pool:
        events = pool.submit(lambda: other.client.get(f"/jobs/{id}/events", timeout=60).text)
        until(lambda: other.job(id)["progress"]["iteration"] > 1)
        assert other.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
        assert "event: progress" in events.result(60)
        assert "event: end" in events.result(60)
    assert one.job(id)["state"] == "cancelled"
    assert other.client.delete(f"/jobs/{id}").status_code == 204
    assert one.client.get(f"/jobs/{id}").status_code == 404
    assert one.client.get("/dictionaries/cancelled").status_code == 404


def test_a_database_that_is_away_and_comes_back(pair: tuple[Service, Service], postgres: Cluster) -> None:
    """Longer than leases last: fits go on, and nobody takes anybody for dead."""
    id = long_fit(pair[0], name="away")
    one, other = by_who_runs(pair, id)
    body, parameters = npy(A), {"name": "refused", "nb_concepts": 2}
    postgres.stop()
    try:
        deadline = time.monotonic() + LEASE_SECONDS + 0.5
        while time.monotonic() < deadline:
            for answer in (other.client.get("/jobs"), other.client.post("/fit", params=parameters, content=body)):
                assert (answer.status_code, answer.json()["type"]) == (503, "jobs-unavailable"), answer.text
                assert int(answer.headers["retry-after"]) > 0
            assert other.client.get("/dictionaries").status_code == 200
            time.sleep(0.5)
        at = one.job(id)["progress"]["iteration"]  # what it knows itself
    finally:
        postgres.start()
    until_all_have_their_database(*pair)
    until(lambda: other.job(id)["progress"]["iteration"] > at)
    with suspended(one.worker_pid):
        time.sleep(LEASE_SECONDS + 0.5)  # in which they could judge each other
    job = other.job(id)
    assert (job["state"], job["attempts"]) == ("running", 1)
    assert other.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert other.ended(other.fit(A, name="after", nb_concepts=2))["state"] == "succeeded"
    assert one.client.get("/dictionaries/refused").status_code == 404


def test_two_share_a_hundred_jobs_through_the_death_of_one(pair: tuple[Service, Service]) -> None:
    one, other = pair
    jobs = [pair[i % 2].fit(A, name=f"shared-{i % 7}", nb_concepts=8, tol=0, max_iter=60) for i in range(100)]
    until(lambda: count(other, "succeeded") >= 25, every=0.3)  # each look reads a hundred records
    one.kill()
    until(lambda: count(other, "queued", "running") == 0, every=0.3)
    records = [other.job(id) for id in jobs]
    assert {record["state"] for record in records} == {"succeeded"}
    assert len({(record["name"], record["version"]) for record in records}) == 100
    times_made = made(other.store)
    assert {id: times_made[id] for id in jobs} == dict.fromkeys(jobs, 1)
    twice = [record for record in records if record["attempts"] > 1]
    assert len(twice) <= 1, twice  # the one that the dead replica was at
    # What the dead one had published, and could not log or record any more, is in neither's log.
    assert len(fitted(one) | fitted(other)) >= 99
    assert not fitted(one) & fitted(other)
    assert min(len(fitted(one)), len(fitted(other))) >= 5


def test_a_start_while_the_database_is_away(one_alone: tuple[Service, Service], postgres: Cluster) -> None:
    """Dictionaries are served at once, jobs when it is back."""
    one, other = one_alone
    assert one.client.put("/dictionaries/before", content=npy(A[:2])).status_code == 201
    postgres.stop()
    try:
        with served_here(other.store, database_url=other.environment["DICTSERVE_DATABASE_URL"]) as client:
            problem(client.get("/jobs"), 503, "jobs-unavailable")  # and its stop before it has one is in order
        other.start()
        assert other.client.post("/encode?dictionary=before", content=npy(A)).status_code == 200
        problem(other.client.get("/jobs"), 503, "jobs-unavailable")
        ready = other.client.get("/readyz")
        assert (ready.status_code, ready.json()["away"]) == (200, ["jobs"])
    finally:
        postgres.start()
    until_all_have_their_database(one, other)
    until(lambda: other.client.get("/readyz").json()["away"] == [])

    def begun() -> str | None:  # jobs are told of a moment before there is a lease to take them with
        answer = other.client.post("/fit", params={"name": "after-start", "nb_concepts": 2}, content=npy(A))
        return answer.json()["id"] if answer.status_code == 202 else None

    assert other.ended(until(begun))["state"] == "succeeded"
    assert "jobs are not served" in other.log.read_text()


def test_one_that_is_busy_takes_up_what_a_dead_one_has_left(pair: tuple[Service, Service]) -> None:
    """It is queued, and can be cancelled, though nobody comes to it soon."""
    ids = [long_fit(pair[0], name="left")]
    pair[0].until(ids[0], "running")
    ids.append(long_fit(pair[0], name="busy"))
    pair[0].until(ids[1], "running")
    one, other = by_who_runs(pair, ids[0])
    with suspended(other.worker_pid):
        one.kill()
        until(lambda: other.job(ids[0])["state"] == "queued")
        assert other.job(ids[1])["state"] == "running"
        assert other.client.delete(f"/jobs/{ids[0]}").json()["state"] == "cancelled"
    assert other.client.delete(f"/jobs/{ids[1]}").json()["state"] == "cancelled"


# What a version to come may change: a column more, and jobs that mean what this version does not know.
CHANGES = (
    (
        "migrations.py",
        ")\n# The oldest",
        "    \"ALTER TABLE jobs ADD COLUMN note VARCHAR(9) DEFAULT '-' NOT NULL\",\n)\n# The oldest",
    ),
    (
        "jobs.py",
        "    metadata,\n",
        "    metadata,\n    sql.Column('note', sql.String(9), nullable=False, server_default='-'),\n",
    ),
    ("jobs.py", "KNOWN = 1", "KNOWN = 2"),
)


class NextVersion(Service):
    @property
    def command(self) -> list[str]:
        return ["env", f"--chdir={self.source}", *super().command]

    @property
    def source(self) -> Path:
        """This version's, changed."""
        source = self.store.parent / "next"
        if not source.exists():
            shutil.copytree("app", source / "app", ignore=shutil.ignore_patterns("__pycache__"))
            for file, found, replaced in CHANGES:
                path = source / "app" / "jobs" / file
                text = path.read_text()
                assert text.count(found) == 1
                path.write_text(text.replace(found, replaced))
        return source


def test_replicas_are_updated_one_after_another(one_alone: tuple[Service, Service]) -> None:
    """Both versions serve at once; what only the new one knows it runs itself; and the way back is open."""
    old, leaving = one_alone
    new = NextVersion(old.store, **old.environment).start()
    try:
        assert "is brought from schema" in new.log.read_text()
        kept = long_fit(new, name="new")  # which keeps the new one busy
        new.until(kept, "running", iteration=1)
        theirs = new.fit(A, name="new-too", nb_concepts=8)
        ours = old.fit(A, name="old", nb_concepts=8)  # by a service that does not know the column
        assert old.ended(ours)["state"] == "succeeded"
        assert old.job(theirs)["state"] == "queued"
        new.kill()
        until(lambda: old.job(kept)["state"] == "queued")
        until(lambda: "only a later version of dictserve can run" in old.log.read_text())
        assert old.client.delete(f"/jobs/{kept}").json()["state"] == "cancelled"
        leaving.start()  # back to where it was, on a database of the new one
        assert leaving.ended(leaving.fit(A, name="old", nb_concepts=8))["state"] == "succeeded"
        assert leaving.job(theirs)["state"] == "queued"
        new.start()
        assert old.ended(theirs)["state"] == "succeeded"
        assert fitted(new) == {theirs}
    finally:
        new.stop()
