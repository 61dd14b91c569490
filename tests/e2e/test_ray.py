"""The service on a Ray cluster of two nodes, which loses replicas, and then a node; and on one that scales."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from app.jobs.database import Database
from app.jobs.jobs import Jobs
from app.jobs.leases import Leases
from app.settings import Settings
from app.store.store import Store
from demo.digits import split_digits
from demo.service import free_port, npy

ROOT = Path(__file__).parent.parent.parent
CONFIG = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
FITTED, HELD_OUT = split_digits()
BODY = npy(HELD_OUT[:200])
SLOW = npy(np.random.default_rng(0).random((4000, 512), np.float32))  # a fit of it takes seconds
ENDLESS = {
    "solver": "mu",
    "nb_concepts": 256,
    "tol": 0,
    "max_iter": 100_000,
}  # of that: it does not settle for minutes

# Ray is imported where it is needed: that takes two seconds, and warns of its own use of pydantic
pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("DICTSERVE_TEST_RAY"), reason="two nodes of Ray take minutes: make ray runs it"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.timeout(300),
]


class OnRay:
    """A node for each port, all on one machine, with a proxy each.

    Args:
        cpus: of each node; each replica takes one.
        told: of the application, beside what deploy/ray has.
    """

    def __init__(self, folder: Path, ports: tuple[int, ...], cpus: int, told: dict[str, Any]) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.clients = [httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) for port in ports]
        node = {"num_cpus": cpus, "object_store_memory": 100 * 2**20}
        self.cluster = Cluster()
        try:
            self.cluster.add_node(**node, include_dashboard=False)
            self.others = [self.cluster.add_node(**node) for _ in ports[1:]]
            config = folder / "serve.yaml"
            config.write_text(yaml.safe_dump(self._config(ports[0], told)))
            serve = [sys.executable, "-m", "ray.serve.scripts", "run"]
            command = [*serve, "--address", self.cluster.address, str(config)]
            self._log = folder / "serve.log"
            with self._log.open("wb") as log:
                self._serve = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        except BaseException:
            self.cluster.shutdown()
            raise

    def _config(self, port: int, told: dict[str, Any]) -> dict[str, Any]:
        """What deploy/ray has, but for what this machine has otherwise."""
        settings = {"DICTSERVE_STORE": str(self.folder / "models"), "DICTSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.1"}
        (application,) = CONFIG["applications"]
        here = {"runtime_env": {"env_vars": settings}} | told
        http = {"host": "127.0.0.1", "port": port}
        return CONFIG | {"http_options": http, "applications": [application | here]}

    def stop_serving(self) -> int:
        """Exit code of `serve run`, stopped as by Ctrl-C."""
        self._serve.send_signal(signal.SIGINT)
        try:
            return self._serve.wait(120)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._log.read_text()[-5000:]) from None

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self._serve.kill()
        self._serve.wait()
        self.cluster.shutdown()

    def pids(self, deployment: str) -> set[int]:
        """The replicas' processes, which are children of their nodes'."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()}
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                parent = parent_of(int(process.name))
            except OSError:  # it has ended
                continue
            if parent in raylets and command.startswith(f"ray::ServeReplica:dictserve:{deployment}".encode()):
                found.add(int(process.name))
        return found

    def replica_of(self, client: httpx.Client) -> int | None:
        """Process of the replica behind a proxy, which prefers that of its own node; None where none is ready."""
        try:
            answer = client.get("/readyz")
        except httpx.TransportError:
            return None
        if answer.status_code != 200:
            return None
        return parent_of(answer.json()["workers"][0]["pid"])

    def until(self, holds: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self._log.read_text()[-5000:]
            assert self._serve.poll() is None, self._log.read_text()[-5000:]
            time.sleep(0.1)

    def job(self, id: str) -> dict[str, Any]:
        """A job's record, asked for until there is an answer."""
        for client in self.clients * 50:
            try:
                answer = client.get(f"/jobs/{id}")
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                return dict(answer.json())
            assert answer.status_code == 503, answer.text
            time.sleep(0.1)
        raise AssertionError("no answer")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def on_ray(nodes: int, cpus: int, told: dict[str, Any]) -> Iterator[OnRay]:
    """Once every node's proxy has a replica."""
    ports = tuple(free_port() for _ in range(nodes))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ds-") as folder:  # short: sockets
        # what nodes would be started with; and that the second one's proxy is on the machine of the first one's
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_WORKER_PROXY_HTTP_PORT", str(ports[-1]))
        ray = OnRay(Path(folder), ports, cpus, told)
        try:
            ray.until(lambda: len({ray.replica_of(client) for client in ray.clients} - {None}) == nodes, seconds=100)
            yield ray
        finally:
            ray.stop()


@pytest.fixture(scope="module")
def ray() -> Iterator[OnRay]:
    """On each of two nodes a replica, and room for one that fits."""
    apart = {"name": "Dictserve", "max_replicas_per_node": 1}
    told = {"args": {"min_replicas": 2, "max_replicas": 2, "cpus": 1}, "deployments": [apart]}
    with on_ray(2, 2, told) as ray:
        yield ray


@pytest.fixture(scope="module")
def scaling() -> Iterator[OnRay]:
    """One node, with room for three replicas and one that fits."""
    soon = {"upscale_seconds": 1, "downscale_seconds": 2}
    with on_ray(
        1, 4, {"args": {"min_replicas": 1, "max_replicas": 3, "target_requests": 4, "cpus": 1} | soon}
    ) as ray:
        yield ray


def fit_digits(client: httpx.Client) -> None:
    job = client.post("/fit?name=digits&nb_concepts=32", content=npy(FITTED), headers={"prefer": "wait=60"})
    assert (job.status_code, job.json()["state"]) == (200, "succeeded"), job.text


@pytest.fixture(scope="module")
def expected(ray: OnRay) -> np.ndarray:
    """Codes of BODY, on a dictionary that was fitted through the one replica and is served by the other."""
    one, other = ray.clients
    fit_digits(one)
    codes = [codes_of(client.post("/encode?dictionary=digits", content=BODY)) for client in (other, one)]
    np.testing.assert_allclose(codes[0], codes[1], atol=1e-5 * codes[0].max())
    return codes[0]


def codes_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    codes: np.ndarray = np.load(io.BytesIO(answer.content))
    return codes


@contextmanager
def encoding(ray: OnRay, expected: np.ndarray, through: list[int], *, at_once: int = 3) -> Iterator[Counter[str]]:
    """Encode through each of these proxies from several threads all the while; how many came to what."""
    counted: Counter[str] = Counter()
    faults: list[str] = []
    leaving = threading.Event()

    def encode(proxy: int) -> None:
        with httpx.Client(base_url=ray.clients[proxy].base_url, timeout=60) as client:
            while not leaving.is_set():
                try:
                    answer = client.post("/encode?dictionary=digits", content=BODY)
                except httpx.TransportError:
                    counted["no answer"] += 1
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    if np.allclose(codes_of(answer), expected, atol=1e-5 * expected.max()):
                        counted["encoded"] += 1
                    else:
                        faults.append("other codes")
                elif answer.status_code == 503 and int(answer.headers["retry-after"]) > 0:
                    counted[answer.json()["type"]] += 1
                    time.sleep(0.05)
                else:
                    faults.append(f"{answer.status_code} {answer.text}")

    threads = [threading.Thread(target=encode, args=(proxy,)) for proxy in through for _ in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        yield counted
    finally:
        leaving.set()
        for thread in threads:
            thread.join()
    assert faults == []


def encoded_on(ray: OnRay, counted: Counter[str], more: int = 50) -> None:
    """Wait until so many more have been encoded."""
    before = counted["encoded"]
    ray.until(lambda: counted["encoded"] >= before + more)


class Waiting:
    """Some who wait for the end of a job that has none, two for an answer and one for events; what came of it."""

    def __init__(self, client: httpx.Client, request: dict[str, Any], headers: dict[str, str], id: str) -> None:
        self._client = client
        self._request, self._headers = request, headers | {"prefer": "wait=600"}
        self._id = id
        self.answers: list[object] = []
        self.follows = threading.Event()  # it has had an event
        targets = (self._wait, self._wait, self._follow)
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]

    def __enter__(self) -> "Waiting":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        if failure is None:
            for thread in self._threads:
                thread.join()

    def _wait(self) -> None:
        with httpx.Client(base_url=self._client.base_url, timeout=600) as client:
            try:
                answer = client.post("/fit", params=self._request, content=SLOW, headers=self._headers)
            except httpx.TransportError as error:
                self.answers.append(error)
            else:
                self.answers.append(answer.json()["id"] if answer.status_code in (200, 202) else answer.text)

    def _follow(self) -> None:
        with httpx.Client(base_url=self._client.base_url, timeout=600) as client:
            try:
                with client.stream("GET", f"/jobs/{self._id}/events") as events:
                    for line in events.iter_lines():
                        if line.startswith("event:"):
                            self.follows.set()
            except httpx.TransportError as error:
                self.answers.append(error)
            else:
                self.answers.append(self._id if self.follows.is_set() else "no event")


@pytest.mark.slow
def test_a_lost_replica_costs_nothing_that_another_try_does_not_bring(ray: OnRay, expected: np.ndarray) -> None:
    worker = ray.clients[1].get("/readyz").json()["workers"][0]["pid"]
    lost = parent_of(worker)
    before = ray.pids("Dictserve")
    assert lost in before
    with encoding(ray, expected, through=[0, 1]) as counted:
        encoded_on(ray, counted)
        os.kill(worker, signal.SIGSTOP)  # so that the replica has begun requests when it dies
        time.sleep(1)
        os.kill(lost, signal.SIGKILL)
        encoded_on(ray, counted)
        ray.until(lambda: len({ray.replica_of(client) for client in ray.clients} - {None, lost}) == 2)
        encoded_on(ray, counted)
    assert len(ray.pids("Dictserve") - before) == 1
    assert set(counted) == {"encoded", "worker-unavailable"}


@pytest.mark.slow
def test_a_fit_goes_on_when_its_fitter_is_lost(ray: OnRay, expected: np.ndarray) -> None:
    request = {"name": "slow", "nb_concepts": 64, "tol": 0, "max_iter": 200}
    id = ray.clients[1].post("/fit", params=request, content=SLOW).json()["id"]
    checkpoints = ray.folder / "models" / ".dictserve" / "checkpoints"
    ray.until(lambda: list(checkpoints.glob(f"*{id}*")))
    (fitter,) = ray.pids("Fitter")
    os.kill(fitter, signal.SIGKILL)
    ray.until(lambda: ray.job(id)["state"] == "succeeded")
    job = ray.job(id)
    assert job["attempts"] == 2
    assert job["resumed_from"] > 0
    assert ray.pids("Fitter") != {fitter}
    for client in ray.clients:
        assert client.get("/dictionaries/slow").json()["version"] == job["version"]


@pytest.mark.slow
def test_large_answers_come_whole_and_each_with_one_id(ray: OnRay, expected: np.ndarray) -> None:
    rows = np.tile(HELD_OUT, (20, 1))
    answer = ray.clients[0].post("/encode?dictionary=digits", content=npy(rows), headers={"x-request-id": "mine"})
    assert codes_of(answer).shape == (len(rows), 32)
    assert answer.headers.get_list("x-request-id") == ["mine"]
    unknown = ray.clients[0].post("/encode?dictionary=none", content=BODY)
    assert (unknown.status_code, unknown.json()["type"]) == (404, "unknown-dictionary")
    assert ray.clients[0].get("/-/healthz").status_code == 200


@pytest.mark.slow
def test_no_site_can_lead_its_pages_here(ray: OnRay) -> None:
    """There are no tokens: only names that nobody can register are answered to."""
    for host, status in (("127.0.0.1:8000", 200), ("node-1", 200), ("evil.example", 403)):
        assert ray.clients[0].get("/dictionaries", headers={"Host": host}).status_code == status, host


def test_a_worker_has_as_many_threads_as_its_replica_has_cpus(ray: OnRay) -> None:
    worker = ray.clients[0].get("/readyz").json()["workers"][0]["pid"]
    assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")


@pytest.mark.slow
def test_a_lost_node_leaves_the_other_serving(ray: OnRay, expected: np.ndarray) -> None:
    """The last but one on this cluster."""
    with encoding(ray, expected, through=[0]) as counted, encoding(ray, expected, through=[1]) as of_the_lost:
        encoded_on(ray, counted)
        encoded_on(ray, of_the_lost)
        ray.cluster.remove_node(ray.others[0], allow_graceful=False)
        encoded_on(ray, counted, more=200)
    assert of_the_lost["no answer"] > 0
    assert set(of_the_lost) <= {"encoded", "no answer", "worker-unavailable"}
    assert set(counted) <= {"encoded", "worker-unavailable"}
    id = ray.clients[0].post("/fit?name=after&nb_concepts=2", content=npy(FITTED[:100])).json()["id"]
    ray.until(lambda: ray.job(id)["state"] == "succeeded")


@pytest.mark.slow
def test_a_stop_in_order_puts_the_fit_under_way_back(ray: OnRay, expected: np.ndarray) -> None:
    """The last on this cluster."""
    request, key = {"name": "stopped"} | ENDLESS, {"idempotency-key": "one"}
    id = ray.clients[0].post("/fit", params=request, content=SLOW, headers=key).json()["id"]
    ray.until(lambda: ray.job(id)["progress"]["iteration"] > 0)
    store = Store(ray.folder / "models")
    database = Database(f"sqlite:///{store.workplace.database}")
    jobs, leases = Jobs(database), Leases(database, store.workplace, 0)
    try:
        with Waiting(ray.clients[0], request, key, id) as waiting:
            ray.until(waiting.follows.is_set)
            alive = {owner for owner in leases.alive() if not store.workplace.lock_is_free(owner)}
            assert ray.stop_serving() == 0
        assert (jobs.get(id).job.state, jobs.get(id).owner) == ("queued", None)
        assert [path.name.split(".")[-2] for path in store.workplace.checkpoints.iterdir()] == [id]
        assert alive
        assert not alive & leases.alive()  # nobody was killed: who stops in order gives its lease back
    finally:
        database.close()


@pytest.mark.slow
def test_replicas_come_and_go_with_the_requests_and_lose_none(scaling: OnRay) -> None:
    (client,) = scaling.clients
    fit_digits(client)
    expected = codes_of(client.post("/encode?dictionary=digits", content=BODY))
    request, key = {"name": "meanwhile"} | ENDLESS, {"idempotency-key": "one"}
    id = client.post("/fit", params=request, content=SLOW, headers=key).json()["id"]
    scaling.until(lambda: scaling.job(id)["progress"]["iteration"] > 0)
    fitter, seen = scaling.pids("Fitter"), set[int | None]()

    def all_are_there() -> bool:
        seen.add(scaling.replica_of(client))
        return len(seen - {None}) == 3

    with encoding(scaling, expected, through=[0], at_once=1) as throughout:
        with encoding(scaling, expected, through=[0], at_once=16) as surge:
            scaling.until(all_are_there, seconds=120)
            encoded_on(scaling, surge)
        reached = scaling.job(id)["progress"]["iteration"]
        with Waiting(client, request, key, id) as waiting:
            scaling.until(lambda: len(scaling.pids("Dictserve")) == 1, seconds=120)
            encoded_on(scaling, throughout)
            scaling.until(lambda: scaling.job(id)["progress"]["iteration"] > reached)
            job = scaling.job(id)
            assert client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert set(throughout + surge) <= {"encoded", "overloaded", "worker-unavailable"}
    assert (job["state"], job["attempts"], scaling.pids("Fitter")) == ("running", 1, fitter)
    assert waiting.answers == [id] * 3


def test_serves_schema_takes_the_example() -> None:
    from ray.serve.schema import ServeDeploySchema

    from app.ray import Scale, deployment

    (application,) = ServeDeploySchema.model_validate(CONFIG).applications
    assert application.import_path == f"{deployment.__module__}:{deployment.__name__}"
    Scale(**application.args)
    told = application.runtime_env["env_vars"]
    assert {name.removeprefix("DICTSERVE_").lower() for name in told} <= set(Settings.model_fields)


def test_the_arguments_are_documented() -> None:
    from app.ray import Scale

    told = (ROOT / "docs" / "scale.md").read_text()
    for name, field in Scale.model_fields.items():
        assert f"| `{name}` | `{field.default}` | {field.description} |" in told


def test_paths_are_those_of_whoever_starts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replicas run in directories of Ray's."""
    from app.ray import _absolute

    monkeypatch.chdir(tmp_path)
    settings = _absolute(Settings(store=Path("models"), database_url="sqlite:///jobs.sqlite3"))
    assert settings.store == tmp_path / "models"
    assert settings.database_url == f"sqlite:///{tmp_path}/jobs.sqlite3"


@pytest.mark.parametrize(
    ("environment", "arguments", "said"),
    [
        ({"DICTSERVE_DEVICES": "tpu"}, [], "Error: setting devices: "),
        ({}, ["max_replicas=none"], "Error: argument max_replicas: "),
        ({}, ["replicas=3"], "Error: argument replicas: "),
        ({}, ["cpus=inf"], "Error: argument cpus: "),
        ({}, ["cpus=0.00001"], "Error: argument cpus: Value error, Ray counts"),
        ({"DICTSERVE_OBJECTS_OPTIONS": "{bad"}, [], "Error: setting objects_options: it is not JSON"),
        ({}, ["min_replicas=3", "max_replicas=2"], "Error: argument: "),
    ],
)
def test_a_start_that_cannot_be_says_why_in_a_line(
    environment: dict[str, str], arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import click

    from app.ray import deployment

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(click.ClickException) as caught:
        deployment(dict(argument.split("=") for argument in arguments))
    assert f"Error: {caught.value.format_message()}".startswith(said)
    assert "\n" not in caught.value.format_message()
