"""`dictserve check` finds what is damaged, and its repair loses nothing."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import main
from app.errors import StoreUnavailable
from app.jobs.database import Database
from app.store import check, figures_file
from app.store.checkpoint_file import FORMAT, Metadata, Rows, write
from app.store.figures_file import FIGURES_FILE
from app.store.files import LABELS_FILE, META_FILE
from app.store.references import Reference
from app.store.store import Store
from app.store.weights import WEIGHTS_FILE

D = np.eye(2, 4, dtype=np.float32)
METADATA: dict[str, dict[str, object]] = {"parameters": {}, "metrics": {}, "data": {}, "software": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.workplace.open()
    for name in ("a", "a", "b"):
        store.publish(name, D, **METADATA)
    return store


def run(store: Store, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", "--store", str(store.root), *options])
    return result.exit_code, result.output


def flip_a_bit(version: Path) -> None:
    weights = bytearray((version / WEIGHTS_FILE).read_bytes())
    weights[-3] ^= 1
    (version / WEIGHTS_FILE).write_bytes(weights)


FAULTS: dict[str, Callable[[Path], object]] = {
    "a bit": flip_a_bit,
    "cut short": lambda version: (version / WEIGHTS_FILE).write_bytes(b"x"),
    "no weights": lambda version: (version / WEIGHTS_FILE).unlink(),
    "meta": lambda version: (version / META_FILE).write_text("{"),
    "no meta": lambda version: (version / META_FILE).unlink(),
    "labels": lambda version: (version / LABELS_FILE).write_text("{"),
}


def test_a_store_that_is_whole(store: Store) -> None:
    code, told = run(store)
    assert (code, told) == (0, "3 versions are whole, 0 damaged\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_told_and_set_aside(store: Store, fault: str) -> None:
    version = store.root / "a" / "2"
    FAULTS[fault](version)
    before = {path.name: path.read_bytes() for path in version.iterdir()}
    code, told = run(store)
    assert code == 1
    assert told.startswith("damaged: a@2: ")
    assert told.endswith("2 versions are whole, 1 damaged\n")
    assert version.is_dir()

    code, told = run(store, "--repair")
    assert code == 0
    (aside,) = store.workplace.quarantine.iterdir()
    assert str(aside) in told
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert run(store) == (0, "2 versions are whole, 0 damaged\n")
    assert store.resolve(Reference("a")) == ("a", 1)
    assert store.publish("a", D, **METADATA).version == 3  # 2 is not given again


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), Path.unlink], ids=["cut short", "gone"])
def test_a_dictionary_whose_figures_are_damaged_stays(store: Store, damage: Callable[[Path], object]) -> None:
    store.publish("b", D, figures_file.written({"uses": np.zeros(2, np.int64)}), **METADATA)
    assert run(store) == (0, "4 versions are whole, 0 damaged\n")
    damage(store.root / "b" / "2" / FIGURES_FILE)
    code, told = run(store, "--repair")
    assert code == 1
    assert told.startswith("damaged: b@2: ")
    assert FIGURES_FILE in told
    assert told.endswith("3 versions are whole, 1 damaged\n")
    np.testing.assert_array_equal(store.load("b", 2), D)


def test_strays_are_told_and_left(store: Store) -> None:
    (store.root / "notes.txt").write_text("")
    (store.root / "link").symlink_to("/")
    (store.root / "a" / "old").mkdir()
    (store.root / "not a name").mkdir()
    code, told = run(store, "--repair")
    assert code == 0
    assert [line.partition(": ")[2].partition(":")[0] for line in told.splitlines() if line.startswith("stray")] == [
        "a/old",
        "link",
        "not a name",
        "notes.txt",
    ]
    assert (store.root / "notes.txt").exists()


def test_a_damaged_database_is_told(store: Store) -> None:
    database = Database(f"sqlite:///{store.workplace.database}")
    database.open()
    database.close()
    assert run(store)[0] == 0
    store.workplace.database.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    code, told = run(store, "--repair")
    assert code == 1
    assert "jobs' database is damaged" in told
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(store.workplace.database).execute("select * from jobs")


@pytest.fixture
def withheld(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Files that a disk does not give the first time, by the ends of their paths, and the errors that it tells."""
    errors: dict[str, int] = {}
    opening = os.open

    def failing(path: Any, *args: Any, **told: Any) -> int:
        for end in [end for end in errors if str(path).endswith(end)]:
            raise OSError(code := errors.pop(end), os.strerror(code))
        return opening(path, *args, **told)

    monkeypatch.setattr("os.open", failing)
    return errors


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("file", [WEIGHTS_FILE, META_FILE, LABELS_FILE, FIGURES_FILE])
def test_what_a_disk_does_not_give_for_a_moment_is_told_and_left(
    store: Store, withheld: dict[str, int], file: str, code: int
) -> None:
    """A repair set whole versions aside for it."""
    store.publish("a", D, figures_file.written({"uses": np.zeros(2, np.int64)}), **METADATA)
    flip_a_bit(store.root / "b" / "1")  # which is looked at all the same
    withheld[f"a/3/{file}"] = code
    returned, told = run(store, "--repair")
    assert returned == 1
    assert told.startswith(f"unreadable: a@3: {file} of a@3 cannot be read: {os.strerror(code)}\ndamaged: b@1: ")
    assert told.endswith("2 versions are whole, 1 damaged, 1 of them set aside, 1 cannot be read\n")
    assert run(store) == (0, "3 versions are whole, 0 damaged\n")


