"""What must lie in the store's files and the jobs' database; read without the service's code, while it is dead."""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pg8000.dbapi
import safetensors.numpy

from app.store.files import REMOVED
from tests.faults.crash.answers import ENDED, NEVER, History
from tests.faults.crash.clients import Reference, digest
from tests.faults.crash.log import Fault

FILES = {"dictionary.safetensors", "meta.json"}
FIGURES = "figures.safetensors"  # of each concept, where the dictionary was fitted and not imported
LABELS = "labels.json"
OF_SQLITE = {"jobs.sqlite3", "jobs.sqlite3-wal", "jobs.sqlite3-shm"}
OF_POSTGRES = {"database"}  # which one it is


def check_versions(store: Path) -> Iterator[Fault]:
    """Every version is whole: at any moment, for readers see what is there."""
    for directory in _versions(store).values():
        files = {path.name for path in directory.iterdir()}
        if files - {LABELS, FIGURES} != FILES:
            yield Fault(f"{directory} holds {sorted(files)}")
            continue
        try:
            meta = json.loads((directory / "meta.json").read_bytes())
            weights = (directory / "dictionary.safetensors").read_bytes()
            D = safetensors.numpy.load(weights)["dictionary"]
            figures = (directory / FIGURES).read_bytes() if FIGURES in files else None
            if LABELS in files:
                json.loads((directory / LABELS).read_bytes())
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            yield Fault(f"{directory} cannot be read: {error!r}")
            continue
        if hashlib.sha256(weights).hexdigest() != meta["sha256"]:
            yield Fault(f"{directory}: the checksum does not hold")
        if (None if figures is None else hashlib.sha256(figures).hexdigest()) != meta.get("figures_sha256"):
            yield Fault(f"{directory}: the figures are not those that its meta.json tells of")
        if (meta["name"], str(meta["version"])) != (directory.parent.name, directory.name):
            yield Fault(f"{directory} tells of {meta['name']}@{meta['version']}")
        if D.shape != (meta["nb_concepts"], meta["n_features"]):
            yield Fault(f"{directory}: weights of shape {D.shape} are not those that its meta.json tells of")


def check_checkpoints(store: Path) -> Iterator[Fault]:
    """Every checkpoint in its place is whole, at any moment."""
    for path in (store / ".dictserve" / "checkpoints").iterdir():
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            yield Fault(f"{path}: the checksum does not hold")
            continue
        tensors = safetensors.numpy.load(content)
        if not {"Z", "D", "losses"} <= tensors.keys():
            yield Fault(f"{path} holds {sorted(tensors)}")


def check_store(store: Path, history: History, database: str | None = None) -> Iterator[Fault]:
    """After the service was stopped in order: every version told of, none that nobody made, and nothing left over."""
    yield from check_versions(store)
    found = _versions(store)
    for reference, version in history.versions.items():
        if reference not in found and version.maybe_deleted == NEVER:
            yield Fault(f"{store.joinpath(*map(str, reference))} is not there", (version.by,))
        if reference in found and version.deleted < NEVER:
            yield Fault(f"{found[reference]} was deleted", (version.by,))
    imports = {operation.told["digest"]: operation for operation in history.by_kind["import"]}
    makers: Counter[str] = Counter()
    for reference, directory in found.items():
        maker = json.loads((directory / "meta.json").read_bytes())["job"]
        if maker is None:
            weights = (directory / "dictionary.safetensors").read_bytes()
            maker = digest(safetensors.numpy.load(weights)["dictionary"])
            if maker not in imports or imports[maker].told["name"] != reference[0]:
                yield Fault(f"{directory} was made by nobody")
        elif maker not in history.jobs:  # every fit was asked for until its job was known
            yield Fault(f"{directory} was made by job {maker}, which nobody asked for")
        if reference in history.versions and history.versions[reference].maker != maker:
            yield Fault(f"{directory} was made by {maker}", (history.versions[reference].by,))
        makers[maker] += 1
    for maker, count in makers.items():
        if count > 1:
            yield Fault(f"{maker} has made {count} versions", tuple(history.jobs[maker]))
    yield from _check_leftovers(store, OF_SQLITE if database is None else OF_POSTGRES)


