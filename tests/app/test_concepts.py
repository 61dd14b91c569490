"""``/dictionaries/{reference}/concepts``: what is told of concepts, from figures and without."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app import concepts
from app.memory_cache import KeptBytes
from app.store import figures_file
from app.store.figures_file import FIGURES_FILE
from app.store.store import Store
from demo.service import npy
from tests.app.conftest import D, publish

URL = "/dictionaries/digits/concepts"
RANDOM = np.random.default_rng(0)


def figures_of(k: int) -> dict[str, np.ndarray]:
    """Those of some dictionary; the last concept has fewer of all."""
    several = {name: RANDOM.random((k, 10)).astype(np.float32) for name in ("cosines", "top_codes", "overlap")}
    several |= {name: RANDOM.integers(0, k, (k, 10)) for name in ("nearest", "top_rows", "together")}
    for name in ("nearest", "top_rows", "together"):
        several[name][-1, 3:] = -1
    for name in ("cosines", "top_codes", "overlap"):
        several[name][-1, 3:] = 0
    return several | {
        "uses": RANDOM.integers(0, 50, k),
        "largest": RANDOM.random(k).astype(np.float32),
        "histogram": RANDOM.integers(0, 9, (k, 20)),
    }


def publish_fitted(store: Store, weights: np.ndarray, figures: dict[str, np.ndarray], **metrics: object) -> None:
    k = len(weights)
    store.publish(
        "digits",
        weights,
        figures_file.written(figures),
        parameters={},
        data={"rows": 50},
        metrics={"energy": (np.arange(k) / k).tolist(), **metrics},
        software={},
    )


def test_all_in_columns(client: TestClient, store: Store) -> None:
    figures = figures_of(5)
    publish_fitted(store, RANDOM.random((5, 7)).astype(np.float32), figures)
    client.patch("/dictionaries/digits", json={"concept_labels": {"3": "loop"}})
    told = client.get(URL).json()
    assert told.pop("energy") == [0, 0.2, 0.4, 0.6, 0.8]
    assert told.pop("largest") == pytest.approx(figures["largest"])
    assert told.pop("cosine") == pytest.approx(figures["cosines"][:, 0])
    assert told == {
        "dictionary": "digits",
        "version": 1,
        "nb_concepts": 5,
        "n_features": 7,
        "rows": 50,
        "uses": figures["uses"].tolist(),
        "nearest": figures["nearest"][:, 0].tolist(),
        "labels": {"3": "loop"},
    }


@pytest.mark.parametrize("index", [0, 4])
def test_one(client: TestClient, store: Store, index: int) -> None:
    figures, weights = figures_of(5), RANDOM.random((5, 7)).astype(np.float32)
    publish_fitted(store, weights, figures)
    client.patch("/dictionaries/digits", json={"concept_labels": {"1": "loop", "4": "bar"}})
    told = client.get(f"{URL}/{index}").json()
    assert (told["dictionary"], told["version"], told["concept"]) == ("digits", 1, index)
    assert told["label"] == {0: None, 4: "bar"}[index]
    assert told["weights"] == pytest.approx(weights[index])
    assert told["norm"] == pytest.approx(np.linalg.norm(weights[index]))
    assert (told["rows"], told["uses"], told["energy"]) == (50, figures["uses"][index], 0.2 * index)
    assert told["largest"] == pytest.approx(figures["largest"][index])
    assert told["histogram"] == figures["histogram"][index].tolist()
    assert (told["dead"], told["near_dense"]) == (figures["uses"][index] == 0, figures["uses"][index] > 45)
    names = {1: "loop", 4: "bar"}
    for name, of, to, score in (
        ("nearest", "nearest", "cosines", "cosine"),
        ("together", "together", "overlap", "overlap"),
    ):
        wanted = figures[of][index][figures[of][index] >= 0].tolist()
        assert [other["concept"] for other in told[name]] == wanted
        assert [other[score] for other in told[name]] == pytest.approx(figures[to][index][: len(wanted)])
        assert [other["label"] for other in told[name]] == [names.get(j) for j in wanted]
    wanted = figures["top_rows"][index][figures["top_rows"][index] >= 0].tolist()
    assert [top["row"] for top in told["top_rows"]] == wanted
    assert [top["code"] for top in told["top_rows"]] == pytest.approx(figures["top_codes"][index][: len(wanted)])


def test_what_is_dead_and_what_near_dense(client: TestClient, store: Store) -> None:
    weights = np.ones((4, 3), np.float32)
    weights[1] = 0
    publish_fitted(store, weights, {"uses": np.array([0, 30, 45, 46])})
    told = [client.get(f"{URL}/{i}").json() for i in range(4)]
    assert [concept["dead"] for concept in told] == [True, True, False, False]
    assert [concept["near_dense"] for concept in told] == [False, False, False, True]


def test_rows_are_those_that_were_measured(client: TestClient, store: Store) -> None:
    publish_fitted(store, D, {"uses": np.array([1, 20])}, metrics_rows=20)
    assert client.get(URL).json()["rows"] == 20
    assert client.get(f"{URL}/1").json()["near_dense"] is True


@pytest.mark.parametrize("k", [1, 3, 40])
def test_of_an_import_what_D_alone_tells(client: TestClient, k: int) -> None:
    weights = RANDOM.random((k, 6)).astype(np.float32) * np.float32(1e30)
    weights[0] = 0
    assert client.put("/dictionaries/digits", content=npy(weights)).status_code == 201
    unit = weights.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-300)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    told = client.get(URL).json()
    assert told["cosine"] == pytest.approx(cosines.max(1), abs=1e-4)
    for i in range(k):
        assert (
            told["nearest"][i] == -1
            if cosines[i].max() <= 0
            else cosines[i, told["nearest"][i]] > cosines[i].max() - 1e-4
        )
    assert [told[name] for name in ("rows", "energy", "uses", "largest")] == [None] * 4
    one = client.get(f"{URL}/{k - 1}").json()
    wanted = np.sort(cosines[k - 1])[::-1][:10]
    assert [near["cosine"] for near in one["nearest"]] == pytest.approx(wanted[wanted > 0], abs=1e-4)
    unknown = ("energy", "rows", "uses", "largest", "histogram", "top_rows", "together", "dead", "near_dense")
    assert [one[name] for name in unknown] == [None] * len(unknown)


def test_of_a_large_import_the_columns_of_neighbours_are_null(
    client: TestClient, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concepts, "MOST_WORK", 2 * 2 * 4 - 1)
    told = client.get(URL).json()
    assert (told["nearest"], told["cosine"], told["nb_concepts"]) == (None, None, 2)
    assert client.get(f"{URL}/1").json()["nearest"] == []  # of one they are told all the same; there are none


def test_of_a_fit_of_before_there_were_figures(client: TestClient, store: Store) -> None:
    told = {"parameters": {}, "data": {"rows": 9}, "metrics": {"energy": [0.25, 0.75]}, "software": {}}
    store.publish("digits", D, **told)
    columns, one = client.get(URL).json(), client.get(f"{URL}/1").json()
    assert (columns["energy"], columns["rows"], columns["uses"], columns["nearest"]) == (
        [0.25, 0.75],
        9,
        None,
        [-1, -1],
    )
    assert (one["energy"], one["rows"], one["uses"], one["dead"]) == (0.75, 9, None, None)


def test_a_fit_over_http_has_its_figures(client: TestClient) -> None:
    made = client.post("/fit?name=digits&nb_concepts=2", content=npy(D), headers={"prefer": "wait=30"}).json()
    assert made["state"] == "succeeded"
    assert client.get(URL).json()["uses"] == [2, 2]  # as the double has it


@pytest.mark.parametrize("path", ["", "/1"])
def test_what_has_not_changed_is_not_sent_again(client: TestClient, digits: str, path: str) -> None:
    etag = client.get(URL + path).headers["etag"]
    answer = client.get(URL + path, headers={"if-none-match": etag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    client.patch("/dictionaries/digits", json={"concept_labels": {"1": "loop"}})
    assert client.get(URL + path, headers={"if-none-match": etag}).status_code == 200


@pytest.mark.parametrize(
    ("index", "status", "type"),
    [
        ("2", 404, "unknown-concept"),
        ("1" + "0" * 30, 404, "unknown-concept"),
        ("-1", 422, "invalid-fields"),
        ("x", 422, "invalid-fields"),
        ("1.5", 422, "invalid-fields"),
        ("NaN", 422, "invalid-fields"),
        ("%00", 422, "invalid-fields"),
        ("9" * 5000, 422, "invalid-fields"),
    ],
)
def test_a_concept_that_is_not_there(client: TestClient, digits: str, index: str, status: int, type: str) -> None:
    answer = client.get(f"{URL}/{index}")
    assert (answer.status_code, answer.json()["type"]) == (status, type), answer.text
    assert len(answer.content) < 1000


def test_concepts_of_a_dictionary_that_is_not_there(client: TestClient, digits: str) -> None:
    for reference in ("nope", "digits@2"):
        for path in ("", "/0"):
            answer = client.get(f"/dictionaries/{reference}/concepts{path}")
            assert (answer.status_code, answer.json()["type"]) == (404, "unknown-dictionary")
    assert client.get(URL).status_code == 200
    client.delete("/dictionaries/digits")
    assert client.get(f"{URL}/0").status_code == 404  # what is kept of it tells nothing


@pytest.mark.parametrize("fault", ["a bit", "cut short", "gone", "other concepts", "no tensors"])
def test_damaged_figures_do_not_hide_their_dictionary(client: TestClient, store: Store, fault: str) -> None:
    if fault == "other concepts":  # a file that is whole, and of something else
        publish_fitted(store, D, figures_of(3))
    elif fault == "no tensors":
        store.publish("digits", D, b"nonsense", parameters={}, data={}, metrics={}, software={})
    else:
        publish_fitted(store, D, figures_of(2))
        path = store.root / "digits" / "1" / FIGURES_FILE
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content if fault == "a bit" else content[:100])
        if fault == "gone":
            path.unlink()
    for path in ("", "/0"):
        answer = client.get(URL + path)
        assert (answer.status_code, answer.json()["type"]) == (500, "dictionary-damaged")
        assert FIGURES_FILE in answer.json()["detail"]
        assert "encodes and decodes need no figures" in answer.json()["detail"]
    assert client.post("/encode", json={"dictionary": "digits", "data": [[1, 2, 3, 4]]}).status_code == 200
    assert client.get("/dictionaries/digits").status_code == 200
    assert [told["name"] for told in client.get("/dictionaries").json()["dictionaries"]] == ["digits"]
    publish(store, "digits", D)
    assert client.get(URL).status_code == 200


def test_the_figures_that_are_read_are_those_of_a_fit() -> None:
    from core import figures

    assert set(figures_file.TENSORS) == set(figures.Figures.__dataclass_fields__)


def test_what_was_used_longest_ago_is_not_kept() -> None:
    made: list[str] = []
    kept: KeptBytes[bytes] = KeptBytes(10, len)

    def get(key: str, size: int) -> None:
        def make() -> bytes:
            made.append(key)
            return bytes(size)

        assert len(kept.get(key, make)) == size

    for key, size in (
        ("a", 4),
        ("b", 4),
        ("a", 4),
        ("c", 4),
        ("a", 4),
        ("b", 4),
        ("large", 11),
        ("large", 11),
        ("b", 4),
    ):
        get(key, size)
    assert made == ["a", "b", "c", "b", "large", "large"]
    assert kept.nbytes <= 10
