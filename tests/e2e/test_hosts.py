"""Two services on hosts of their own, beside a PostgreSQL and an S3 on others: what they share, and what becomes of
their work and their answers when cables are pulled."""

import io
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from app.jobs.database import Database
from app.jobs.jobs import Jobs
from app.store.bucket import Bucket, bucket_of
from app.store.object_store import ObjectStore
from demo.service import free_port, npy
from tests.conftest import ROOT
from tests.e2e.conftest import Service
from tests.faults.asked import long_fit, problem
from tests.figures import figures
from tests.hosts import Host, Network, hosts
from tests.postgres import running_cluster
from tests.waiting import until

__all__ = ["hosts"]  # a fixture

pytestmark = pytest.mark.slow

LEASE_SECONDS = 2
# moto's own server closes each connection after an answer; those of other S3s stay open, and may be lost unnoticed.
S3 = """
import sys, uvicorn
from moto.server import DomainDispatcherApplication, create_backend_app
from tests.s3 import served

app = served(DomainDispatcherApplication(create_backend_app), [])
uvicorn.run(app, interface="wsgi", host="0.0.0.0", port=int(sys.argv[1]), timeout_keep_alive=600)
"""
A = np.random.default_rng(0).random((400, 32), np.float32)

# What calls may take that find out that nobody answers (they wait for 10 s at most), and what those after them may,
# on a busy machine.
FINDS_OUT_SECONDS = 40.0
KNOWS_SECONDS = 8.0


class Replica(Service):
    """A service on a host of its own, with a directory that nobody else sees."""

    def __init__(self, host: Host, store: Path, **environment: str) -> None:
        super().__init__(store, **environment)
        self.host = host
        self.url = f"http://{host.front}:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    @property
    def command(self) -> list[str]:
        return [*self.host.launcher, *super().command, "--host", self.host.front, "--insecure"]

    @property
    def owner(self) -> str:
        (owner,) = (path.name for path in (self.store / ".dictserve" / "owners").iterdir())
        return owner

    def told(self, line: str) -> bool:
        return line in self.log.read_text()

    def codes(self, dictionary: str) -> np.ndarray:
        answer = self.client.post("/encode", params={"dictionary": dictionary}, content=npy(A[:20]))
        assert answer.status_code == 200, answer.text
        return np.load(io.BytesIO(answer.content))


@dataclass(frozen=True)
class Site:
    """
    Attributes:
        objects: the host of the object store.
        bucket: and what is in it, seen past the switch.
        database_url: past the switch, too.
        cut_off: jobs whose uploads may have been cut off in their midst. One can come after its job's end, and then
            a sweep takes it, once it is old.
    """

    replicas: tuple[Replica, Replica]
    objects: Host
    bucket: Bucket
    database_url: str
    cut_off: set[str] = field(default_factory=set)

    def by_who_runs(self, id: str) -> tuple[Replica, Replica]:
        """First the one that runs a job."""
        database = Database(self.database_url)
        owner = Jobs(database).get(id).owner
        database.close()
        one, other = self.replicas
        return (one, other) if one.owner == owner else (other, one)

    def made(self) -> Counter[str]:
        """How many versions each job has made."""
        metas = [key for key in self.bucket.entries() if key.endswith("/meta.json")]
        return Counter(orjson.loads(self.bucket.read(key))["job"] for key in metas)


