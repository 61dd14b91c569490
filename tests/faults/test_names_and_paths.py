"""Bad names and paths, byte for byte over a socket: refused, with nothing read or written outside the store."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demo.service import npy
from tests.e2e.conftest import Service
from tests.faults.asked import FITTED, D, encode, fit, problem, put, require_next
from tests.wire import Answer, read, rest_of

HIDDEN = b"what nobody is told"
# As they stand in the request's line, where a library would tidy some of them.
BAD_NAMES: dict[str, bytes] = {
    "dots": b"..",
    "dots and a slash": b"../secret",
    "many dots": b"../../../../../../etc/passwd",
    "encoded dots": b"%2e%2e",
    "encoded dots and slash": b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "encoded slash alone": b"..%2Fsecret",
    "encoded twice": b"%252e%252e%252fsecret",
    "backslashes": b"..%5c..%5csecret",
    "overlong UTF-8": b"%c0%ae%c0%ae%c0%afsecret",
    "an absolute path": b"/etc/passwd",
    "an absolute path, encoded": b"%2fetc%2fpasswd",
    "NUL": b"d%00",
    "NUL before an ending": b"d%00.npy",
    "newline": b"d%0a",
    "a header of its own": b"d%0d%0aX-Injected:%201",
    "10 000 characters": b"d" * 10_000,
    "129 characters": b"d" * 129,
    "full-width letter": "ｄ".encode(),
    "full-width letter, encoded": b"%ef%bd%84",
    "Cyrillic letter": b"%d0%b0",
    "combining accent": b"d%cc%81",
    "right-to-left override": b"d%e2%80%ae",
    "invisible space": b"d%e2%80%8b",
    "one dot leader": b"%e2%80%a4%e2%80%a4",
    "trailing dot": b"d.",
    "trailing space": b"d%20",
    "leading space": b"%20d",
    "plus for a space": b"d+",
    "other case": b"D",
    "the service's own directory": b".dictserve",
    "a file of the service's": b".dictserve%2fjobs.sqlite3",
    "a version as a path": b"d%2f1",
    "version of dots": b"d@..",
    "version of another script": b"d@%d9%a1",
    "version with a sign": b"d@+1",
    "a symbolic link": b"link",
    "a symbolic link within": b"inner",
    "a file": b"file",
    "a link as a version": b"links@1",
    "a file as a version": b"files@1",
}
WAYS: dict[str, tuple[str, bytes, bytes]] = {
    "told": ("GET", b"/dictionaries/%s", b""),
    "weights": ("GET", b"/dictionaries/%s/weights", b""),
    "concepts told": ("GET", b"/dictionaries/%s/concepts", b""),
    "compared": ("GET", b"/dictionaries/d/compare/%s", b""),
    "removed": ("DELETE", b"/dictionaries/%s", b""),
    "labelled": ("PATCH", b"/dictionaries/%s", b'{"labels": {"a": "b"}}'),
    "encoded": ("POST", b"/encode?dictionary=%s", npy(np.ones((1, 6), np.float32))),
    "inferred": ("GET", b"/v2/models/%s", b""),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one dictionary, and things beside it in its store and outside that nobody is to touch."""
    base = tmp_path_factory.mktemp("names")
    (base / "data").mkdir()
    service = Service(base / "models", DICTSERVE_DATA_DIR=str(base / "data")).start()
    assert put(service).status_code == 201
    assert put(service, "real").status_code == 201
    store = service.store
    (base / "secret").mkdir()
    (base / "secret" / "dictionary.safetensors").write_bytes(HIDDEN)
    np.save(base / "data" / "a.npy", FITTED)
    np.save(base / "secret" / "out.npy", FITTED)
    (base / "data" / "out.npy").symlink_to(base / "secret" / "out.npy")
    (base / "data" / "out").symlink_to(base / "secret")
    (store / "link").symlink_to(base / "secret")
    (store / "inner").symlink_to(store / "real")
    (store / "file").write_text("no directory")
    (store / "links").mkdir()
    (store / "links" / "1").symlink_to(store / "real" / "1")
    (store / "files").mkdir()
    (store / "files" / "1").write_text("no directory")
    yield service
    assert "Traceback" not in service.log.read_text()
    assert service.stop() == 0


@pytest.fixture(autouse=True)
def _nothing_is_touched(planted: Service) -> Iterator[None]:
    before = everything(planted.store.parent)
    yield
    require_next(planted)
    assert everything(planted.store.parent) == before


