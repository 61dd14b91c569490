"""What is said to last is on the disk: fsynced as a file before it has its name, and as a name in its directory.

A kill does not show it, for the kernel writes what a dead process has left; a power cut would.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql

from app.jobs.database import Database
from app.store.checkpoint_file import FORMAT, Metadata, Rows
from app.store.records import Labels
from app.store.store import Store
from app.store.uploads import Uploads
from app.worker.fitting import Writing
from app.worker.messages import CheckpointPlace
from tests.app.conftest import D, publish

A = np.ones((4, 3), np.float32)

Done = list[tuple[str, Path]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.workplace.open()
    return store


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Done:
    """What was fsynced, and what was moved from where to where, in order."""
    done: Done = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def noted(move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, **told: Any) -> None:
            move(source, target, **told)
            done.extend([("to", Path(target)), ("from", Path(source))])

        return moved

    monkeypatch.setattr(os, "fsync", noted_fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    return done


def first(done: Done, what: str, path: Path) -> int:
    assert (what, path) in done, done
    return done.index((what, path))


def last(done: Done, what: str, path: Path) -> int:
    assert (what, path) in done, done
    return len(done) - 1 - done[::-1].index((what, path))


def source_of(done: Done, into: int) -> Path:
    """Of what was moved there."""
    what, path = done[into + 1]
    assert what == "from"
    return path


def test_a_version(store: Store, done: Done) -> None:
    publish(store, "a", D)
    into = first(done, "to", store.root / "a" / "1")
    staged = source_of(done, into)
    for path in (staged / "dictionary.safetensors", staged / "meta.json", staged):
        assert first(done, "fsync", path) < into
    assert into < last(done, "fsync", store.root / "a") < last(done, "fsync", store.root)


def test_labels(store: Store, done: Done) -> None:
    publish(store, "a", D)
    done.clear()
    store.relabel("a", 1, lambda _: Labels(labels={"a": "b"}))
    into = first(done, "to", store.root / "a" / "1" / "labels.json")
    assert first(done, "fsync", source_of(done, into)) < into < last(done, "fsync", store.root / "a" / "1")


def test_a_removal(store: Store, done: Done) -> None:
    publish(store, "a", D)
    done.clear()
    store.remove("a", [1])
    assert first(done, "from", store.root / "a" / "1") < last(done, "fsync", store.root / "a")


@pytest.mark.parametrize("as_they_came", [True, False])
def test_activations(store: Store, done: Done, as_they_came: bool) -> None:
    """Those that came as an npy file of float32 are not written once more."""
    uploads, rows, file = Uploads(store.workplace), A, None
    upload = uploads.new_path()
    if as_they_came:
        np.save(upload, A)
        rows, file = np.load(upload, mmap_mode="r"), upload.stat().st_ino
    uploads.stage(rows, upload)
    assert first(done, "fsync", upload) < last(done, "fsync", upload.parent)
    assert (upload.stat().st_ino == file) is as_they_came


def test_activations_of_files(store: Store, done: Done) -> None:
    uploads = Uploads(store.workplace)
    path = uploads.new_path()
    uploads.stage_blocks(path.name, *A.shape, [A], lambda: False)
    into = first(done, "to", path)
    assert first(done, "fsync", source_of(done, into)) < into < last(done, "fsync", path.parent)


def test_a_checkpoint(store: Store, done: Done) -> None:
    staged, path = store.workplace.staging / "c", store.workplace.checkpoints / "c"
    metadata = Metadata(FORMAT, "1", {}, {"iteration": 1.0}, 0.0)
    place = CheckpointPlace(str(path), str(staged), 30.0)
    assert Writing(place, metadata, {"Z": Rows("F32", A.shape, A.__getitem__)}).ended.wait(10)
    assert first(done, "fsync", staged) < first(done, "to", path) < last(done, "fsync", path.parent)


def test_jobs_in_sqlite(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    with database.transaction() as connection:
        told = [connection.execute(sql.text(f"PRAGMA {of}")).scalar_one() for of in ("journal_mode", "synchronous")]
    database.close()
    assert told == ["wal", 2]  # FULL: each commit is on the disk
