"""The store's disk full, read-only or gone, and dictionaries that are damaged: told with the reason, reads go on, and
nothing needs a restart once it is mended."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.store.checkpoint_file import FORMAT, Rows, Told
from app.worker import fitting
from app.worker.messages import CheckpointPlace
from demo.service import npy
from tests.e2e.conftest import Service, until_answered
from tests.faults.asked import FITTED, D, encode, fit, long_fit, problem, put, require_next
from tests.waiting import until

DISK_BYTES = 8 * 1024 * 1024


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=10)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True, timeout=10)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk can only be mounted by root: {error}")
    yield path
    unmount(path)


@pytest.fixture
def stored(disk: Path) -> Iterator[Service]:
    """A service whose store is on that disk, with a dictionary of two versions."""
    service = Service(disk / "models")
    service.log = disk.parent / "service.log"
    service.start()
    assert [put(service).status_code for _ in range(2)] == [201, 201]
    yield service
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def fill(path: Path) -> None:
    """Leave no byte."""
    with (path / "filler").open("wb", buffering=0) as file:
        for size in (65536, 4096):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def reads_work(service: Service) -> None:
    assert encode(service).status_code == 200
    assert [told["name"] for told in service.client.get("/dictionaries").json()["dictionaries"]] == ["d"]
    assert service.client.get("/dictionaries/d").json()["versions"] == [1, 2]
    assert service.client.get("/dictionaries/d@1/weights").status_code == 200


def test_a_full_disk(stored: Service, disk: Path) -> None:
    fill(disk)
    full = {
        "import": put(stored, "new"),
        "label": stored.client.patch("/dictionaries/d", json={"labels": {"a": "b"}}),
        "fit of npy": stored.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED)),
        "fit of JSON": stored.client.post("/fit", json={"name": "new", "nb_concepts": 2, "data": FITTED.tolist()}),
        "fit of float64": stored.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED.astype(np.float64))),
    }
    for answer in full.values():
        assert "full" in problem(answer, 507, "store-full")
    reads_work(stored)
    assert stored.client.get("/jobs").json()["jobs"] == []
    assert list((stored.store / ".dictserve" / "activations").iterdir()) == []

    assert stored.client.delete("/dictionaries/d@1").status_code == 204  # room is made through the service too
    assert put(stored, "tiny").status_code in (201, 507)
    (disk / "filler").unlink()
    assert put(stored, "new").status_code == 201
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"
    require_next(stored)


def test_a_start_on_a_full_disk(stored: Service, disk: Path) -> None:
    """Dictionaries are served; jobs, and all that writes, once there is room."""
    ended = stored.ended(fit(stored, name="fitted"))
    assert stored.stop() == 0
    fill(disk)
    stored.start()
    assert encode(stored).status_code == 200
    assert stored.client.get("/dictionaries/d").json()["versions"] == [1, 2]
    assert "full" in problem(stored.client.get("/jobs"), 503, "jobs-unavailable")
    assert "full" in problem(put(stored, "new"), 507, "store-full")
    assert stored.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED)).status_code in (503, 507)
    assert "dictserve_jobs_available 0.0" in stored.client.get("/metrics").text
    assert stored.stop() == 0
    stored.start()
    assert "jobs are not served: the jobs' database cannot be used: its disk is full" in stored.log.read_text()
    (disk / "filler").unlink()
    until_answered(stored, "/jobs", 200)
    assert stored.job(ended["id"]) == ended
    assert stored.ended(fit(stored, name="fitted"))["version"] == 2
    require_next(stored)


def test_a_disk_that_an_upload_fills(stored: Service) -> None:
    """The body itself is more than the disk takes."""
    large = npy(np.ones((DISK_BYTES // 16, 6), np.float32))
    problem(stored.client.post("/fit?name=new&nb_concepts=2", content=large), 507, "store-full")
    assert list((stored.store / ".dictserve" / "activations").iterdir()) == []
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"
    require_next(stored)


def test_a_disk_that_fills_during_a_fit(stored: Service, disk: Path) -> None:
    """The job ends with the reason; or it publishes once there is room, where it had not begun to before."""
    id = long_fit(stored, name="new", max_iter=300)
    fill(disk)
    reads_work(stored)
    said = "a job's record cannot be written"
    until(lambda: stored.job(id)["state"] != "running" or said in stored.log.read_text(), every=0.1)
    assert stored.client.get("/dictionaries/new").status_code == 404
    (disk / "filler").unlink()
    job = stored.ended(id)
    published = job["state"] == "succeeded"
    assert published or (job["state"], job["error"]["type"]) == ("failed", "store-full"), job
    assert stored.ended(fit(stored, name="new"))["version"] == 1 + published
    require_next(stored)


def test_a_disk_that_a_checkpoint_fills(
    disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there was room enough when it was begun: nothing of it stays, and the log says why."""
    monkeypatch.setattr(fitting, "FREE_SHARE", float("inf"))
    told = Told(FORMAT, "1", {}, {"iteration": 1.0}, 0.0)
    rows = Rows("F32", (DISK_BYTES // 128, 64), lambda rows: np.ones((rows.stop - rows.start, 64), np.float32))
    writing = fitting.Writing(CheckpointPlace(str(disk / "1"), str(disk / "staged"), 30.0), told, {"Z": rows})
    assert writing.ended.wait(10)
    assert "job 1 goes on without a checkpoint, for none can be written: [Errno 28] No space left" in caplog.text
    assert list(disk.iterdir()) == []


def test_a_lock_that_nobody_lets_go_of(stored: Service) -> None:
    """As of another service of the store that was stopped in the midst of a publication."""
    with (stored.store / ".dictserve" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        labels = {"labels": {"a": "b"}}
        with ThreadPoolExecutor(12) as pool:
            begun = time.monotonic()
            asked = [pool.submit(stored.client.patch, "/dictionaries/d", json=labels, timeout=60) for _ in range(12)]
            for answer in asked:
                assert "locked" in problem(answer.result(), 503, "store-unavailable")
            assert time.monotonic() - begun < 40
        reads_work(stored)
        id = fit(stored, name="fitted")
        time.sleep(1)
        assert stored.job(id)["state"] == "running"  # it waits
        other = Service(stored.store)
        run = subprocess.run(other.command, capture_output=True, text=True, timeout=60, env=os.environ)
        assert run.returncode == 1
        assert "locked" in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert stored.ended(id)["state"] == "succeeded"
    require_next(stored)


def test_a_read_only_store(stored: Service) -> None:
    """Another mount of the store over it, read-only: what is opened from now on cannot be written."""
    store = stored.store
    mount("--bind", str(store), str(store))
    try:
        mount("-o", "remount,bind,ro", str(store))
        for answer in (
            put(stored, "new"),
            stored.client.patch("/dictionaries/d", json={"labels": {"a": "b"}}),
            stored.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED)),
            stored.client.post("/fit", json={"name": "new", "nb_concepts": 2, "data": FITTED.tolist()}),
            stored.client.delete("/dictionaries/d@1"),
        ):
            assert "Read-only" in problem(answer, 503, "store-unavailable")
        reads_work(stored)
        another = Service(store).command  # on a port of its own
        refused = subprocess.run(another, capture_output=True, text=True, timeout=30)
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    finally:
        unmount(store)
    assert put(stored, "new").status_code == 201
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"
    require_next(stored)


def test_a_read_only_store_is_checked(stored: Service) -> None:
    """As a snapshot of one may be: SQLite can make none of its files there."""
    assert stored.stop() == 0
    mount("--bind", str(stored.store), str(stored.store))
    try:
        mount("-o", "remount,bind,ro", str(stored.store))
        told = [sys.executable, "-m", "app", "check", "--store", str(stored.store)]
        checked = subprocess.run(told, capture_output=True, text=True, timeout=60)
        assert (checked.returncode, ", 0 damaged" in checked.stdout, checked.stderr) == (0, True, ""), checked
    finally:
        unmount(stored.store)
    stored.start()


def test_a_store_that_is_gone_and_comes_back(service: Service) -> None:
    elsewhere = service.store.with_name("elsewhere")
    service.store.rename(elsewhere)
    for answer in (
        encode(service),
        put(service, "new"),
        service.client.get("/dictionaries"),
        service.client.get("/dictionaries/d"),
        service.client.delete("/dictionaries/d"),
        service.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED)),
        service.client.post("/fit", json={"name": "new", "nb_concepts": 2, "data": FITTED.tolist()}),
    ):
        assert "No such file" in problem(answer, 503, "store-unavailable")
    assert service.client.get("/livez").status_code == 200
    elsewhere.rename(service.store)
    require_next(service)
    assert service.ended(fit(service, name="fitted"))["state"] == "succeeded"
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def test_fits_outlast_a_store_that_is_gone_for_a_while(service: Service) -> None:
    """The one under way, which ends meanwhile, and the one that would be begun."""
    running, waiting = long_fit(service, name="new", max_iter=200), fit(service, name="waiting")
    elsewhere = service.store.with_name("elsewhere")
    service.store.rename(elsewhere)
    until(lambda: "a fit waits for the store" in service.log.read_text(), told=service.log.read_text)
    elsewhere.rename(service.store)
    for id in (running, waiting):
        assert service.ended(id)["state"] == "succeeded"
    assert list((service.store / ".dictserve" / "activations").iterdir()) == []
    require_next(service)


