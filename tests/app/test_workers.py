"""Several workers: who gets the next batch, what becomes of the others when one dies, and a fit on each."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pydantic
import pytest
from fastapi.testclient import TestClient

from app.balance import IN_FLIGHT, Load, least_loaded
from app.batcher import Batcher
from app.errors import WorkerUnavailable
from app.jobs.jobs import Jobs
from app.jobs.leases import Leases
from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from app.supervisor import Supervisor
from app.worker.frames import Frame
from app.worker.messages import Configure, DeviceLost, Key, Ready
from app.workers import Workers
from demo.service import npy
from tests import waiting
from tests.app.conftest import D, WorkerDouble, ended, publish
from tests.app.test_observed import figures

ROWS = np.ones((4, 4), np.float32)


class Held:
    """Answers each batch when it is told to."""

    is_stuck = False

    def __init__(self, is_ready: bool = True, is_fitting: bool = False) -> None:
        self.is_ready = is_ready
        self.is_fitting = is_fitting
        self.held: list[tuple[np.ndarray, asyncio.Future[list[np.ndarray]]]] = []

    def solve(self, key: Key, rows: Sequence[np.ndarray]) -> "asyncio.Future[list[np.ndarray]]":
        future: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
        if self.is_ready:
            self.held.append((np.concatenate(rows), future))
        else:
            future.set_exception(WorkerUnavailable("gone"))
        return future

    @property
    def rows(self) -> list[int]:
        return [len(rows) for rows, _ in self.held]

    def answer(self) -> None:
        rows, future = self.held.pop(0)
        future.set_result([2 * rows])

    def die(self) -> None:
        self.is_ready = False
        while self.held:
            self.held.pop()[1].set_exception(WorkerUnavailable("died"))


def key(name: str = "a") -> Key:
    return Key("encode", name, 1)


def batcher(*solvers: Held, budget: int = 100) -> Batcher:
    return Batcher(solvers, budget, queue_bytes=2**30, queue_rows=2**30)


def send(to: Batcher, rows: int, name: str = "a") -> "asyncio.Task[list[np.ndarray]]":
    return asyncio.create_task(to.solve(key(name), np.ones((rows, 3)), 3))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_worker_with_the_fewest_rows_is_next() -> None:
    loads = [Load(Held(), 1, 10), Load(Held(), 1, 3), Load(Held(), 1, 7)]
    assert least_loaded(loads, key()) is loads[1]
    loads[1].batches = IN_FLIGHT
    assert least_loaded(loads, key()) is loads[2]
    for load in loads:
        load.batches = IN_FLIGHT
    assert least_loaded(loads, key()) is None


def test_one_that_takes_no_work_gets_none_while_another_does() -> None:
    down, busy = Load(Held(is_ready=False)), Load(Held(), IN_FLIGHT, 50)
    assert least_loaded([down, busy], key()) is None
    busy.batches = 1
    assert least_loaded([down, busy], key()) is busy
    assert least_loaded([down, Load(Held(is_ready=False))], key()) is not None  # who says so


def test_each_dictionary_keeps_to_one_of_equals_and_each_has_its_share() -> None:
    kept = []  # so that none has the identity of another
    for _ in range(30):
        loads = [Load(Held()) for _ in range(3)]
        kept.append(loads)
        chosen = {name: least_loaded(loads, key(name)) for name in map(str, range(300))}
        assert all(least_loaded(loads, key(name)) is load for name, load in chosen.items())
        assert min(list(chosen.values()).count(load) for load in loads) > 50  # 100 are its share, give or take 8


def test_of_equals_one_without_a_fit_is_next() -> None:
    loads = [Load(Held()) for _ in range(3)]
    loads[0].solver.is_fitting = loads[2].solver.is_fitting = True  # type: ignore[misc]
    assert all(least_loaded(loads, key(name)) is loads[1] for name in map(str, range(50)))


def test_batches_of_several_workers_overlap_and_do_not_linger() -> None:
    async def run() -> None:
        workers = Held(), Held()
        feeding = batcher(*workers)
        calls = [send(feeding, 5)]
        await settle()
        calls.append(send(feeding, 1))
        await settle()
        assert sorted(len(worker.held) for worker in workers) == [1, 1]
        calls += [send(feeding, 7)]
        await settle()
        assert sorted(sum(worker.rows) for worker in workers) == [5, 8]
        for worker in workers:
            while worker.held:
                worker.answer()
                await settle()
        assert [len(answer) for (answer,) in await asyncio.gather(*calls)] == [5, 1, 7]
        assert [(load.batches, load.rows) for load in feeding.loads] == [(0, 0), (0, 0)]
        assert sum(load.solved_rows for load in feeding.loads) == 13

    asyncio.run(run())


def test_pieces_of_a_large_request_go_to_all_and_come_back_in_order() -> None:
    async def run() -> None:
        workers = Held(), Held()
        feeding = batcher(*workers, budget=3)
        rows = np.random.default_rng(0).random((20, 3))
        call = asyncio.create_task(feeding.solve(key(), rows, 3))
        await settle()
        assert [worker.rows for worker in workers] == [[3, 3], [3, 3]]
        while not call.done():  # the second worker is the faster
            for worker in (workers[1], workers[1], workers[0]):
                if worker.held:
                    worker.answer()
                    await settle()
        np.testing.assert_array_equal((await call)[0], 2 * rows)

    asyncio.run(run())


def test_a_death_is_told_to_those_on_that_worker_alone() -> None:
    async def run() -> None:
        workers = Held(), Held()
        feeding = batcher(*workers)
        calls = []
        for rows in (1, 2, 3, 4, 5, 6):  # two batches on each worker; the last two wait
            calls.append(send(feeding, rows, str(rows)))
            await settle()
        on_the_first = workers[0].rows
        workers[0].die()
        await settle()
        while workers[1].held:
            workers[1].answer()
            await settle()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        failed = [rows for rows, outcome in enumerate(outcomes, 1) if isinstance(outcome, WorkerUnavailable)]
        assert sorted(failed) == sorted(on_the_first)
        assert all(isinstance(outcome, list) for rows, outcome in enumerate(outcomes, 1) if rows not in failed)
        workers[0].is_ready = True
        two = [send(feeding, 2, "x"), send(feeding, 2, "y")]
        await settle()
        assert [len(worker.held) for worker in workers] == [1, 1]
        for worker in workers:
            worker.answer()
        await asyncio.gather(*two)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("auto", ["auto"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:3", ["cuda:3"]),
        ("cuda:0, cuda:1", ["cuda:0", "cuda:1"]),
        ("cpu:0,cpu:1", ["cpu:0", "cpu:1"]),
    ],
)
def test_devices_that_are_taken(given: str, names: list[str]) -> None:
    assert Settings(devices=given).device_names == names


@pytest.mark.parametrize("given", ["", "tpu", "cpu,cpu", "cpu:0,cuda:0", "auto,cpu", "cuda:0,cuda:0", "cuda:0,"])
def test_devices_that_are_not(given: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"is not `auto`|names a device twice"):
        Settings(devices=given)


def test_each_device_has_a_worker_that_knows_how_many_share_the_cores() -> None:
    told = [worker._configuration() for worker in Workers(Settings(devices="cpu:0,cpu:1"))]
    assert [(configure.device, configure.among) for configure in told] == [("cpu:0", 2), ("cpu:1", 2)]


@pytest.mark.parametrize("is_well", [True, False])
def test_gpus_that_the_first_worker_finds_get_workers_of_their_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, is_well: bool
) -> None:
    """Also where the first one's own cannot be used."""

    async def start(worker: Supervisor) -> None:
        """As a machine with three GPUs would answer."""
        told = worker._configuration()
        assert isinstance(told, Configure)
        if told.device != "auto":
            worker._hear(Frame(Ready(told.device, {})))
        else:
            worker._hear(Frame(Ready("cuda:0", {}, 3) if is_well else DeviceLost("cuda:0 cannot be used", 3)))

    async def run() -> None:
        monkeypatch.setattr(Supervisor, "start", start)
        workers = Workers(settings)
        begun: list[Supervisor] = []
        workers.each(begun.append)
        await workers.start()
        assert workers._finding is not None
        await workers._finding
        assert [worker.health.device for worker in begun] == ["cuda:0" if is_well else "auto", "cuda:1", "cuda:2"]
        assert begun == list(workers)
        if is_well:  # the next one that is started has no choice any more
            assert begun[0]._configuration().device == "cuda:0"
        await workers.stop()

    asyncio.run(run())


