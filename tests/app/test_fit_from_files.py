"""``files`` of ``/fit``: what may be named, what is checked when, and what comes of files that change."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from app.errors import DataChanged, DataUnavailable, StoreFull
from app.formats import npy_file
from app.formats.npy_file import DataFile
from app.http.disconnects import LEAVING, Leaving
from app.jobs import data_files, pattern_walk
from app.main import create_app
from app.settings import Settings
from app.store.store import Store
from app.store.uploads import Staged, Uploads
from app.store.workplace import Workplace, owner_of
from app.worker.file_rows import FileRows
from app.worker.messages import Files
from tests.app.conftest import WorkerDouble, ended, publish
from tests.waiting import until

A = np.arange(40, dtype=np.float32).reshape(10, 4)
FIT = {"name": "layer4", "nb_concepts": 2, "files": ["layer4/*.npy"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with two files, and things beside them."""
    data = tmp_path / "data"
    (data / "layer4" / "deep").mkdir(parents=True)
    np.save(data / "layer4" / "b.npy", A[6:])
    np.save(data / "layer4" / "a.npy", A[:6])
    (data / "layer4" / "notes.txt").write_text("no activations")
    np.save(tmp_path / "secret.npy", A)
    return data


@pytest.fixture
def settings(tmp_path: Path, data: Path) -> Settings:
    told = {"progress_interval_seconds": 0.01, "data_dir": data, "max_files": 3, "max_ranks": 2}
    return Settings(store=tmp_path / "models", **told)


def staged(worker: WorkerDouble) -> np.ndarray:
    """What the worker was given: a copy, of the file that goes with the job's end."""
    fit = until(lambda: worker.fits, every=0.01)[-1]
    return np.fromfile(fit.path, np.float32, offset=fit.data_offset).reshape(fit.rows, fit.n_features)


def test_rows_of_the_files_follow_each_other(client: TestClient, worker: WorkerDouble, store: Store) -> None:
    worker.fits_hang = True
    answer = client.post("/fit", json=FIT)
    assert answer.status_code == 202, answer.text
    assert answer.json()["parameters"]["files"] == ["layer4/*.npy"]
    np.testing.assert_array_equal(staged(worker), A)
    assert client.delete(f"/jobs/{answer.json()['id']}").json()["state"] == "cancelled"
    assert list(store.workplace.activations.iterdir()) == []


def test_the_dictionary_tells_its_files(client: TestClient) -> None:
    job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert (job["state"], job["version"]) == ("succeeded", 1), job
    told = client.get("/dictionaries/layer4").json()
    assert told["data"]["files"] == [{"name": "layer4/a.npy", "rows": 6}, {"name": "layer4/b.npy", "rows": 4}]
    upload = client.post("/fit", json={"name": "sent", "nb_concepts": 2, "data": A.tolist()})
    ended(client, upload.json()["id"])
    assert client.get("/dictionaries/sent").json()["data"]["sha256"] == told["data"]["sha256"]
    (listed, _) = client.get("/dictionaries").json()["dictionaries"]
    assert "files" not in listed["data"]


