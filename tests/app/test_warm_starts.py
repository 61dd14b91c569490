"""``init`` as the name of a dictionary: the fit starts from that version, or is refused before it is accepted."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.store.store import Store
from demo.service import npy
from tests.app.conftest import D, WorkerDouble, ended, publish
from tests.app.test_fit_jobs import FIT
from tests.waiting import until


def started(worker: WorkerDouble, count: int = 1) -> None:
    until(lambda: len(worker.fits) >= count, every=0.01)


@pytest.mark.parametrize(("init", "pinned"), [("digits", "digits@2"), ("digits@1", "digits@1")])
def test_the_version_is_pinned_when_the_job_is_recorded(
    client: TestClient, store: Store, digits: str, worker: WorkerDouble, init: str, pinned: str
) -> None:
    publish(store, digits, 2 * D)
    job = client.post("/fit", json=FIT | {"init": init}).json()
    assert job["parameters"]["init"] == pinned
    started(worker)
    assert (worker.fits[0].init, worker.fits[0].start) == ("auto", pinned)
    version = ended(client, job["id"])["version"]
    assert client.get(f"/dictionaries/digits@{version}").json()["parameters"]["init"] == pinned


def test_methods_win_over_dictionaries_of_their_names(client: TestClient, store: Store, worker: WorkerDouble) -> None:
    publish(store, "random", D)
    told = [
        client.post("/fit", json=FIT | {"init": init}).json()["parameters"]["init"] for init in ("random", "random@1")
    ]
    started(worker, 2)
    assert told == ["random", "random@1"]
    assert [(fit.init, fit.start) for fit in worker.fits] == [("random", None), ("auto", "random@1")]


@pytest.mark.parametrize(
    ("fields", "loc", "said"),
    [
        ({"init": "nope"}, ["init"], ["nndsvda", "no dictionary 'nope'"]),
        ({"init": "digits@7"}, ["init"], ["no version 7"]),
        ({"init": "../x"}, ["init"], ["not a name"]),
        ({"init": "digits@x"}, ["init"], ["not a version"]),
        ({"init": "digits", "nb_concepts": 3}, ["nb_concepts"], ["3 concepts", "digits@1", "has 2"]),
        ({"init": "digits", "data": [[1, 2, 3]]}, ["data"], ["3 columns", "digits@1", "has 4 features"]),
    ],
)
def test_what_does_not_suit_is_refused_before_it_is_accepted(
    client: TestClient, store: Store, digits: str, fields: dict[str, object], loc: list[str], said: list[str]
) -> None:
    answer = client.post("/fit", json=FIT | fields)
    problem = answer.json()
    assert (answer.status_code, problem["errors"][0]["loc"]) == (422, loc), problem
    assert all(text in problem["detail"] for text in said), problem
    assert client.get("/jobs").json()["jobs"] == []
    assert list(store.workplace.activations.iterdir()) == []


def test_a_retry_with_a_key_is_the_same_request_though_the_name_means_more(
    client: TestClient, store: Store, digits: str
) -> None:
    request = {"json": FIT | {"name": "other", "init": digits}, "headers": {"idempotency-key": "k"}}
    first = client.post("/fit", **request).json()
    publish(store, digits, D)
    second = client.post("/fit", **request).json()
    assert first["id"] == second["id"]
    assert first["parameters"]["init"] == second["parameters"]["init"] == "digits@1"


def test_npy_with_init_in_the_query(client: TestClient, digits: str) -> None:
    query = {"name": "digits", "nb_concepts": "2", "init": "digits"}
    answer = client.post("/fit", params=query, content=npy(np.ones((3, 4), np.float32)))
    assert answer.json()["parameters"]["init"] == "digits@1"