@pytest.mark.slow
def test_a_store_that_is_gone_for_longer_than_idle_fits_wait(service: Service) -> None:
    """What looks for jobs that others left finds no store, and is still there when the store is."""
    assert put(service).status_code == 201
    elsewhere = service.store.with_name("elsewhere")
    service.store.rename(elsewhere)
    until(lambda: "what dead processes have left cannot be taken up" in service.log.read_text())
    elsewhere.rename(service.store)
    require_next(service)
    assert service.ended(fit(service, name="fitted"))["state"] == "succeeded"


def test_a_store_that_is_removed_for_good(service: Service) -> None:
    """It is told, again and again; a start makes an empty one."""
    shutil.rmtree(service.store)
    for _ in range(2):
        problem(encode(service), 503, "store-unavailable")
        problem(put(service), 503, "store-unavailable")
    assert service.stop() == 0
    service.start()
    assert service.client.get("/dictionaries").json() == {"dictionaries": []}
    assert put(service).status_code == 201
    require_next(service)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(at: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return flip


def overwritten(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def told(**fields: object) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | fields)) and None


WEIGHTS, META, LABELS = "dictionary.safetensors", "meta.json", "labels.json"
DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights truncated": (WEIGHTS, truncated, "SHA-256"),
    "weights emptied": (WEIGHTS, emptied, "SHA-256"),
    "a bit of the values": (WEIGHTS, flipped(-1), "SHA-256"),
    "a bit of the header": (WEIGHTS, flipped(20), "SHA-256"),
    "a bit of the header's length": (WEIGHTS, flipped(3), "SHA-256"),
    "weights of another": (WEIGHTS, overwritten(npy(D)), "SHA-256"),
    "weights removed": (WEIGHTS, Path.unlink, "has no dictionary.safetensors"),
    "meta truncated": (META, truncated, "meta.json"),
    "meta emptied": (META, emptied, "meta.json"),
    "meta garbage": (META, overwritten(b"\xff\x00garbage"), "meta.json"),
    "meta of 10 000 brackets": (META, overwritten(b"[" * 10_000), "meta.json"),
    "meta a list": (META, overwritten(b"[]"), "meta.json"),
    "meta removed": (META, Path.unlink, "has no meta.json"),
    "a format to come": (META, told(format=99), "format 99"),
    "another name": (META, told(name="other"), "other@2"),
    "another version": (META, told(version=7), "d@7"),
    "another hash": (META, told(sha256="0" * 64), "SHA-256"),
    "a hash that is none": (META, told(sha256=None), "meta.json"),
    "labels garbage": (LABELS, overwritten(b"{"), "labels.json"),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("damaged") / "models").start()
    assert put(service, "other").status_code == 201
    yield service
    assert "unexpected error" not in service.log.read_text()
    assert service.stop() == 0


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_version(damaged: Service, damage: tuple[str, Callable[[Path], None], str]) -> None:
    file, harm, said = damage
    client = damaged.client
    whole, harmed = (put(damaged, "d", scale=scale).json()["version"] for scale in (1, 2))
    said = said.replace("@2", f"@{harmed}")
    harm(damaged.store / "d" / str(harmed) / file)
    record_is_read = (
        file != WEIGHTS and said != "SHA-256"
    )  # whether the weights are its own is seen when they are read
    answers = [client.get(f"/dictionaries/d@{harmed}")] if record_is_read else []
    if file != LABELS:
        answers += [client.get(f"/dictionaries/d@{harmed}/weights"), encode(damaged, f"d@{harmed}"), encode(damaged)]
    for answer in answers:
        assert said in problem(answer, 500, "dictionary-damaged")
    listed = {told["name"]: told["version"] for told in client.get("/dictionaries").json()["dictionaries"]}
    assert listed == {"d": whole if record_is_read else harmed, "other": 1}
    assert encode(damaged, f"d@{whole}").status_code == 200
    assert put(damaged, "d").json()["version"] == harmed + 1
    require_next(damaged)
    assert client.delete(f"/dictionaries/d@{harmed}").status_code == 204  # what is damaged can be removed
    assert client.delete("/dictionaries/d").status_code == 204
    require_next(damaged, "other")