def everything(base: Path) -> dict[str, object]:
    """Every path but the service's own and its log: where a link leads, or what a file holds."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(base):
        folders[:] = [name for name in folders if name not in (".dictserve", "made")]
        for path in (Path(folder) / name for name in [*folders, *files] if not name.endswith(".log")):
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            else:
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def exchange(service: Service, method: str, target: bytes, body: bytes = b"") -> Answer:
    """The answer to exactly these bytes."""
    head = f"Host: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(method.encode() + b" " + target + b" HTTP/1.1\r\n" + head + body)
        return read(rest_of(connection))


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_bad_name_in_every_path(planted: Service, name: bytes) -> None:
    for way, (method, path, body) in WAYS.items():
        answer = exchange(planted, method, path % name, body)
        assert 400 <= answer.status < 500, (way, answer)
        assert "x-injected" not in str(answer.headers).lower()
        assert HIDDEN not in answer.body
        assert len(answer.body) < 1000, way
        assert str(planted.store).encode() not in answer.body


@pytest.mark.parametrize("name", [name for name in BAD_NAMES.values() if name != b"D"])  # a good one, but for case
def test_nothing_is_made_under_a_bad_name(planted: Service, name: bytes) -> None:
    answer = exchange(planted, "PUT", b"/dictionaries/" + name, npy(D))
    assert 400 <= answer.status < 500, answer
    query = name.replace(b"/", b"%2f")
    answer = exchange(planted, "POST", b"/fit?nb_concepts=2&name=" + query, npy(FITTED))
    assert 400 <= answer.status < 500, answer
    assert list((planted.store / ".dictserve" / "activations").iterdir()) == []


@pytest.mark.parametrize("name", ["link", "inner", "file"])
def test_a_name_that_something_else_has(planted: Service, name: str) -> None:
    assert name in problem(put(planted, name), 409, "name-taken")
    refused = planted.client.post(f"/fit?name={name}&nb_concepts=2", content=npy(FITTED))
    problem(refused, 409, "name-taken")
    assert planted.client.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize("name", ["links", "files"])
def test_a_number_that_something_else_has_is_passed_over(planted: Service, name: str) -> None:
    planted_there = planted.store / name / "1"
    kind = planted_there.lstat().st_mode
    made = put(planted, name)
    assert (made.status_code, made.json()["version"]) == (201, 2)
    assert encode(planted, name).status_code == 200
    assert planted.client.delete(f"/dictionaries/{name}").status_code == 204
    assert planted_there.lstat().st_mode == kind
    (planted.store / name / ".removed-2").rmdir()


def test_names_that_differ_in_case_are_two(planted: Service) -> None:
    assert put(planted, "D", scale=2).json()["version"] == 1
    assert planted.client.get("/dictionaries/d").json()["versions"] == [1]
    assert planted.client.delete("/dictionaries/D").status_code == 204
    assert planted.client.get("/dictionaries/D").status_code == 404
    (planted.store / "D" / ".removed-1").rmdir()
    (planted.store / "D").rmdir()


@pytest.mark.parametrize("id", [b"..%2f..%2fetc", b"%00", b"%0a", b"x" * 10_000, b"%f0%9f%98%80", b"*", b"%25"])
def test_a_job_of_a_bad_id(planted: Service, id: bytes) -> None:
    for method, path in (("GET", b"/jobs/%s"), ("DELETE", b"/jobs/%s"), ("GET", b"/jobs/%s/events")):
        answer = exchange(planted, method, path % id)
        assert answer.status == 404, answer
        assert len(answer.body) < 1000


@pytest.mark.parametrize(
    "pattern",
    [
        "../secret/out.npy",
        "/etc/passwd",
        "out.npy",
        "out/*",
        "*/out.npy",
        "%2e%2e/secret/out.npy",
        "..\\secret",
        "a\0",
    ],
)
def test_files_of_a_fit_stay_in_their_directory(planted: Service, pattern: str) -> None:
    request = {"name": "made", "nb_concepts": 2, "files": [pattern]}
    assert "secret: " not in problem(planted.client.post("/fit", json=request), 422, "invalid-fields")
    assert planted.client.get("/jobs").json()["jobs"] == []


def test_a_link_that_is_planted_after_the_fit_was_accepted(planted: Service) -> None:
    """The first fit has the worker; the second's file becomes a link before its turn."""
    data = planted.store.parent / "data"
    first = fit(planted, name="made", solver="mu", max_iter=100_000, tol=0)
    planted.until(first, "running")
    np.save(data / "late.npy", FITTED)
    answer = planted.client.post("/fit", json={"name": "made", "nb_concepts": 2, "files": ["late.npy"]})
    assert answer.status_code == 202, answer.text
    (data / "late.npy").unlink()
    (data / "late.npy").symlink_to(planted.store.parent / "secret" / "out.npy")
    planted.client.delete(f"/jobs/{first}")
    job = planted.ended(answer.json()["id"])
    (data / "late.npy").unlink()
    assert (job["state"], job["error"]["type"]) == ("failed", "data-changed"), job
    assert "leads out of the data directory" in job["error"]["detail"]
    for id in (first, job["id"]):
        assert planted.client.delete(f"/jobs/{id}").status_code == 204


@pytest.mark.parametrize("file", ["meta.json", "dictionary.safetensors", "labels.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_something_else_in_the_place_of_a_file(planted: Service, file: str, kind: str) -> None:
    assert put(planted, "made").status_code == 201
    version = str(put(planted, "made", scale=2).json()["version"])
    path = planted.store / "made" / version / file
    elsewhere = planted.store.parent / "secret" / "dictionary.safetensors"
    path.unlink(missing_ok=True)
    {"link": lambda: path.symlink_to(elsewhere), "pipe": lambda: os.mkfifo(path), "directory": path.mkdir}[kind]()
    suffix = "/weights" if file == "dictionary.safetensors" else ""
    answer = planted.client.get(f"/dictionaries/made@{version}{suffix}")
    assert file in problem(answer, 500, "dictionary-damaged")
    listed = planted.client.get("/dictionaries").json()["dictionaries"]
    assert [told["name"] for told in listed] == ["d", "made", "real"]
    assert planted.client.delete("/dictionaries/made").status_code == 204