@pytest.fixture(scope="module")
def site(hosts: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hosts")
    database, objects, *of_replicas = (hosts.host() for _ in range(4))
    there = {"address": database.front, "launcher": database.launcher, "listen_addresses": "*"}
    access = ["host all all 10.0.0.0/8 trust"]
    with s3_on(objects) as port, running_cluster(access=access, **there) as cluster:
        url, database_url = "s3://bucket/models", cluster.new_database()
        told = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{objects.address}:{port}",
            "DICTSERVE_OBJECTS": url,
            "DICTSERVE_OBJECTS_LISTING_SECONDS": "0.5",
            "DICTSERVE_DATABASE_URL": database_url.replace(database.front, database.address),
            "DICTSERVE_LEASE_SECONDS": str(LEASE_SECONDS),
            "DICTSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.2",
        }
        endpoint = f"http://{objects.front}:{port}"
        bucket = bucket_of(ObjectStore(url, {"key": "key", "secret": "secret", "endpoint_url": endpoint}))
        until(lambda: answers(endpoint))
        bucket._fs.mkdir("bucket")
        for host in of_replicas:
            (folder / host.name).mkdir()
        one, other = (Replica(host, folder / host.name / "own", **told) for host in of_replicas)
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(Service.start, (one, other)))
            yield (site := Site((one, other), objects, bucket, database_url))
        finally:
            with ThreadPoolExecutor(2) as pool:
                ended = list(pool.map(Service.stop, (one, other)))
        assert ended == [0, 0]
        for replica in (one, other):
            log = replica.log.read_text()
            if sys.version_info >= (3, 13):  # which tells at its end of connections that were cut
                log = log.partition("Finished server process")[0]
            assert "Traceback" not in log
            assert [*(replica.store / ".dictserve" / "staging").iterdir()] == []
        left = [key for key in bucket.entries() if key.startswith(".dictserve/") and key != ".dictserve/database"]
        assert [key for key in left if not any(id in key for id in site.cut_off)] == []