def check_jobs(store: Path, history: History, database: str | None = None) -> Iterator[Fault]:
    """After the service was stopped in order: the database is sound, every job in it has ended, and no lease is left.

    Args:
        database: the URL of a PostgreSQL that has the jobs in place of the store's file.
    """
    with closing(_connected(store, database)) as connection:
        cursor = connection.cursor()
        if database is None:
            cursor.execute("PRAGMA integrity_check")
            if (sound := cursor.fetchone()[0]) != "ok":
                yield Fault(f"the jobs' database is damaged: {sound}")
        cursor.execute("SELECT id, state, name, version, error, owner, idempotency_key, attempts FROM jobs")
        rows = {row[0]: row[1:] for row in cursor.fetchall()}
        cursor.execute("SELECT owner FROM leases")
        for (owner,) in cursor.fetchall():
            yield Fault(f"{owner} has not given its lease back")
    for id, (state, name, version, error, owner, key, attempts) in rows.items():
        if id not in history.jobs:
            yield Fault(f"job {id} was asked for by nobody")
            continue
        told = history.jobs[id]
        asked = [operation for operation in told if operation.kind == "fit"]
        if state not in ENDED or owner is not None:
            yield Fault(f"job {id} is {state}, owned by {owner}", tuple(told))
        if (key, name) != (asked[0].told["key"], asked[0].told["name"]):
            yield Fault(f"job {id} is not what was asked for: {name}, key {key}", tuple(told))
        if state == "succeeded" and (version is None or attempts < 1):
            yield Fault(f"job {id} has succeeded with version {version} after {attempts} attempts", tuple(told))
        if state == "failed" and (json.loads(error or "null") if isinstance(error, str | None) else error) is None:
            yield Fault(f"job {id} has failed, and does not say why", tuple(told))
    removed = {operation.told["id"] for operation in history.by_kind["cancel"] if operation.maybe_done}
    for id, told in history.jobs.items():
        if id not in rows and id not in removed:
            yield Fault(f"job {id} is not in the database", tuple(told))


def _connected(store: Path, database: str | None) -> Any:
    """A connection as Python's DB API has it."""
    if database is None:
        return sqlite3.connect(store / ".dictserve" / "jobs.sqlite3")
    url = urlsplit(database)
    return pg8000.dbapi.connect(
        url.username or "",
        host=url.hostname or "",
        port=url.port or 5432,
        database=url.path.strip("/"),
        password=url.password,
    )


def _versions(store: Path) -> dict[Reference, Path]:
    names = [path for path in store.iterdir() if path.name != ".dictserve"]
    return {
        (name.name, int(directory.name)): directory
        for name in names
        for directory in name.iterdir()
        if directory.name.isdecimal()
    }


def _check_leftovers(store: Path, of_jobs: set[str]) -> Iterator[Fault]:
    private = store / ".dictserve"
    folders = ("activations", "checkpoints", "staging", "owners")
    for folder in folders:
        for path in (private / folder).iterdir():
            yield Fault(f"{path} was left over")
    files = {path.name for path in private.iterdir()} - {*folders}
    if not files <= {*of_jobs, "lock"}:
        yield Fault(f"{private} holds {sorted(files)}")
    for name in store.iterdir():
        strange = {path.name for path in name.iterdir() if not path.name.isdecimal()}
        removed = {path for path in strange if path.startswith(REMOVED) and not any((name / path).iterdir())}
        strange -= removed  # so that their numbers are not given again
        if name.name != ".dictserve" and strange:
            yield Fault(f"{name} holds {sorted(strange)}")