def test_a_name_that_a_disk_does_not_give_for_a_moment_ends_no_check(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, asked = Store.versions, []

    def failing(self: Store, name: str) -> list[int]:
        asked.append(name)
        if asked == ["a"]:
            raise StoreUnavailable("the directory of a cannot be read: Input/output error")
        return versions(self, name)

    monkeypatch.setattr(Store, "versions", failing)
    code, told = run(store)
    assert code == 1
    assert told.startswith("unreadable: a: the directory of a cannot be read")
    assert told.endswith("1 versions are whole, 0 damaged, 1 cannot be read\n")


def test_nothing_is_left_beside_a_database_that_was_looked_at(store: Store) -> None:
    """By root, say, whose files the service could not write."""
    database = Database(f"sqlite:///{store.workplace.database}")
    database.open()
    database.close()
    before = sorted(store.workplace.directory.iterdir())
    assert run(store)[0] == 0
    assert sorted(store.workplace.directory.iterdir()) == before


def test_a_database_that_begins_to_be_written_in_that_moment_is_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked at as one that nobody writes, and a service has started meanwhile."""
    database = Database(f"sqlite:///{store.workplace.database}")
    database.open()
    database.close()
    by, modes = check._quick_check_by, []

    def met(mode: str, path: Path) -> str:
        modes.append(mode)
        if len(modes) > 1:
            return by(mode, path)
        database.open()
        return "row 1 missing from index"

    monkeypatch.setattr(check, "_quick_check_by", met)
    code, told = run(store)
    database.close()
    assert (code, modes) == (0, ["immutable=1", "mode=ro"]), told


def test_damage_is_told_where_a_database_cannot_be_looked_at_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside an empty log that nobody may write."""
    by = check._quick_check_by

    def met(mode: str, path: Path) -> str:
        if mode == "immutable=1":
            return by(mode, path)
        raise sqlite3.OperationalError("unable to open database file")

    store.workplace.database.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    monkeypatch.setattr(check, "_quick_check_by", met)
    monkeypatch.setattr(check, "os", SimpleNamespace(access=lambda *_: False, W_OK=os.W_OK))
    store.workplace.database.with_name("jobs.sqlite3-wal").touch()
    code, told = run(store)
    assert code == 1
    assert "jobs' database is damaged" in told


def test_a_database_that_a_disk_does_not_give_is_not_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> str:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 1 << 8  # SQLITE_IOERR_READ
        raise error

    store.workplace.database.touch()
    monkeypatch.setattr("app.store.check._quick_check", failing)
    code, told = run(store)
    assert code == 1
    assert told.startswith("unreadable: jobs.sqlite3: the jobs' database cannot be read: disk I/O error\n")


def put_checkpoints(store: Store) -> None:
    for job in ("a", "b"):
        with (store.workplace.checkpoints / f"1-dead.{job}.safetensors").open("wb", buffering=0) as file:
            metadata = Metadata(FORMAT, job, {}, {"iteration": 1}, 0.0)
            write(file, metadata, {"Z": Rows("F32", D.shape, D.__getitem__)}, lambda: False)


def test_a_checkpoint_that_a_disk_does_not_give_for_a_moment_stays(store: Store, withheld: dict[str, int]) -> None:
    """Its fit may live. A link in its place is none, and will never be."""
    put_checkpoints(store)
    withheld["1-dead.a.safetensors"] = errno.EIO
    code, output = run(store, "--repair")
    assert code == 1
    assert output.startswith("unreadable: .dictserve/checkpoints/1-dead.a.safetensors: a checkpoint: ")
    assert output.endswith("1 checkpoints of fits are whole, 0 damaged, 1 cannot be read\n")
    assert run(store)[0] == 0
    planted = store.workplace.checkpoints / "1-dead.b.safetensors"
    planted.unlink()
    planted.symlink_to("1-dead.a.safetensors")
    code, output = run(store, "--repair")
    assert (code, "set aside" in output) == (0, True)
    assert (store.workplace.quarantine / planted.name).is_symlink()


def test_checkpoints_are_looked_at_too(store: Store) -> None:
    put_checkpoints(store)
    assert run(store) == (0, "3 versions are whole, 0 damaged\n2 checkpoints of fits are whole, 0 damaged\n")
    damaged = store.workplace.checkpoints / "1-dead.b.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, output = run(store)
    assert code == 1
    assert output.startswith("damaged: .dictserve/checkpoints/1-dead.b.safetensors: a checkpoint: it is not what was")
    assert output.endswith("1 checkpoints of fits are whole, 1 damaged\n")
    code, output = run(store, "--repair")
    assert code == 0
    assert f"set aside as {store.workplace.quarantine / damaged.name}\n" in output
    assert run(store) == (0, "3 versions are whole, 0 damaged\n1 checkpoints of fits are whole, 0 damaged\n")


def test_no_store_is_a_usage_error(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["check", "--store", str(tmp_path / "absent")]).exit_code == 2
