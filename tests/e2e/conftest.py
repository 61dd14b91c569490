"""The real service: processes, sockets and signals."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser
from safetensors import safe_open

from demo.service import free_port, npy, serve_command, wait_ready
from tests.e2e.browser import Visit, chromium, visiting
from tests.waiting import PATIENCE_SECONDS, until


class Service:
    """``dictserve serve`` on a free port, as a person would start it."""

    def __init__(self, store: Path, **environment: str) -> None:
        self.store = store
        self.environment = environment
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.log = store.parent / f"service-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def worker_pids(self) -> list[int | None]:
        return [worker["pid"] for worker in self.client.get("/readyz").json()["workers"]]

    @property
    def worker_pid(self) -> int:
        """Of the only worker, once there is a living one: the service may not have seen a death just now."""

        def living() -> int | None:
            (pid,) = self.worker_pids
            return None if pid is None or has_ended(pid) else pid

        return until(living)

    @property
    def command(self) -> list[str]:
        return serve_command(self.port, self.store)

    def start(self) -> "Service":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=os.environ | self.environment)
        try:
            self.wait_ready()
        except AssertionError:
            if self.process.poll() is None:
                self.kill()  # no fixture has it yet that would
            raise
        return self

    def wait_ready(self, seconds: float = PATIENCE_SECONDS) -> float:
        """How long it took until the service took work."""
        assert self.process is not None
        try:
            return wait_ready(self.client, self.process, seconds)
        except RuntimeError as error:
            raise AssertionError(f"{error}:\n{self.log.read_text()}") from None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def stop(self, seconds: float = 40.0) -> int:
        """Its exit code after SIGTERM."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)

    # -- what clients do ----------------------------------------------------------------------------------

    def fit(self, A, **parameters: object) -> str:  # type: ignore[no-untyped-def]
        answer = self.client.post("/fit", params=parameters, content=npy(A))
        assert answer.status_code == 202, answer.text
        id: str = answer.json()["id"]
        return id

    def job(self, id: str) -> dict:  # type: ignore[type-arg]
        job: dict = self.client.get(f"/jobs/{id}").json()  # type: ignore[type-arg]
        return job

    def ended(self, id: str) -> dict:  # type: ignore[type-arg]
        """The job's record, once it has ended: the service is asked to wait for that, which costs less than to ask
        again and again."""

        def its_end() -> dict | None:  # type: ignore[type-arg]
            job: dict = self.client.get(f"/jobs/{id}", headers={"prefer": "wait=20"}).json()  # type: ignore[type-arg]
            return None if job["state"] in ("queued", "running") else job

        return until(its_end, told=lambda: self.job(id))

    def checkpoint(self, id: str) -> int:
        """The iteration that the one checkpoint of a job tells of, read as anybody can."""
        (path,) = self._checkpoints(id)
        with safe_open(path, "np") as file:
            return int(json.loads(file.metadata()["checkpoint"])["numbers"]["iteration"])

    def until_kept(self, id: str) -> None:
        """Wait for a checkpoint of a job."""
        until(lambda: self._checkpoints(id), every=0.01)

    def _checkpoints(self, id: str) -> list[Path]:
        return list((self.store / ".dictserve" / "checkpoints").glob(f"*.{id}.safetensors"))

    def until(self, id: str, state: str, iteration: int = 0, attempts: int = 0) -> None:
        """Wait for a job to be in a state and at an iteration, after so many attempts."""

        def is_so() -> bool:
            job = self.job(id)
            is_there = job["progress"]["iteration"] >= iteration and job["attempts"] >= attempts
            assert job["state"] in ("queued", "running", state), job
            return is_there and job["state"] == state

        until(is_so, told=lambda: self.job(id))

    def no_job_goes_on(self) -> None:
        """Whatever a test has left, that failed in its midst, would hold up the next one's."""
        for job in self.client.get("/jobs").raise_for_status().json()["jobs"]:
            if job["state"] in ("queued", "running"):
                self.client.delete(f"/jobs/{job['id']}")


def has_ended(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until_gone(pid: int) -> None:
    """Until a process has ended: soon, as whoever stopped it waits for that."""
    until(lambda: has_ended(pid), seconds=20)


def until_answered(service: Service, path: str, status: int) -> httpx.Response:
    """The answer to a GET, once it has this status."""

    def answer() -> httpx.Response | None:
        answer = service.client.get(path)
        return answer if answer.status_code == status else None

    return until(answer, told=lambda: service.client.get(path).text)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for a module's tests, which leave it as they find it."""
    service = Service(tmp_path_factory.mktemp("shared") / "models").start()
    yield service
    assert service.stop() == 0


@pytest.fixture
def mortal(shared: Service) -> Service:
    """The module's service, which the test may kill and stop: it runs again for the next."""
    return shared if shared.is_running else shared.start()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser: Browser, shared: Service) -> Iterator[Visit]:
    """One visit of a module's tests, each of which has it forget the others'."""
    with visiting(browser, shared.url) as opened:
        yield opened
