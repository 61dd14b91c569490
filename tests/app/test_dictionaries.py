"""``/dictionaries``: import, weights, labels, removal, and what has not changed."""

import errno
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.store.records import Labels
from app.store.store import Store
from demo.service import npy
from tests.app.conftest import D, WorkerDouble, publish

URL = "/dictionaries/digits"


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (npy(D), {}),
        (npy(D.astype(">f8")), {"content-type": "application/x-npy"}),
        (safetensors.numpy.save({"weights": D}), {"content-type": "application/vnd.safetensors"}),
        (b'{"data": [[1, 0, 0, 2], [0, 1, 1, 0]]}', {}),
        (b"1,0,0,2\n0,1,1,0\n", {"content-type": "text/csv"}),
    ],
    ids=["npy", "npy of another dtype", "safetensors", "json", "csv"],
)
def test_import_in_every_format(client: TestClient, store: Store, content: bytes, headers: dict[str, str]) -> None:
    for version in (1, 2):
        answer = client.put(URL, content=content, headers=headers)
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"{URL}@{version}"
        assert (answer.json()["version"], answer.json()["metrics"], answer.json()["job"]) == (version, {}, None)
        assert answer.json()["versions"] == list(range(1, version + 1))
    np.testing.assert_array_equal(store.load("digits", 2), D)
    codes = client.post("/encode", json={"dictionary": "digits", "data": [[1, 2, 3, 4]]}).json()["codes"]
    assert codes == [[9, 5]]


@pytest.mark.parametrize(
    ("path", "content", "status", "said"),
    [
        (URL, npy(-D), 422, "negative"),
        (URL, npy(np.full((1, 2), np.nan)), 422, "NaN"),
        (URL, npy(np.ones((20_000, 2), np.float32)), 422, "at most 16384"),
        (URL, b"{}", 422, "required"),
        (URL, b'{"data": [[1]], "x": 1}', 422, "unknown field"),
        (URL + "@2", npy(D), 422, "leave out `@`"),
        ("/dictionaries/.x", npy(D), 422, "not a name"),
        (URL, b"nonsense", 415, "known format"),
    ],
)
def test_imports_that_are_refused(client: TestClient, path: str, content: bytes, status: int, said: str) -> None:
    answer = client.put(path, content=content)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["detail"]
    assert client.get("/dictionaries").json() == {"dictionaries": []}


def test_weights_in_every_format(client: TestClient, digits: str) -> None:
    answer = client.get(f"{URL}/weights")
    assert answer.headers["content-type"] == "application/x-npy"
    assert answer.headers["dictserve-version"] == "1"
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), D)
    as_json = client.get(f"{URL}@1/weights", headers={"accept": "application/json"}).json()
    assert as_json == {"dictionary": "digits", "version": 1, "weights": D.tolist()}
    content = client.get(f"{URL}/weights", headers={"accept": "application/vnd.safetensors"}).content
    np.testing.assert_array_equal(safetensors.numpy.load(content)["weights"], D)
    assert client.put("/dictionaries/copy", content=content).status_code == 201
    assert client.get(f"{URL}/weights", headers={"accept": "image/png"}).status_code == 406
    assert client.get("/dictionaries/nope/weights").status_code == 404