# -- the service on two doubles -------------------------------------------------------------------------------


@pytest.fixture
def pair(settings: Settings) -> list[WorkerDouble]:
    return [WorkerDouble(settings, name) for name in ("double:0", "double:1")]


@pytest.fixture
def service(settings: Settings, pair: list[WorkerDouble]) -> Iterator[TestClient]:
    with TestClient(create_app(settings, supervisor=pair), raise_server_exceptions=False) as client:
        publish(Store(settings.store), "digits", D)
        yield client


def fit(service: TestClient, name: str) -> str:
    id: str = service.post(f"/fit?name={name}&nb_concepts=2", content=npy(ROWS)).json()["id"]
    return id


def until(holds: Callable[[], bool], service: TestClient) -> None:
    for _ in range(1000):
        if holds():
            return
        service.get("/livez")  # a turn of the loop
    raise AssertionError("it never came to be")


def test_readiness_is_that_of_one_worker_and_each_is_told(service: TestClient, pair: list[WorkerDouble]) -> None:
    pair[0].alive = False
    answer = service.get("/readyz")
    assert answer.status_code == 200
    told = [(worker["device"], worker["state"]) for worker in answer.json()["workers"]]
    assert told == [("double:0", "down"), ("double:1", "ready")]
    assert service.post("/encode?dictionary=digits", content=npy(ROWS)).status_code == 200
    assert service.get("/v2/health/ready").status_code == 200
    metrics = figures(service)
    assert [metrics["dictserve_worker_ready", f"double:{number}"] for number in (0, 1)] == [0, 1]
    assert [metrics["dictserve_rows_total", f"double:{number}"] for number in (0, 1)] == [0, 4]
    pair[1].alive = False
    answer = service.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
    assert int(answer.headers["retry-after"]) > 0
    refused = service.post("/encode?dictionary=digits", content=npy(ROWS))
    assert (refused.status_code, refused.json()["type"]) == (503, "worker-unavailable")


