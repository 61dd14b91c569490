"""`dictserve check` finds what is damaged, and its repair loses nothing."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import main
from app.jobs.database import Database
from app.store import figures_file
from app.store.checkpoint_file import FORMAT, Rows, Told, write
from app.store.figures_file import FIGURES_FILE
from app.store.files import LABELS_FILE, META_FILE
from app.store.references import Reference
from app.store.store import Store
from app.store.weights import WEIGHTS_FILE

D = np.eye(2, 4, dtype=np.float32)
TOLD: dict[str, dict[str, object]] = {"parameters": {}, "metrics": {}, "data": {}, "software": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.workplace.open()
    for name in ("a", "a", "b"):
        store.publish(name, D, **TOLD)
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
    assert store.publish("a", D, **TOLD).version == 3  # 2 is not given again


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), Path.unlink], ids=["cut short", "gone"])
def test_a_dictionary_whose_figures_are_damaged_stays(store: Store, damage: Callable[[Path], object]) -> None:
    store.publish("b", D, figures_file.written({"uses": np.zeros(2, np.int64)}), **TOLD)
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


def test_checkpoints_are_looked_at_too(store: Store) -> None:
    for job in ("a", "b"):
        with (store.workplace.checkpoints / f"1-dead.{job}.safetensors").open("wb", buffering=0) as file:
            told = Told(FORMAT, job, {}, {"iteration": 1}, 0.0)
            write(file, told, {"Z": Rows("F32", D.shape, D.__getitem__)}, lambda: False)
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