def test_weights_that_are_asked_for_at_once_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are in memory; what exceeds the bound by itself is answered where there is nothing else."""
    settings = Settings(store=tmp_path / "models", bodies_bytes=1_000_000)
    large = np.ones((500, 1000), np.float32)
    begun, go_on = threading.Event(), threading.Event()
    load = Store.load

    def slow(store: Store, name: str, version: int) -> np.ndarray:
        begun.set()
        assert go_on.wait(30)
        return load(store, name, version)

    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client, ThreadPoolExecutor() as pool:
        publish(Store(settings.store), "digits", large)  # past the bound on a body
        monkeypatch.setattr(Store, "load", slow)
        first = pool.submit(client.get, f"{URL}/weights")
        assert begun.wait(30)
        refused = client.get(f"{URL}/weights")
        assert (refused.status_code, refused.json()["type"], refused.headers["retry-after"]) == (
            503,
            "overloaded",
            "1",
        )
        go_on.set()
        assert first.result().content == npy(large)
        assert client.get(f"{URL}/weights").status_code == 200


@pytest.mark.parametrize("path", [URL, f"{URL}/weights"])
def test_what_has_not_changed_is_not_sent_again(client: TestClient, store: Store, digits: str, path: str) -> None:
    etag = client.get(path).headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        answer = client.get(path, headers={"if-none-match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    publish(store, "digits", 2 * D)
    assert client.get(path, headers={"if-none-match": etag}).status_code == 200


def test_labels_are_merged_and_kept(client: TestClient, store: Store, digits: str) -> None:
    etag = client.get(URL).headers["etag"]
    first = client.patch(URL, json={"labels": {"team": "vision", "use": "demo"}, "concept_labels": {"0": "loop"}})
    assert first.status_code == 200, first.text
    second = client.patch(URL, json={"labels": {"use": None}, "concept_labels": {"1": "bar"}}).json()
    assert (second["labels"], second["concept_labels"]) == ({"team": "vision"}, {"0": "loop", "1": "bar"})
    told = client.get(URL)
    assert told.json()["concept_labels"] == {"0": "loop", "1": "bar"}
    assert told.headers["etag"] != etag
    assert Store(store.root).labels("digits", 1).labels == {"team": "vision"}
    publish(store, "digits", D)
    assert client.get(URL).json()["labels"] == {}  # of a version, not of a name
    assert client.get(URL + "@1").json()["labels"] == {"team": "vision"}


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"concept_labels": {"2": "x"}}, "digits@1 has 2, from 0"),
        ({"concept_labels": {"-1": "x"}}, "pattern"),
        ({"labels": {"a b": "x"}}, "pattern"),
        ({"labels": {"a": ""}}, "at least 1 character"),
        ({"labels": {"a": "x" * 501}}, "at most 500"),
        ({"label": {}}, "unknown field"),
    ],
)
def test_labels_that_are_refused(client: TestClient, digits: str, patch: dict[str, object], said: str) -> None:
    answer = client.patch(URL, json=patch)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]
    assert client.get(URL).json()["labels"] == {}


def test_labels_are_read_as_a_patch_of_json_too(client: TestClient, digits: str) -> None:
    told = {"content-type": "application/merge-patch+json; charset=utf-8"}
    answer = client.patch(URL, content=b'{"labels": {"a": "b"}}', headers=told)
    assert (answer.status_code, answer.json()["labels"]) == (200, {"a": "b"})


@pytest.mark.parametrize("type", ["application/xml", "application/x-npy", "text/csv", "multipart/form-data"])
def test_labels_are_of_no_other_type(client: TestClient, digits: str, type: str) -> None:
    answer = client.patch(URL, content=b"{}", headers={"content-type": type})
    assert answer.status_code == 415
    assert answer.json()["detail"] == f"Content-Type {type!r} is not read here: fields are sent as application/json"


@pytest.mark.parametrize(
    ("content", "status", "type"),
    [
        (b"{", 400, "malformed-body"),
        (b'{"labels": {"a": "' + b"x" * 9_000_000 + b'"}}', 413, "body-too-large"),
        (b"[]", 400, "malformed-body"),
        (b"", 400, "malformed-body"),
        (b'{"labels": {"a": "b"}, "labels": {}}', 400, "malformed-body"),
        (b'{"labels": {"a": 1}}', 422, "invalid-fields"),
    ],
)
def test_labels_that_are_no_labels(client: TestClient, digits: str, content: bytes, status: int, type: str) -> None:
    answer = client.patch(URL, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (status, type), answer.text
    assert len(answer.content) < 1000


def test_labels_set_at_once_are_all_kept(client: TestClient, digits: str) -> None:
    threads = [
        threading.Thread(target=lambda i=i: client.patch(URL, json={"labels": {f"key{i}": "x"}})) for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(client.get(URL).json()["labels"]) == 20


def test_a_version_is_removed_and_its_number_not_given_again(client: TestClient, store: Store, digits: str) -> None:
    publish(store, "digits", 2 * D)
    publish(store, "digits", 3 * D)
    assert client.delete(URL + "@3").status_code == 204
    assert client.get(URL + "@3").status_code == 404
    assert client.get(URL).json()["versions"] == [1, 2]
    assert client.delete(URL + "@3").status_code == 404
    assert publish(store, "digits", D) == 4
    removed = client.delete(URL)
    assert (removed.status_code, removed.content, "content-type" in removed.headers) == (204, b"", False)
    assert client.get(URL).status_code == 404
    assert client.get("/dictionaries").json() == {"dictionaries": []}
    assert publish(Store(store.root), "digits", D) == 5
    assert [path.name for path in store.workplace.staging.iterdir()] == []


def test_encodes_while_it_is_removed_are_answered_or_told_404(
    client: TestClient, store: Store, worker: WorkerDouble, digits: str
) -> None:
    seen: set[int] = set()

    def encode() -> None:
        for _ in range(100):
            seen.add(client.post("/encode", json={"dictionary": "digits", "data": [[1, 2, 3, 4]]}).status_code)

    threads = [threading.Thread(target=encode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        publish(store, "digits", D)
        client.delete(URL)
    for thread in threads:
        thread.join()
    assert seen <= {200, 404}


def test_what_has_changed_is_neither_labelled_nor_removed_by_who_knows_it_as_it_was(
    client: TestClient, digits: str, store: Store
) -> None:
    def tag(reference: str) -> str:
        told: str = client.get(f"/dictionaries/{reference}").headers["etag"]
        return told

    before = tag("digits")
    labels = {"labels": {"by": "one"}}
    assert client.patch("/dictionaries/digits", json=labels, headers={"if-match": f'"other", {before}'}).is_success
    for answer in (
        client.patch("/dictionaries/digits", json={"labels": {"by": "two"}}, headers={"if-match": before}),
        client.delete("/dictionaries/digits", headers={"if-match": before}),
        client.delete("/dictionaries/digits@1", headers={"if-match": '"nonsense"'}),
        client.delete(
            "/dictionaries/digits@1", headers={"if-match": f"W/{tag('digits@1')}"}
        ),  # weak tags match nothing
        *(
            client.patch("/dictionaries/digits", json={"labels": {"by": "two"}}, headers={"if-match": told})
            for told in ('"x,*,y"', f'"x,{before[1:]}', "")
        ),
    ):
        assert (answer.status_code, answer.json()["type"]) == (412, "precondition-failed"), answer.text
    assert client.get("/dictionaries/digits").json()["labels"] == {"by": "one"}
    assert client.get("/dictionaries/digits", headers={"if-none-match": '"x,*,y"'}).status_code == 200
    known = tag("digits")
    publish(store, "digits", D)  # which who removes the name would remove, too
    assert client.delete("/dictionaries/digits", headers={"if-match": known}).status_code == 412
    assert store.versions("digits") == [1, 2]
    assert client.delete("/dictionaries/digits@1", headers={"if-match": tag("digits@1")}).status_code == 204
    assert client.delete("/dictionaries/digits", headers={"if-match": "*"}).status_code == 204
    assert client.delete("/dictionaries/digits", headers={"if-match": "*"}).status_code == 404


def another_labels_before(method: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that the store is asked for this."""
    relabel, asked = Store.relabel, getattr(Store, method)

    def later(self: Store, *args: Any) -> None:
        relabel(store, "digits", 1, lambda old: Labels(labels={"by": "another"}))
        asked(self, *args)

    monkeypatch.setattr(Store, method, later)


