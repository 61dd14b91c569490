"""The store's disk full, read-only or gone, and dictionaries that are damaged: told with the reason, reads go on, and
nothing needs a restart once it is mended."""

import fcntl
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import main
from app.store.checkpoint_file import FORMAT, Metadata, Rows
from app.worker import fitting
from app.worker.messages import CheckpointPlace
from demo.service import npy
from tests.e2e.conftest import Service, until_answered
from tests.faults.asked import (
    FITTED,
    ROWS,
    D,
    encode,
    fit,
    fits,
    long_fit,
    problem,
    put,
    refusal,
    require_next,
    served_here,
)
from tests.figures import figures
from tests.waiting import until

DISK_BYTES = 8 * 1024 * 1024
IN_JSON = {"name": "new", "nb_concepts": 2, "data": FITTED.tolist()}
UNTAKEN = "what dead processes have left cannot be taken up"


def mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk can only be mounted by root: {error}")


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True, timeout=10)


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path))
    try:
        yield path
    finally:
        unmount(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of the module's own, or a plain folder for who cannot mount any."""
    path = tmp_path_factory.mktemp("store") / "disk"
    with ExitStack() as stack:
        with suppress(pytest.skip.Exception):
            stack.enter_context(small_disk(path))
        yield path


@pytest.fixture
def disk(place: Path) -> Path:
    """That place, for what needs a disk."""
    if not place.is_mount():
        pytest.skip("a disk can only be mounted by root")
    return place


@pytest.fixture(scope="module")
def shared(place: Path) -> Iterator[Service]:
    """A service whose store is there."""
    service = Service(place / "models")
    service.log = place.parent / "service.log"
    service.start()
    yield service
    assert service.stop() == 0


@pytest.fixture
def stored(service: Service) -> Iterator[Service]:
    """That service with two versions of ``d``, no other dictionary, and no jobs."""
    while len(service.client.get("/dictionaries/d").json()["versions"]) < 2:
        assert put(service).status_code == 201
    yield service
    for told in service.client.get("/dictionaries").json()["dictionaries"]:
        if told["name"] != "d":
            assert service.client.delete(f"/dictionaries/{told['name']}").status_code == 204
    for job in service.client.get("/jobs").json()["jobs"]:
        assert service.client.delete(f"/jobs/{job['id']}").status_code == 204
    assert "Traceback" not in service.log.read_text()


@contextmanager
def filled(path: Path) -> Iterator[None]:
    """There is not a byte left on the disk."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def away(service: Service, *, leaving_an_empty_one: bool = False) -> Iterator[None]:
    """Its store is not there, and in the end nothing fails for it any more: what goes on failing is told but once.

    Args:
        leaving_an_empty_one: in its place, as the mount point of a volume that is not mounted any more.
    """
    store, log = service.store, service.log.read_text
    elsewhere = store.rename(store.with_name("elsewhere"))
    if leaving_an_empty_one:
        store.mkdir()
    try:
        yield
    finally:
        if leaving_an_empty_one:
            store.rmdir()  # nothing was written into it
        elsewhere.rename(store)
    until(lambda: log().rfind(f"{UNTAKEN}: ") <= log().rfind(f": {UNTAKEN}"), every=0.2)


@contextmanager
def read_only(store: Path) -> Iterator[None]:
    """Another mount of the store over it, read-only: what is opened from now on cannot be written."""
    mount("--bind", str(store), str(store))
    try:
        mount("-o", "remount,bind,ro", str(store))
        yield
    finally:
        unmount(store)


def reads_work(service: Service, *others: str) -> None:
    assert encode(service).status_code == 200
    assert [told["name"] for told in service.client.get("/dictionaries").json()["dictionaries"]] == ["d", *others]
    assert service.client.get("/dictionaries/d").json()["versions"] == [1, 2]
    assert service.client.get("/dictionaries/d@1/weights").status_code == 200


def test_a_full_disk(stored: Service, disk: Path) -> None:
    assert put(stored, "old").status_code == 201
    with filled(disk):
        full = {
            "import": put(stored, "new"),
            "label": stored.client.patch("/dictionaries/d", json={"labels": {"a": "b"}}),
            "fit of npy": stored.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED)),
            "fit of JSON": stored.client.post("/fit", json=IN_JSON),
            "fit of float64": stored.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED.astype("f8"))),
        }
        for answer in full.values():
            assert "full" in problem(answer, 507, "store-full")
        reads_work(stored, "old")
        assert stored.client.get("/jobs").json()["jobs"] == []
        assert list((stored.store / ".dictserve" / "activations").iterdir()) == []

        assert stored.client.delete("/dictionaries/old@1").status_code == 204  # room is made through the service too
    assert put(stored, "new").status_code == 201
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"
    require_next(stored)


def only_dictionaries_are_served(client: httpx.Client) -> None:
    assert client.post("/encode?dictionary=d", content=npy(ROWS)).status_code == 200
    assert client.get("/dictionaries/d").json()["versions"] == [1, 2]
    assert "full" in problem(client.get("/jobs"), 503, "jobs-unavailable")
    assert "full" in problem(client.put("/dictionaries/new", content=npy(D)), 507, "store-full")
    assert client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED)).status_code in (503, 507)
    assert figures(client)["dictserve_jobs_available",] == 0


def test_a_start_on_a_full_disk(stored: Service, disk: Path) -> None:
    """Dictionaries are served; jobs, and all that writes, once there is room. A stop before that is in order."""
    ended = stored.ended(fit(stored, name="fitted"))
    assert stored.stop() == 0
    with filled(disk):
        with served_here(stored.store) as client:
            only_dictionaries_are_served(client)
        stored.start()
        only_dictionaries_are_served(stored.client)
        assert "jobs are not served: the jobs' database cannot be used: its disk is full" in stored.log.read_text()
    until_answered(stored, "/jobs", 200)
    assert stored.job(ended["id"]) == ended
    assert stored.ended(fit(stored, name="fitted"))["version"] == ended["version"] + 1
    require_next(stored)


def test_a_disk_that_an_upload_fills(stored: Service, disk: Path) -> None:
    """The body itself is more than the disk takes."""
    large = npy(np.ones((DISK_BYTES // 16, 6), np.float32))
    problem(stored.client.post("/fit?name=new&nb_concepts=2", content=large), 507, "store-full")
    assert list((stored.store / ".dictserve" / "activations").iterdir()) == []
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"
    require_next(stored)


def test_a_disk_that_fills_during_a_fit(stored: Service, disk: Path) -> None:
    """The job ends with the reason; or it publishes once there is room, where it had not begun to before."""
    id = long_fit(stored, name="filled", max_iter=300)
    with filled(disk):
        reads_work(stored)
        said = "a job's record cannot be written"
        until(lambda: stored.job(id)["state"] != "running" or said in stored.log.read_text(), every=0.1)
        assert stored.client.get("/dictionaries/filled").status_code == 404
    job = stored.ended(id)
    published = job["state"] == "succeeded"
    assert published or (job["state"], job["error"]["type"]) == ("failed", "store-full"), job
    assert stored.ended(fit(stored, name="filled"))["version"] == 1 + published
    require_next(stored)


def test_a_disk_that_a_checkpoint_fills(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there was room enough when it was begun: nothing of it stays, and the log says why."""
    monkeypatch.setattr(fitting, "FREE_SHARE", float("inf"))
    metadata = Metadata(FORMAT, "1", {}, {"iteration": 1.0}, 0.0)
    rows = Rows("F32", (DISK_BYTES // 128, 64), lambda rows: np.ones((rows.stop - rows.start, 64), np.float32))
    with small_disk(tmp_path / "disk") as disk:
        writing = fitting.Writing(CheckpointPlace(str(disk / "1"), str(disk / "staged"), 30.0), metadata, {"Z": rows})
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
        until(lambda: "a fit waits for the store: " in stored.log.read_text())
        assert stored.job(id)["state"] == "running"
        assert "locked" in refusal(stored.store)
    assert stored.ended(id)["state"] == "succeeded"
    require_next(stored)


def test_a_read_only_store(stored: Service) -> None:
    with read_only(stored.store):
        for answer in (
            put(stored),
            put(stored, "kept-out"),
            stored.client.patch("/dictionaries/d", json={"labels": {"a": "b"}}),
            stored.client.post("/fit?name=d&nb_concepts=2", content=npy(FITTED)),
            stored.client.post("/fit?name=kept-out&nb_concepts=2", content=npy(FITTED)),
            stored.client.post("/fit", json=IN_JSON | {"name": "kept-out"}),
            stored.client.delete("/dictionaries/d@1"),
        ):
            assert "Read-only" in problem(answer, 503, "store-unavailable")
        reads_work(stored)
    assert put(stored, "kept-out").status_code == 201
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"
    require_next(stored)


def test_a_start_on_a_read_only_store(stored: Service, tmp_path: Path) -> None:
    """As after an error of its disk, or as a copy that is only encoded by: dictionaries are served, and all the rest
    once it can be written. One that has never been written to is refused."""
    assert stored.stop() == 0
    with ExitStack() as stack:
        with read_only(stored.store):
            client = stack.enter_context(served_here(stored.store))
            stored.start()
            assert "jobs are not served: the store cannot be used: Read-only" in stored.log.read_text()
            reads_work(stored)
            for answer in (put(stored), client.put("/dictionaries/d", content=npy(D))):
                assert "Read-only" in problem(answer, 503, "store-unavailable")
            for answer in (stored.client.post("/fit", json=IN_JSON), client.get("/jobs")):
                problem(answer, 503, "jobs-unavailable")
            assert stored.client.get("/readyz").status_code == 200
        until(lambda: client.get("/jobs").status_code == 200)
        assert fits(client)
        until_answered(stored, "/jobs", 200)
        assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"
    require_next(stored)
    (tmp_path / "empty").mkdir()
    with read_only(tmp_path / "empty"):
        assert "Read-only file system" in refusal(tmp_path / "empty")


def test_a_start_on_a_read_only_copy(stored: Service, tmp_path: Path) -> None:
    """As the documented backup makes it, without what belongs to processes: its dictionaries are served."""
    copy = tmp_path / "copy"
    shutil.copytree(stored.store, copy, ignore=shutil.ignore_patterns("owners", "staging"))
    with read_only(copy), served_here(copy) as client:
        assert client.post("/encode?dictionary=d", content=npy(ROWS)).status_code == 200
        assert client.get("/dictionaries/d").json()["versions"] == [1, 2]
        assert "Read-only" in problem(client.put("/dictionaries/d", content=npy(D)), 503, "store-unavailable")
        problem(client.get("/jobs"), 503, "jobs-unavailable")
        assert figures(client)["dictserve_store_available",] == 1


def test_a_read_only_store_is_checked(tmp_path: Path) -> None:
    """As a snapshot of one may be: SQLite can make none of its files there."""
    store = tmp_path / "models"
    with served_here(store) as client:
        assert client.put("/dictionaries/d", content=npy(D)).status_code == 201
    with read_only(store):
        checked = CliRunner().invoke(main, ["check", "--store", str(store)])
    assert (checked.exit_code, ", 0 damaged" in checked.stdout, checked.stderr) == (0, True, ""), checked.output


@pytest.mark.parametrize("unmounted", [False, True])
def test_a_store_that_is_gone_and_comes_back(stored: Service, unmounted: bool) -> None:
    with away(stored, leaving_an_empty_one=unmounted):
        for answer in (
            encode(stored),
            put(stored, "new"),
            stored.client.get("/dictionaries"),
            stored.client.get("/dictionaries/d"),
            stored.client.delete("/dictionaries/d"),
            stored.client.post("/fit?name=new&nb_concepts=2", content=npy(FITTED)),
            stored.client.post("/fit", json=IN_JSON),
        ):
            assert "No such file" in problem(answer, 503, "store-unavailable")
        assert stored.client.get("/livez").status_code == 200
        assert figures(stored.client)["dictserve_store_available",] == 0
    assert figures(stored.client)["dictserve_store_available",] == 1
    require_next(stored)
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"


def test_fits_outlast_a_store_that_is_gone_for_a_while(stored: Service) -> None:
    """The one under way, which ends meanwhile, and the one that would be begun."""
    running, waiting = long_fit(stored, max_iter=200), fit(stored, name="waiting")
    with away(stored):
        until(lambda: "a fit waits for the store" in stored.log.read_text(), told=stored.log.read_text)
    for id in (running, waiting):
        assert stored.ended(id)["state"] == "succeeded"
    assert list((stored.store / ".dictserve" / "activations").iterdir()) == []
    require_next(stored)


@pytest.mark.slow
def test_a_store_that_is_gone_for_longer_than_idle_fits_wait(stored: Service) -> None:
    """What looks for jobs that others left finds no store, and is still there when the store is."""
    with away(stored):
        until(lambda: UNTAKEN in stored.log.read_text(), every=0.2)
    require_next(stored)
    assert stored.ended(fit(stored, name="fitted"))["state"] == "succeeded"


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
    "another version": (META, told(version=7), "harmed@7"),
    "another hash": (META, told(sha256="0" * 64), "SHA-256"),
    "a hash that is none": (META, told(sha256=None), "meta.json"),
    "labels garbage": (LABELS, overwritten(b"{"), "labels.json"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_version(stored: Service, damage: tuple[str, Callable[[Path], None], str]) -> None:
    file, harm, said = damage
    client = stored.client
    whole, harmed = (put(stored, "harmed", scale=scale).json()["version"] for scale in (1, 2))
    said = said.replace("@2", f"@{harmed}")
    harm(stored.store / "harmed" / str(harmed) / file)
    record_is_read = (
        file != WEIGHTS and said != "SHA-256"
    )  # whether the weights are its own is seen when they are read
    answers = [client.get(f"/dictionaries/harmed@{harmed}")] if record_is_read else []
    if file != LABELS:
        answers += [
            client.get(f"/dictionaries/harmed@{harmed}/weights"),
            encode(stored, f"harmed@{harmed}"),
            encode(stored, "harmed"),
        ]
    for answer in answers:
        assert said in problem(answer, 500, "dictionary-damaged")
    listed = {told["name"]: told["version"] for told in client.get("/dictionaries").json()["dictionaries"]}
    assert listed == {"harmed": whole if record_is_read else harmed, "d": 2}
    assert encode(stored, f"harmed@{whole}").status_code == 200
    assert put(stored, "harmed").json()["version"] == harmed + 1
    require_next(stored, "harmed")
    assert client.delete(f"/dictionaries/harmed@{harmed}").status_code == 204  # what is damaged can be removed
    assert client.delete("/dictionaries/harmed").status_code == 204
    require_next(stored)


def test_a_store_that_is_removed_for_good(service: Service) -> None:
    """It is told, again and again; a start makes an empty one. The last test here: no service is left running."""
    shutil.rmtree(service.store)
    for _ in range(2):
        problem(encode(service), 503, "store-unavailable")
        problem(put(service), 503, "store-unavailable")
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()
    with served_here(service.store) as client:
        assert client.get("/dictionaries").json() == {"dictionaries": []}
        assert client.put("/dictionaries/d", content=npy(D)).status_code == 201
        assert client.post("/encode?dictionary=d", content=npy(ROWS)).status_code == 200