@pytest.mark.parametrize("slice_bytes", [1, 40, 2**20])
@pytest.mark.parametrize(
    "saved",
    [
        A.astype(np.float64),
        A.astype(np.float16),
        A.astype(np.uint8),
        A.astype(">f4"),
        A.astype(">f8"),
        np.asfortranarray(A),
        np.asfortranarray(A.astype(np.int64)),
    ],
    ids=["float64", "float16", "uint8", "big-endian", "big-endian float64", "fortran", "fortran int64"],
)
def test_dtypes_and_orders(
    client: TestClient,
    data: Path,
    worker: WorkerDouble,
    saved: np.ndarray,
    slice_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_files, "SLICE_BYTES", slice_bytes)
    worker.fits_hang = True
    np.save(data / "one.npy", saved)
    assert client.post("/fit", json=FIT | {"files": ["one.npy"]}).status_code == 202
    np.testing.assert_array_equal(staged(worker), A)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["layer4/b.npy", "layer4/*.npy"], ["layer4/b.npy", "layer4/a.npy"]),
        (["**/*.npy"], ["layer4/a.npy", "layer4/b.npy", "layer4/deep/c.npy"]),
        (["**/deep/**/*.npy"], ["layer4/deep/c.npy"]),
        (["layer4/?.npy"], ["layer4/a.npy", "layer4/b.npy"]),
        (["layer4/[bc].npy"], ["layer4/b.npy"]),
        (["./layer4//a.npy"], ["layer4/a.npy"]),
        (["link/a.npy"], ["link/a.npy"]),
    ],
)
def test_patterns(client: TestClient, data: Path, patterns: list[str], names: list[str]) -> None:
    np.save(data / "layer4" / "deep" / "c.npy", A)
    (data / "link").symlink_to("layer4")  # within the directory
    job = ended(client, client.post("/fit", json=FIT | {"files": patterns}).json()["id"])
    assert job["state"] == "succeeded", job
    assert [file["name"] for file in client.get("/dictionaries/layer4").json()["data"]["files"]] == names


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("../secret.npy", "without `..`"),
        ("layer4/../../secret.npy", "without `..`"),
        ("layer4/../a.npy", "without `..`"),
        ("/etc/passwd", "relative to the data directory"),
        ("{data}/layer4/a.npy", "relative to the data directory"),
        ("a\0b", "'a\\x00b' is not taken: it has a character that is not printable"),
        (".", "'.' is not taken: it means the data directory itself"),
        ("./", "'./' is not taken: it means the data directory itself"),
        ("", "at least 1 character"),
        ("x" * 1025, "at most 1024"),
        ("x" * 300, "File name too long"),
        ("a**", "'a**' is not taken: `**` stands between slashes alone"),
        ("**/" * 3 + "a.npy", "`**` 2 times"),
        ("**/" * 300 + "a.npy", "`**` 2 times"),
        ("layer4/" * 140 + "a.npy", "at most 100 parts"),
        ("*/" * 500 + "a.npy", "at most 100 parts"),
        ("nothing/*.npy", "'nothing/*.npy' matches no file"),
        ("layer4/deep", "matches no file"),
        ("layer4/deep/*.npy", "matches no file"),
        ("layer4/pipe.npy", "matches no file"),
        ("layer4/a.npy/", "matches no file"),
        ("layer4/**", "matches no file"),
        ("out.npy", "out.npy leads out of the data directory"),
        ("out/secret.npy", "out leads out of the data directory"),
        ("*/secret.npy", "out leads out of the data directory"),
        ("twice.npy", "leads out of the data directory"),
        ("layer4/notes.txt", "layer4/notes.txt: this is not an npy"),
        ("many/*", "more than 3 files"),
        ("cut.npy", "cut.npy: its header tells of shape (10, 4)"),
        ("flat.npy", "flat.npy: activations have 1 dimensions"),
        ("empty.npy", "empty.npy: activations are empty"),
        ("complex.npy", "complex.npy: npy dtype '<c8' is not read"),
    ],
)
def test_what_may_not_be_named(
    client: TestClient, data: Path, tmp_path: Path, store: Store, pattern: str, said: str
) -> None:
    (data / "out.npy").symlink_to(tmp_path / "secret.npy")
    (data / "out").symlink_to(tmp_path)
    (data / "twice.npy").symlink_to("out.npy")
    os.mkfifo(data / "layer4" / "pipe.npy")
    (data / "many").mkdir()
    for index in range(5):
        np.save(data / "many" / f"{index}.npy", A)
    (data / "cut.npy").write_bytes((data / "many" / "0.npy").read_bytes()[:-1])
    np.save(data / "flat.npy", A[0])
    np.save(data / "empty.npy", A[:0])
    np.save(data / "complex.npy", A.astype(np.complex64))
    answer = client.post("/fit", json=FIT | {"files": [pattern.format(data=data)]})
    problem = answer.json()
    assert (answer.status_code, problem["errors"][0]["loc"][0]) == (422, "files"), problem
    assert said in problem["detail"], problem
    assert client.get("/jobs").json()["jobs"] == []
    assert list(store.workplace.activations.iterdir()) == []