def test_labels_that_change_while_a_label_is_set_are_seen(
    client: TestClient, digits: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = client.get("/dictionaries/digits").headers["etag"]
    another_labels_before("relabel", store, monkeypatch)
    answer = client.patch("/dictionaries/digits", json={"labels": {"by": "one"}}, headers={"if-match": known})
    assert answer.status_code == 412
    assert client.get("/dictionaries/digits").json()["labels"] == {"by": "another"}


def test_a_label_that_is_set_before_a_removal_is_seen(
    client: TestClient, digits: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = client.get("/dictionaries/digits").headers["etag"]
    another_labels_before("remove", store, monkeypatch)
    for reference in ("digits", "digits@1"):
        answer = client.delete(f"/dictionaries/{reference}", headers={"if-match": known})
        assert answer.status_code == 412
    assert client.get("/dictionaries/digits").json()["labels"] == {"by": "another"}


def test_a_name_that_is_to_be_new_is(client: TestClient, store: Store) -> None:
    new = {"if-none-match": "*"}
    assert client.put("/dictionaries/new", json={"data": D.tolist()}, headers=new).status_code == 201
    answer = client.put("/dictionaries/new", json={"data": D.tolist()}, headers=new)
    assert (answer.status_code, answer.json()["type"]) == (412, "precondition-failed")
    assert store.versions("new") == [1]
    assert client.put("/dictionaries/new", json={"data": D.tolist()}).status_code == 201


@pytest.mark.parametrize("told", ["*", "*, *", " *"])
def test_whoever_asks_for_a_new_name_in_several_lines_asks_for_one(
    client: TestClient, digits: str, told: str
) -> None:
    answer = client.put(URL, json={"data": D.tolist()}, headers={"if-none-match": told})
    assert (answer.status_code, answer.json()["type"]) == (412, "precondition-failed")


@pytest.mark.parametrize("told", ['"abc"', '"*"', '*, "abc"', "abc"])
def test_an_import_unless_something_is_there_is_refused(
    client: TestClient, store: Store, digits: str, told: str
) -> None:
    answer = client.put(URL, json={"data": D.tolist()}, headers={"if-none-match": told})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["header", "if-none-match"]
    assert store.versions("digits") == [1]


def test_what_has_changed_gets_no_version_of_who_knows_it_as_it_was(
    client: TestClient, digits: str, store: Store
) -> None:
    def put(if_match: str, url: str = URL) -> tuple[int, str]:
        answer = client.put(url, json={"data": D.tolist()}, headers={"if-match": if_match})
        return answer.status_code, answer.json().get("type", "")

    known = client.get(URL).headers["etag"]
    failed = (412, "precondition-failed")
    assert put('"other"') == put(f"W/{known}") == put("*", "/dictionaries/new") == failed
    assert put(f'"other", {known}') == (201, "")
    assert put(known) == failed  # that was of the version before
    assert put("*") == (201, "")
    assert store.versions("digits") == [1, 2, 3]
    assert store.versions("new") == []


def test_of_those_who_know_the_name_as_it_is_at_once_one_makes_the_next_version(
    client: TestClient, digits: str, store: Store
) -> None:
    known = {"if-match": client.get(URL).headers["etag"]}

    def put(_: int) -> int:
        return client.put(URL, json={"data": D.tolist()}, headers=known).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(put, range(8))) == [201] + 7 * [412]
    assert store.versions("digits") == [1, 2]


def test_of_those_who_would_make_a_new_name_at_once_one_does(client: TestClient, store: Store) -> None:
    def put(_: int) -> int:
        answer = client.put("/dictionaries/new", json={"data": D.tolist()}, headers={"if-none-match": "*"})
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(put, range(8))) == [201] + 7 * [412]
    assert store.versions("new") == [1]