@contextmanager
def s3_on(host: Host) -> Iterator[int]:
    """A server that speaks S3 on a host, from soon on: its port."""
    port = free_port()
    command = [*host.launcher, sys.executable, "-c", S3, str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield port
        finally:
            server.kill()  # in order it would wait for connections that were cut off


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def require_what_it_can(replica: Replica, dictionary: str, codes: np.ndarray) -> None:
    """At once: it encodes, and refuses what needs the database or the object store."""
    client = replica.client
    with ThreadPoolExecutor() as pool:
        encoded = [pool.submit(replica.codes, reference) for reference in (dictionary, f"{dictionary}@1")]
        fit = pool.submit(client.post, "/fit", params={"name": "refused", "nb_concepts": 2}, content=npy(A))
        put = pool.submit(client.put, "/dictionaries/refused", content=npy(A[:2]))
        listed = pool.submit(client.get, "/dictionaries")
        jobs = [pool.submit(client.get, "/jobs") for _ in range(8)]
        for call in encoded:
            np.testing.assert_array_equal(call.result(), codes)
        for answer in (put, listed):
            problem(answer.result(), 503, "store-unavailable")
        for answer in (fit, *jobs):
            problem(answer.result(), 503, "jobs-unavailable")


def require_answers_alone(replica: Replica, dictionary: str, codes: np.ndarray) -> None:
    """It is cut off: it does what it can by itself, and refuses the rest, in time."""
    with within(FINDS_OUT_SECONDS):
        require_what_it_can(replica, dictionary, codes)
    with within(KNOWS_SECONDS):  # and from now on nobody waits
        require_what_it_can(replica, dictionary, codes)
        assert [replica.client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
        told = figures(replica.client)
    assert told["dictserve_jobs_available",] == told["dictserve_store_available",] == 0


def has_both_lines(replica: Replica) -> bool:
    """To the database and to the object store, as it sees it: each is asked again every second."""
    told = figures(replica.client)
    return told["dictserve_jobs_available",] == told["dictserve_store_available",] == 1


@pytest.fixture(scope="module")
def codes(site: Site) -> np.ndarray:
    """Of the dictionary ``shared``, which both have at hand."""
    one, other = site.replicas
    job = one.ended(one.fit(A, name="shared", nb_concepts=8))
    assert (job["state"], job["version"]) == ("succeeded", 1)
    codes = one.codes("shared")
    until(lambda: other.client.get("/dictionaries/shared").status_code == 200)
    np.testing.assert_array_equal(other.codes("shared"), codes)
    return codes


def test_work_and_dictionaries_are_shared(site: Site, codes: np.ndarray) -> None:
    """By replicas that have nothing of one machine in common."""
    assert len({replica.owner.partition("-")[0] for replica in site.replicas}) == 2
    jobs = [site.replicas[i % 2].fit(A, name=f"of-{i % 3}", nb_concepts=8, tol=0, max_iter=60) for i in range(12)]
    ended = [site.replicas[0].ended(id) for id in jobs]
    assert {(job["state"], job["attempts"]) for job in ended} == {("succeeded", 1)}
    assert {id: site.made()[id] for id in jobs} == dict.fromkeys(jobs, 1)
    one, other = (set(re.findall(r"job (\w+) has fitted", replica.log.read_text())) for replica in site.replicas)
    assert one | other >= set(jobs)
    assert not one & other
    until(lambda: all(r.client.get("/dictionaries/of-0").json()["versions"] == [1, 2, 3, 4] for r in site.replicas))
    np.testing.assert_array_equal(*(replica.codes("of-0") for replica in site.replicas))


def test_one_that_is_cut_off_loses_its_fit_and_goes_on(site: Site, codes: np.ndarray) -> None:
    """At first its packets, and those for it, get lost on the way: nobody closes a connection, and none is refused.
    Then its link is down, which it sees."""
    id = long_fit(site.replicas[0], name="cut-off", max_iter=250)
    one, other = site.by_who_runs(id)
    until(lambda: any(id in key for key in site.bucket.entries(".dictserve/checkpoints")))
    site.cut_off.add(id)
    one.host.silence()
    try:
        require_answers_alone(one, "shared", codes)
        job = other.ended(id)
        one.host.unplug()
        require_what_it_can(one, "shared", codes)
    finally:
        one.host.mend()
        one.host.plug_in()
    assert (job["state"], job["version"], job["attempts"]) == ("succeeded", 1, 2)
    assert job["resumed_from"] > 0
    until(lambda: one.told("was taken for dead") and one.told("it is left alone"))
    until(lambda: one.job(id) == job)
    assert site.made()[id] == 1
    until(lambda: has_both_lines(one))
    again = one.ended(one.fit(A, name="cut-off", nb_concepts=8))
    assert (again["state"], again["version"]) == ("succeeded", 2)
    assert one.client.get("/dictionaries/refused").status_code == 404


def test_a_fit_that_ends_while_the_object_store_is_cut_off(site: Site, codes: np.ndarray) -> None:
    """Its dictionary is published when the store is back: whole, and once."""
    id = long_fit(site.replicas[0], name="kept", max_iter=200)
    one, other = site.by_who_runs(id)
    site.cut_off.add(id)
    site.objects.silence()
    try:
        with ThreadPoolExecutor() as pool:
            encoded = [pool.submit(replica.codes, "shared") for replica in (one, other)]
            refused = [pool.submit(r.client.put, "/dictionaries/refused", content=npy(A[:2])) for r in (one, other)]
            until(lambda: one.told("a fit waits for the store"))
            for call in encoded:
                np.testing.assert_array_equal(call.result(), codes)
            for answer in refused:
                problem(answer.result(), 503, "store-unavailable")
        assert [replica.job(id)["state"] for replica in (one, other)] == ["running", "running"]
        assert not [key for key in site.bucket.entries("kept") if key.endswith("meta.json")]
    finally:
        site.objects.mend()
    job = other.ended(id)
    assert (job["state"], job["attempts"]) == ("succeeded", 1)
    assert site.made()[id] == 1
    whole = {"claim", "dictionary.safetensors", "figures.safetensors", "meta.json"}
    assert {key.rpartition("/")[2] for key in site.bucket.entries(f"kept/{job['version']}")} == whole
    until(lambda: other.client.get("/dictionaries/kept").status_code == 200)
    assert one.client.get("/dictionaries/refused").status_code == 404