@pytest.mark.parametrize("pattern", ["out/secret.npy", "out/[a-z]*", "out/*", "out/no.npy", "*/s*", "in/out/**/*"])
def test_nobody_is_told_what_there_is_where_a_link_leads_out(
    client: TestClient, data: Path, tmp_path: Path, pattern: str
) -> None:
    (data / "out").symlink_to(tmp_path)
    (data / "in").symlink_to(".")
    answer = client.post("/fit", json=FIT | {"files": [pattern]})
    link = "in/out" if pattern.startswith("in") else "out"
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["files", 0])
    assert answer.json()["errors"][0]["msg"] == f"{link} leads out of the data directory"
    assert client.post("/fit", json=FIT | {"files": ["layer4/a.npy", "*/b.npy"]}).status_code == 202


def test_patterns_find_what_they_do_to_pathlib(data: Path) -> None:
    """One walk for all of them, in which no directory is read twice."""
    for name in ("layer4/deep/c.npy", "layer4/deep/[x].npy", ".hidden/.a.npy", "layer4.npy", "B/layer4/b.npy"):
        (data / name).parent.mkdir(exist_ok=True, parents=True)
        np.save(data / name, A)
    (data / "link").symlink_to("layer4")
    (data / "layer4" / "l.npy").symlink_to("deep/c.npy")
    (data / "layer4" / "round").symlink_to("..")
    (data / "nowhere.npy").symlink_to("nowhere.npy")
    heads = ("", "**/", "*/", "layer4/", "**/deep/", "**/layer4/**/", "l*/**/", "*/*/", "**/**/", "link/*/")
    tails = ("*.npy", "?.npy", ".*", "[[]x].npy", "[!a].npy", "b.npy", "*", "c.np[x-z]")
    read: list[str] = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        read.append(str(path))
        return scandir(path)

    patterns = [head + tail for head in heads for tail in tails]
    expected = [{str(path.relative_to(data)) for path in data.glob(each) if path.is_file()} for each in patterns]
    assert sum(map(bool, expected)) > len(patterns) / 2
    walk = pattern_walk.PatternWalk(data, patterns, 1000, lambda: None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", counted)
        walk.to_its_end()
    assert dict(zip(patterns, walk.found, strict=True)) == dict(zip(patterns, expected, strict=True))
    assert len(read) == len(set(read))


@pytest.mark.parametrize("pattern", ["**/nothing.npy", "*/" * 60 + "nothing.npy", "**/*.npy"])
def test_patterns_that_look_at_too_many_files_are_refused(
    client: TestClient, data: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """Two links to where they are have a pattern of 60 parts lead through 2⁶⁰ directories."""
    for name in ("one", "other"):
        (data / name).symlink_to(".")
    monkeypatch.setattr(pattern_walk, "LOOK_SECONDS", 0.3 if pattern.startswith("*/") else 0.0)
    answer = client.post("/fit", json=FIT | {"files": [pattern]})
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["files"]), answer.text
    assert "too many files" in answer.json()["detail"]
    assert client.get("/jobs").json()["jobs"] == []


def test_nobody_looks_for_the_files_of_a_client_that_has_left(
    client: TestClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, calls = Leaving(), 0

    def left() -> float:
        nonlocal calls
        calls += 1
        leaving.has_left = calls > 2
        return 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[LEAVING] = leaving
        await client.app(scope, receive, send)

    with monkeypatch.context() as patched:
        patched.setattr(pattern_walk, "time", SimpleNamespace(monotonic=left))
        with pytest.raises(Exception):  # noqa: B017, PT011  # there is no answer
            TestClient(app).post("/fit", json=FIT)
    assert calls == 3
    assert client.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": []}, "at least 1 item"),
        ({"files": "layer4/a.npy"}, "valid list"),
        ({"files": [3]}, "valid string"),
        ({"files": ["a"] * 101}, "at most 100 items"),
        ({"data": A.tolist()}, "only without `data`"),
        ({"files": ["layer4/*.npy", "wide.npy"]}, "wide.npy has 5 columns, but layer4/a.npy has 4"),
        ({"files": ["layer4/*.npy", "long.npy"]}, "more than 1000 rows"),
        ({"init": "digits"}, "4 columns, but dictionary digits@1, to start from, has 3 features"),
    ],
)
def test_what_does_not_go_together(
    settings: Settings, worker: WorkerDouble, data: Path, fields: dict[str, object], said: str
) -> None:
    np.save(data / "wide.npy", np.ones((2, 5), np.float32))
    np.save(data / "long.npy", np.ones((1000, 4), np.float32))
    settings = settings.model_copy(update={"max_file_rows": 1000})
    with TestClient(create_app(settings, supervisor=worker)) as client:
        publish(Store(settings.store), "digits", np.ones((2, 3), np.float32))
        answer = client.post("/fit", json=FIT | fields)
        assert answer.status_code == 422, answer.text
        assert said in answer.json()["detail"]
        assert client.get("/jobs").json()["jobs"] == []