def test_what_is_damaged_is_told_in_the_log_with_the_request(
    client: TestClient, store: Store, digits: str, caplog: pytest.LogCaptureFixture
) -> None:
    (store.root / digits / "1" / "dictionary.safetensors").write_bytes(b"x")
    assert client.get("/dictionaries/digits/weights").status_code == 500
    assert "GET /dictionaries/digits/weights: dictionary-damaged: " in caplog.text


def test_a_record_that_the_disk_does_not_give_hides_no_other(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be passing, and is a 503, but where that stands for a list of others."""
    for name in ("a", "a", "b"):
        publish(store, name, D)
    opening = os.open

    def failing(path: Any, *args: Any, **told: Any) -> int:
        if str(path).endswith("a/2/meta.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opening(path, *args, **told)

    monkeypatch.setattr("os.open", failing)
    with TestClient(create_app(settings, supervisor=WorkerDouble(settings))) as client:
        listed = client.get("/dictionaries").json()["dictionaries"]
        assert [(told["name"], told["version"]) for told in listed] == [("a", 1), ("b", 1)]
        states = {(told["name"], told["version"]): told for told in client.post("/v2/repository/index").json()}
        assert {key: told["state"] for key, told in states.items()} == {
            ("a", "1"): "READY",
            ("a", "2"): "UNAVAILABLE",
            ("b", "1"): "READY",
        }
        said = "meta.json of a@2 cannot be read: Input/output error"
        assert states["a", "2"]["reason"] == said
        fit = {"nb_concepts": 2, "data": [[1, 0], [0, 1]]}
        encode = {"data": [[1, 2, 3, 4]]}
        for answer in (
            client.get("/dictionaries/a"),
            client.post("/encode", json=encode | {"dictionary": "a"}),
            client.post("/fit", json=fit | {"name": "a"}),
        ):
            assert (answer.status_code, answer.json()["detail"]) == (503, said)
            assert int(answer.headers["retry-after"]) > 0
        assert client.post("/encode", json=encode | {"dictionary": "a@1"}).status_code == 200
        assert client.post("/fit", json=fit | {"name": "b"}).status_code == 202
        assert client.delete("/dictionaries/a@2").status_code == 204
        assert client.post("/fit", json=fit | {"name": "a"}).status_code == 202
