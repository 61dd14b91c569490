"""The load: clients that each do what their seed says, and write it down."""

import hashlib
import io
import random
import time
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np

from demo.service import npy
from tests.faults.crash.log import Log, Operation

N_FEATURES = 6
MAX_CONCEPTS = 4
PROBE = np.random.default_rng(0).random((5, N_FEATURES)).astype(np.float32)  # what every encode sends
CODES = {k: np.random.default_rng(k).random((3, k)).astype(np.float32) for k in range(1, MAX_CONCEPTS + 1)}
SHARED = ["shared-a", "shared-b"]
TIMEOUT_SECONDS = 60.0
FINISH_SECONDS = 60.0
ITERATIONS = {"short": 20, "longer": 1000, "endless": 100_000}  # endless ones are cancelled by who started them

OPEN_JOBS = 15  # of a client, at most: the worker is dead for much of the time, and what waits has to end at last

Reference = tuple[str, int]
JOB_FIELDS = ("id", "state", "name", "version", "attempts", "resumed_from", "error")
RECORD_FIELDS = ("name", "version", "versions", "sha256", "nb_concepts", "labels", "job")


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()


class Caller:
    """Calls the service, one method for each kind of operation."""

    def __init__(self, url: str, folder: Path, who: str) -> None:
        self.log = Log(folder, who)
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        self._http.close()
        self.log.close()

    def import_(self, name: str, D: np.ndarray) -> Operation:
        operation = self.log.ask("import", name=name, digest=digest(D), nb_concepts=len(D))
        return self._call(operation, "PUT", f"/dictionaries/{name}", content=npy(D))

    def fit(self, name: str, seed: int, nb_concepts: int, length: str, key: str) -> Operation:
        """Everything in the request follows from what is told: asked again, it is the same request."""
        A = np.random.default_rng(seed).random((40, N_FEATURES)).astype(np.float32)
        told = {"name": name, "seed": seed, "nb_concepts": nb_concepts, "max_iter": ITERATIONS[length], "tol": 0}
        operation = self.log.ask("fit", **told, length=length, key=key)
        headers = {"Idempotency-Key": key}
        return self._call(operation, "POST", "/fit", params=told, content=npy(A), headers=headers)

    def job(self, id: str) -> Operation:
        return self._call(self.log.ask("job", id=id), "GET", f"/jobs/{id}")

    def cancel(self, id: str) -> Operation:
        return self._call(self.log.ask("cancel", id=id), "DELETE", f"/jobs/{id}")

    def jobs(self, state: str) -> Operation:
        return self._call(self.log.ask("jobs", state=state), "GET", "/jobs", params={"state": state, "limit": 1000})

    def encode(self, name: str, version: int | None) -> Operation:
        operation = self.log.ask("encode", name=name, version=version)
        return self._call(operation, "POST", "/encode", params=_dictionary(name, version), content=npy(PROBE))

    def decode(self, name: str, version: int, nb_concepts: int) -> Operation:
        operation = self.log.ask("decode", name=name, version=version)
        params = _dictionary(name, version)
        return self._call(operation, "POST", "/decode", params=params, content=npy(CODES[nb_concepts]))

    def weights(self, name: str, version: int) -> Operation:
        operation = self.log.ask("weights", name=name, version=version)
        return self._call(operation, "GET", f"/dictionaries/{name}@{version}/weights")

    def record(self, name: str, version: int | None) -> Operation:
        operation = self.log.ask("record", name=name, version=version)
        return self._call(operation, "GET", f"/dictionaries/{_reference(name, version)}")

    def dictionaries(self) -> Operation:
        return self._call(self.log.ask("dictionaries"), "GET", "/dictionaries")

    def label(self, name: str, version: int, key: str, value: str | None) -> Operation:
        operation = self.log.ask("label", name=name, version=version, key=key, value=value)
        return self._call(operation, "PATCH", f"/dictionaries/{name}@{version}", json={"labels": {key: value}})

    def delete(self, name: str, version: int | None) -> Operation:
        operation = self.log.ask("delete", name=name, version=version)
        return self._call(operation, "DELETE", f"/dictionaries/{_reference(name, version)}")

    def _call(self, operation: Operation, method: str, path: str, **request: Any) -> Operation:
        try:
            answer = self._http.request(method, path, **request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return self.log.lost(operation, repr(error), sent=False)
        except httpx.TransportError as error:
            return self.log.lost(operation, repr(error), sent=True)
        return self.log.answered(operation, answer.status_code, **_kept(operation.kind, answer))


def _reference(name: str, version: int | None) -> str:
    return name if version is None else f"{name}@{version}"


def _dictionary(name: str, version: int | None) -> dict[str, str]:
    return {"dictionary": _reference(name, version)}


def _kept(kind: str, answer: httpx.Response) -> dict[str, Any]:
    """What the checks need of an answer."""
    if answer.status_code >= 400:
        problem = answer.json()
        return {
            "type": problem["type"],
            "detail": problem["detail"],
            "retry_after": answer.headers.get("retry-after"),
        }
    if kind in ("encode", "decode", "weights"):
        array = np.load(io.BytesIO(answer.content), allow_pickle=False)
        told = {"version": int(answer.headers["dictserve-version"])}
        return told | ({"digest": digest(array)} if kind == "weights" else {"values": array.tolist()})
    if answer.status_code == 204:
        return {}
    body = answer.json()
    if kind == "jobs":
        return {"jobs": [{name: job[name] for name in JOB_FIELDS} for job in body["jobs"]]}
    if kind == "dictionaries":
        return {"dictionaries": [[told["name"], told["version"]] for told in body["dictionaries"]]}
    return {name: body[name] for name in (JOB_FIELDS if kind in ("fit", "job", "cancel") else RECORD_FIELDS)}


class Client:
    """Does at random what people and programs do, and remembers what it was told of."""

    def __init__(self, url: str, folder: Path, number: int, seed: int) -> None:
        self._caller = Caller(url, folder, f"client-{number}")
        self._random = random.Random(f"{seed}/{number}")
        self._own = f"own-{number}"
        self._names = [self._own, *SHARED]
        self._known: dict[Reference, int] = {}  # versions it was told of, and their numbers of concepts
        self._jobs: dict[str, int] = {}  # jobs it was told of that have not ended, and what they fit
        self._endless: set[str] = set()
        self._writings = 0

    @property
    def log(self) -> Log:
        return self._caller.log

    def run(self, stop: Event) -> None:
        """Work until told to stop, then end what would go on for ever."""
        steps = {
            self._import: 4,
            self._fit: 3,
            self._look: 6,
            self._cancel: 2,
            self._encode: 12,
            self._decode: 4,
            self._weights: 3,
            self._record: 3,
            self._list: 1,
            self._label: 6,
            self._delete: 2,
            self._delete_all: 0.15,
        }
        try:
            while not stop.is_set():
                (step,) = self._random.choices(list(steps), list(steps.values()))
                operation = step()
                if operation is not None and operation.status == 404 and self._random.random() < 0.8:
                    self._known.pop((operation.told.get("name"), operation.told.get("version")), None)
                # Refused connections are the more the longer the service takes to start: a few tell all.
                refused = operation is not None and not operation.sent
                time.sleep(0.2 if refused else self._random.uniform(0, 0.02))
            self._finish()
        finally:
            self._caller.close()

    def _finish(self) -> None:
        deadline = time.monotonic() + FINISH_SECONDS
        while self._endless:
            id = min(self._endless)
            self._note(id, self._caller.cancel(id))
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {id} could not be cancelled")

    def _import(self) -> Operation:
        nb_concepts = self._random.randint(1, MAX_CONCEPTS)
        D = np.random.default_rng(self._random.getrandbits(64)).random((nb_concepts, N_FEATURES)).astype(np.float32)
        operation = self._caller.import_(self._random.choice(self._names), D)
        if operation.done:
            self._known[operation.told["name"], operation.answer["version"]] = nb_concepts
        return operation

    def _fit(self) -> Operation | None:
        if len(self._jobs) >= OPEN_JOBS:
            return self._look()
        told = {
            "name": self._random.choice(self._names),
            "seed": self._random.getrandbits(31),
            "nb_concepts": self._random.randint(1, MAX_CONCEPTS),
            "length": self._random.choices(list(ITERATIONS), (6, 3, 1))[0],
            "key": f"{self._own}-{self._random.getrandbits(64):x}",
        }
        deadline = time.monotonic() + FINISH_SECONDS
        operation = self._caller.fit(**told)
        while operation.lost:  # asked for again, as a client should
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer to {operation}")
            time.sleep(0.2)
            operation = self._caller.fit(**told)
        if self._random.random() < 0.2:
            operation = self._caller.fit(**told)  # needlessly
        if operation.done:
            self._jobs[operation.answer["id"]] = told["nb_concepts"]
            if told["length"] == "endless":
                self._endless.add(operation.answer["id"])
        return operation

    def _look(self) -> Operation | None:
        if not self._jobs:
            return None
        id = self._random.choice(list(self._jobs))
        return self._note(id, self._caller.job(id))

    def _cancel(self) -> Operation | None:
        jobs = list(self._endless & self._jobs.keys()) or list(self._jobs)
        if not jobs:
            return None
        id = self._random.choice(jobs)
        return self._note(id, self._caller.cancel(id))

    def _note(self, id: str, operation: Operation) -> Operation:
        """Of a job that has ended, remember the dictionary and not the job."""
        state = operation.answer.get("state")
        if state == "succeeded":
            self._known[operation.answer["name"], operation.answer["version"]] = self._jobs[id]
        if state in ("succeeded", "failed", "cancelled") or operation.status in (204, 404):
            del self._jobs[id]
            self._endless.discard(id)
        return operation

    def _encode(self) -> Operation | None:
        reference = self._any()
        if reference is None:
            return None
        name, version = reference
        return self._caller.encode(name, self._random.choice([version, version, None]))

    def _decode(self) -> Operation | None:
        reference = self._any()
        return None if reference is None else self._caller.decode(*reference, self._known[reference])

    def _weights(self) -> Operation | None:
        reference = self._any()
        return None if reference is None else self._caller.weights(*reference)

    def _record(self) -> Operation | None:
        reference = self._any()
        if reference is None:
            return None
        name, version = reference
        return self._caller.record(name, self._random.choice([version, None]))

    def _list(self) -> Operation:
        return self._caller.dictionaries()

    def _label(self) -> Operation | None:
        reference = self._any()
        if reference is None:
            return None
        self._writings += 1
        key = self._random.choice([self._own, "everybodys"])
        value = None if self._random.random() < 0.1 else f"{self._own}-{self._writings}"
        return self._caller.label(*reference, key, value)

    def _delete(self) -> Operation | None:
        reference = self._any()
        if reference is None:
            return None
        if self._random.random() < 0.8:  # else it goes on asking for what it has deleted
            del self._known[reference]
        return self._caller.delete(*reference)

    def _delete_all(self) -> Operation:
        name = self._random.choice(self._names)
        return self._caller.delete(name, None)

    def _any(self) -> Reference | None:
        return self._random.choice(list(self._known)) if self._known else None