def test_neither_data_nor_files(client: TestClient) -> None:
    answer = client.post("/fit", json={"name": "a", "nb_concepts": 2})
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["data"])


def test_off_by_default(settings: Settings, worker: WorkerDouble) -> None:
    with TestClient(create_app(settings.model_copy(update={"data_dir": None}), supervisor=worker)) as client:
        answer = client.post("/fit", json=FIT)
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["files"])
        assert "DICTSERVE_DATA_DIR" in answer.json()["detail"]


def test_more_than_the_disk_has_room_for(settings: Settings, worker: WorkerDouble, data: Path) -> None:
    """A sparse file: it claims 4 TB in float32, and takes no room itself. (Read in place it needs none.)"""
    shape = (100_000_000, 10_000)
    with (data / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + shape[0] * shape[1])
    worker.fits_hang = True
    staging = settings.model_copy(update={"online_fit_bytes": 10**15})
    with TestClient(create_app(staging, supervisor=worker)) as client:
        answer = client.post("/fit", json=FIT | {"files": ["huge.npy"]})
        assert (answer.status_code, answer.json()["type"]) == (507, "store-full"), answer.text
        assert list(Store(settings.store).workplace.activations.iterdir()) == []
    with TestClient(create_app(settings, supervisor=worker)) as client:
        job = client.post("/fit", json=FIT | {"files": ["huge.npy"]}).json()
        assert job["parameters"]["online"], job
        client.delete(f"/jobs/{job['id']}")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "1 NaN or infinite value, the first (nan) at row 3, column 2"),
        (np.inf, "1 NaN or infinite value, the first (inf) at row 3, column 2"),
        (-1.5, "1 negative value, the first (-1.5) at row 3, column 2"),
        (1e300, "1 value that float32 cannot hold, the first (1e+300) at row 3, column 2"),
    ],
)
@pytest.mark.parametrize("slice_bytes", [1, 2**20])
def test_values_are_checked_where_they_are_read(
    client: TestClient,
    data: Path,
    store: Store,
    value: float,
    said: str,
    slice_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_files, "SLICE_BYTES", slice_bytes)
    bad = A[6:].astype(np.float64)
    bad[3, 2] = value
    np.save(data / "layer4" / "b.npy", bad)
    job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert job["state"] == "failed"
    assert job["error"]["type"] == "invalid-values", job  # type: ignore[index]
    assert "of layer4/b.npy" in job["error"]["detail"]  # type: ignore[index]
    assert said in job["error"]["detail"]  # type: ignore[index]
    assert list(store.workplace.activations.iterdir()) == []
    (data / "layer4" / "b.npy").unlink()
    assert ended(client, client.post("/fit", json=FIT).json()["id"])["state"] == "succeeded"


def test_clip_makes_negatives_zero(client: TestClient, data: Path, worker: WorkerDouble) -> None:
    worker.fits_hang = True
    np.save(data / "layer4" / "b.npy", -A[6:])
    assert client.post("/fit", json=FIT | {"clip": True}).status_code == 202
    np.testing.assert_array_equal(staged(worker), np.vstack([A[:6], np.zeros((4, 4))]))


def goes_away(data: Path) -> None:
    data.rename(data.with_name("elsewhere"))


def absent(data: Path, patched: pytest.MonkeyPatch) -> None:
    goes_away(data)


def empty(data: Path, patched: pytest.MonkeyPatch) -> None:
    absent(data, patched)
    data.mkdir()