def test_each_worker_runs_a_fit_and_a_third_waits(service: TestClient, pair: list[WorkerDouble]) -> None:
    for worker in pair:
        worker.fits_hang = True
    ids = [fit(service, name) for name in "abc"]

    def states() -> list[str]:
        return [service.get(f"/jobs/{id}").json()["state"] for id in ids]

    until(lambda: states() == ["running", "running", "queued"], service)
    assert sorted(worker.fits[0].job for worker in pair) == sorted(ids[:2])
    service.delete(f"/jobs/{ids[0]}")
    until(lambda: states() == ["cancelled", "running", "running"], service)


def test_no_fit_is_begun_on_a_worker_that_is_not_heard_of(service: TestClient, pair: list[WorkerDouble]) -> None:
    """It would wait there, though another could have it, and be charged with that worker's end."""
    pair[0].alive = False
    for name in "abcd":
        assert ended(service, fit(service, name))["state"] == "succeeded"
    assert (len(pair[0].fits), len(pair[1].fits)) == (0, 4)
    pair[0].alive, pair[1].alive = True, False
    assert ended(service, fit(service, "e"))["state"] == "succeeded"
    assert (len(pair[0].fits), len(pair[1].fits)) == (1, 4)


def test_a_database_that_is_locked_is_told_and_holds_up_a_stop_once(
    settings: Settings,
    pair: list[WorkerDouble],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is to be written at the end does not wait for the lock one after another: a killer waits for no stop."""
    for name, seconds in (
        ("loops.STOP_SECONDS", 0.1),
        ("database_threads.STUCK_SECONDS", 0.2),
        ("database.LOCK_SECONDS", 1),
    ):
        monkeypatch.setattr(f"app.jobs.{name}", seconds)
    settings = settings.model_copy(update={"lease_seconds": 1.2})
    for worker in pair:
        worker.fits_hang = True
    with TestClient(create_app(settings, supervisor=pair)) as service:

        def is_writable() -> float:
            return figures(service)["dictserve_jobs_writable",]

        ids = [fit(service, name) for name in "ab"]
        until(lambda: all(worker.fits for worker in pair), service)
        assert is_writable()
        other = sqlite3.connect(Store(settings.store).workplace.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting.until(lambda: not is_writable())
        other.execute("ROLLBACK")
        waiting.until(is_writable)
        other.execute("BEGIN IMMEDIATE")
        put_back: list[str] = []
        requeue, give_back = Jobs.requeue, Leases.give_back

        def noted(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **told: put_back.append(what) or call(*args, **told)

        monkeypatch.setattr(Jobs, "requeue", noted("job", requeue))
        monkeypatch.setattr(Leases, "give_back", noted("lease", give_back))
    assert "lease" not in put_back, put_back  # which comes last
    assert "jobs and the lease of this process are left as they are" in caplog.text
    with TestClient(create_app(settings, supervisor=pair)) as service:
        assert not is_writable()
        other.execute("ROLLBACK")
        waiting.until(lambda: all(service.get(f"/jobs/{id}").json()["attempts"] == 2 for id in ids))
        assert is_writable()
    other.close()


def test_a_job_of_one_worker_is_not_taken_for_lost_by_the_others(
    service: TestClient, pair: list[WorkerDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The idle worker's loop looks for jobs that were left, all the time."""
    for pause in ("upkeep.TAKEOVER_SECONDS", "loops.LOOK_SECONDS"):
        monkeypatch.setattr(f"app.jobs.{pause}", 0.001)
    for worker in pair:
        worker.fits_hang = True
    id = fit(service, "a")
    until(lambda: service.get(f"/jobs/{id}").json()["state"] == "running", service)
    for _ in range(100):
        service.get("/livez")
    assert service.get(f"/jobs/{id}").json()["attempts"] == 1
    assert sum(len(worker.fits) for worker in pair) == 1


def test_a_fit_whose_worker_dies_goes_on_with_another(
    settings: Settings, pair: list[WorkerDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    first.fits_hang = True
    monkeypatch.setattr(second, "start", second.stop)  # it is never ready, until it is told that it is

    def replaced() -> None:
        assert first._listener is not None
        first._ready.clear()
        second._ready.set()
        first._listener(None)

    with TestClient(create_app(settings, supervisor=pair)) as service:
        id = fit(service, "a")
        until(lambda: bool(first.fits), service)
        assert service.portal is not None
        service.portal.call(replaced)
        until(lambda: service.get(f"/jobs/{id}").json()["state"] == "succeeded", service)
        assert service.get(f"/jobs/{id}").json()["attempts"] == 2
        assert (len(first.fits), len(second.fits)) == (1, 1)