def unlisted(data: Path, patched: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def stale(path: Any) -> Any:
        if Path(path).is_relative_to(data):
            raise OSError(errno.ESTALE, "as of a network's disk", str(data))
        return scandir(path)

    patched.setattr(os, "scandir", stale)


def unopened(data: Path, patched: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "as of a disk that fails", str(data))

    patched.setattr(data_files, "opened", broken)


@pytest.mark.parametrize("away", [absent, empty, unlisted, unopened])
def test_a_directory_that_is_away_is_not_the_requests_fault(
    client: TestClient, data: Path, monkeypatch: pytest.MonkeyPatch, away: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as patched:
        away(data, patched)
        answer = client.post("/fit", json=FIT)
    assert (answer.status_code, answer.json()["type"]) == (503, "data-unavailable"), answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert client.get("/jobs").json()["jobs"] == []


def other_values(path: Path) -> None:
    np.save(path, A[6:] + 1)
    os.utime(path, ns=(0, 0))


def other_rows(path: Path) -> None:
    np.save(path, A)


def cut_short(path: Path) -> None:
    os.truncate(path, 140)


def led_out(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[2] / "secret.npy")


@pytest.mark.parametrize("change", [Path.unlink, other_values, other_rows, cut_short, led_out])
def test_a_file_that_changes_before_the_fit_starts_fails_it(
    client: TestClient, data: Path, worker: WorkerDouble, store: Store, change: Callable[[Path], None]
) -> None:
    worker.fits_hang = True
    first = client.post("/fit", json=FIT).json()["id"]
    until(lambda: client.get(f"/jobs/{first}").json()["progress"]["iteration"], every=0.01)
    second = client.post("/fit", json=FIT).json()["id"]
    change(data / "layer4" / "b.npy")
    worker.fits_hang = False
    client.delete(f"/jobs/{first}")
    job = ended(client, second)
    assert job["state"] == "failed", job
    assert "layer4/b.npy" in job["error"]["detail"]  # type: ignore[index]
    assert job["error"]["type"] == "data-changed"  # type: ignore[index]
    assert list(store.workplace.activations.iterdir()) == []


@pytest.fixture
def slow(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Staging of a row at a time, each of which takes a while; the rows that were read."""
    read: list[int] = []
    fill = npy_file.NpyFile._fill

    def slowly(self: npy_file.NpyFile, values: np.ndarray, offset: int) -> None:
        read.append(offset)
        time.sleep(0.05)
        fill(self, values, offset)

    monkeypatch.setattr(data_files, "SLICE_BYTES", 1)
    monkeypatch.setattr(npy_file.NpyFile, "_fill", slowly)
    return read


def test_a_job_is_cancelled_while_its_files_are_read(
    client: TestClient, worker: WorkerDouble, store: Store, slow: list[int]
) -> None:
    id = client.post("/fit", json=FIT).json()["id"]
    until(lambda: slow, every=0.01)
    assert client.get(f"/jobs/{id}").json()["state"] == "running"
    assert client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
    assert len(slow) < 10
    assert worker.fits == []
    assert list(store.workplace.activations.iterdir()) == []


def test_a_stop_while_files_are_read_leaves_the_job_to_the_next_start(
    settings: Settings, worker: WorkerDouble, slow: list[int]
) -> None:
    with TestClient(create_app(settings, supervisor=worker)) as client:
        id = client.post("/fit", json=FIT).json()["id"]
        until(lambda: slow, every=0.01)
    assert len(slow) < 10
    with TestClient(create_app(settings, supervisor=worker)) as client:
        job = ended(client, id)
        assert (job["state"], job["attempts"]) == ("succeeded", 2), job


def test_another_attempt_finds_the_files_staged(client: TestClient, worker: WorkerDouble, data: Path) -> None:
    worker.dies_on_fits = 1
    tell_job = worker.tell_job

    def without_files(*args: object) -> None:
        for path in (data / "layer4").glob("*.npy"):
            path.unlink()
        tell_job(*args)  # type: ignore[arg-type]

    worker.tell_job = without_files  # type: ignore[method-assign]
    job = ended(client, client.post("/fit", json=FIT).json()["id"])
    assert (job["state"], job["attempts"]) == ("succeeded", 2)


def test_a_key_is_of_the_files_that_are_named(client: TestClient, data: Path) -> None:
    headers = {"idempotency-key": "abc"}
    first = client.post("/fit", json=FIT, headers=headers).json()
    np.save(data / "layer4" / "c.npy", A)
    assert client.post("/fit", json=FIT, headers=headers).json()["id"] == first["id"]
    other = client.post("/fit", json=FIT | {"files": ["layer4/a.npy"]}, headers=headers)
    assert other.json()["type"] == "idempotency-key-reused"


def removed(data: Path, patched: pytest.MonkeyPatch) -> None:
    for path in (data / "layer4").glob("*.npy"):
        path.unlink()


def full(data: Path, patched: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise StoreFull("no room")

    patched.setattr(Uploads, "require_room", refused)


@pytest.mark.parametrize("meanwhile", [removed, absent, empty, unopened, full])
def test_a_request_that_comes_again_has_its_job_whatever_has_become_of_its_files(
    client: TestClient,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    headers = {"idempotency-key": "abc"}
    first = ended(client, client.post("/fit", json=FIT, headers=headers).json()["id"])
    meanwhile(data, monkeypatch)
    again = client.post("/fit", json=FIT, headers=headers)
    assert (again.status_code, again.json()) == (200, first)
    other = client.post("/fit", json=FIT | {"clip": True}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "idempotency-key-reused"), other.text
    both = client.post("/fit", json=FIT | {"data": A.tolist()}, headers=headers)
    assert both.json()["errors"][0]["loc"] == ["files"], both.text


def comes_back(data: Path) -> None:
    data.with_name("elsewhere").rename(data)


def leads_out(data: Path) -> None:
    (data / "layer4" / "a.npy").unlink()
    (data / "layer4" / "a.npy").symlink_to(data.with_name("secret.npy"))


def leads_nowhere(data: Path) -> None:
    (data / "layer4" / "a.npy").unlink()
    (data / "layer4" / "a.npy").symlink_to("a.npy")


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "after", "in_the_end", "told"),  # it is opened, and looked at
    [
        (nothing, goes_away, nothing, DataUnavailable),
        (nothing, goes_away, comes_back, DataUnavailable),
        (leads_out, nothing, nothing, DataChanged),
        (leads_nowhere, nothing, nothing, DataChanged),
    ],
)
def test_a_directory_that_goes_as_a_file_is_opened_is_away(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Path], None],
    after: Callable[[Path], None],
    in_the_end: Callable[[Path], None],
    told: type[Exception],
) -> None:
    """Its files do not lead out. A link that comes into the place of one may, or lead nowhere."""
    status = (data / "layer4" / "a.npy").stat()
    file = DataFile("layer4/a.npy", 6, status.st_size, status.st_mtime_ns)
    rows = FileRows(Files(str(data), [file], clip=False, epochs=1), 4)
    np.testing.assert_array_equal(rows[0:6], A[:6])
    really_open, read_link = os.open, os.readlink

    def opened(*given: Any) -> int:
        before(data)
        descriptor = really_open(*given)
        after(data)
        return descriptor

    def link(path: Any) -> str:
        led = read_link(path)
        in_the_end(data)
        return led

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        patched.setattr(os, "readlink", link)
        with pytest.raises(told):
            rows[0:6]
    if told is DataChanged:
        with pytest.raises(told):  # it is there before the file is opened
            rows[0:6]


def test_a_file_that_changes_while_it_is_read_is_not_fitted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows may be of neither what it was nor what it is."""
    path, fill = data / "layer4" / "a.npy", npy_file.NpyFile._fill
    file = DataFile("layer4/a.npy", 6, path.stat().st_size, path.stat().st_mtime_ns)
    rows = FileRows(Files(str(data), [file], clip=False, epochs=1), 4)

    def changing(*told: Any) -> None:
        fill(*told)
        os.utime(path, ns=(1, 1))

    monkeypatch.setattr(npy_file.NpyFile, "_fill", changing)
    with pytest.raises(DataChanged, match="has changed"):
        rows[0:6]


# --- two attempts at one job -----------------------------------------------------------------------------------


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[tuple[Uploads, Uploads]]:
    """What two services on one store stage: the one that was taken for dead, and the one that has the job."""
    workplaces = [Workplace(tmp_path / "models" / ".dictserve") for _ in range(2)]
    for workplace in workplaces:
        workplace.open()
    yield Uploads(workplaces[0]), Uploads(workplaces[1])
    for workplace in workplaces:
        workplace.close()


def rows_in(uploads: Uploads, staged: Staged) -> np.ndarray:
    return np.memmap(uploads.path(staged.file), np.float32, "r", staged.data_offset, A.shape)


@pytest.mark.parametrize("ends", ["cancelled", "without its files", "whole"])
def test_an_attempt_that_was_lost_leaves_what_another_has_staged(
    attempts: tuple[Uploads, Uploads], ends: str
) -> None:
    lost, holder = attempts
    file = holder.new_path().name
    staged = holder.stage_blocks(file, *A.shape, [A[:6], A[6:]], lambda: False)
    assert staged is not None

    def blocks() -> Iterator[np.ndarray]:
        np.testing.assert_array_equal(rows_in(holder, staged), A)
        yield A[:6]
        np.testing.assert_array_equal(rows_in(holder, staged), A)
        if ends == "without its files":
            raise DataUnavailable("away")
        yield A[6:]

    begun = iter([False, ends == "cancelled"])
    with pytest.raises(DataUnavailable) if ends == "without its files" else nullcontext():
        again = lost.stage_blocks(file, *A.shape, blocks(), lambda: next(begun))
        assert again == (None if ends == "cancelled" else staged)
    np.testing.assert_array_equal(rows_in(holder, staged), A)
    workplace = holder.path(file).parent.parent
    assert list((workplace / "staging").iterdir()) == []


def test_what_is_staged_after_its_job_has_ended_is_swept(attempts: tuple[Uploads, Uploads]) -> None:
    """Though the process lives that took the request."""
    lost, holder = attempts
    file = holder.new_path().name
    holder.discard(file)
    assert lost.stage_blocks(file, *A.shape, [A], lambda: False) is not None
    lost.sweep(lambda: {owner_of(Path(file))}, set)
    assert not lost.path(file).exists()


# --- online fits ------------------------------------------------------------------------------------------------


def test_past_a_size_or_where_epochs_are_given_a_fit_of_files_is_online(
    settings: Settings,
    worker: WorkerDouble,
) -> None:
    nbytes = A.nbytes + 4 * len(A) * FIT["nb_concepts"]  # type: ignore[operator]
    small = settings.model_copy(update={"online_fit_bytes": nbytes - 1})
    for given, fields, epochs in (
        (settings, {}, None),
        (settings, {"epochs": 2}, 2),
        (small, {}, 3),
        (small, {"epochs": 7}, 7),
        (small, {"epochs": 7, "max_iter": 4}, 4),
        (small.model_copy(update={"online_fit_bytes": nbytes}), {}, None),
    ):
        with TestClient(create_app(given, supervisor=worker)) as client:
            job = ended(client, client.post("/fit", json=FIT | fields).json()["id"])
            assert job["state"] == "succeeded", job
            told = client.get("/dictionaries/layer4").json()
        online = worker.fits[-1].online
        parameters = job["parameters"]
        assert isinstance(parameters, dict)
        assert told["parameters"] == parameters
        assert (parameters.get("online"), parameters.get("epochs")) == (None if epochs is None else True, epochs)
        assert (None if online is None else online.epochs) == epochs
        assert told["data"]["rows"] == 10
        assert [file["name"] for file in told["data"]["files"]] == ["layer4/a.npy", "layer4/b.npy"]
        assert ("sha256" in told["data"]) == (epochs is None)


@pytest.mark.parametrize(
    ("fields", "where", "said"),
    [
        ({"epochs": 0}, "epochs", "greater than or equal to 1"),
        ({"epochs": 2, "solver": "mu"}, "solver", "only `hals` fits online"),
        ({"epochs": 2, "ranks": 2}, "ranks", "only 1 with `epochs`"),
        ({"epochs": 2, "files": None, "data": A.tolist()}, "epochs", "only with `files`"),
    ],
)
def test_what_no_online_fit_can_do(client: TestClient, fields: dict[str, object], where: str, said: str) -> None:
    request = {name: x for name, x in (FIT | fields).items() if x is not None}
    answer = client.post("/fit", json=request)
    assert (answer.status_code, answer.json()["errors"][0]["loc"][0]) == (422, where), answer.text
    assert said in answer.json()["detail"]


def test_nothing_is_staged_and_the_progress_is_in_batches(
    client: TestClient, worker: WorkerDouble, store: Store
) -> None:
    worker.fits_hang = True
    id = client.post("/fit", json=FIT | {"epochs": 2}).json()["id"]
    until(lambda: client.get(f"/jobs/{id}").json()["progress"]["iteration"], every=0.01)
    assert list(store.workplace.activations.iterdir()) == []
    assert client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
