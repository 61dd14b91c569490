"""The store: a reader sees a whole version or none, and a damaged one never hides another; wherever the bytes lie."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from app.errors import DictionaryDamaged, NameTaken, PreconditionFailed, StoreUnavailable, UnknownDictionary
from app.store import figures_file
from app.store.bucket import Bucket, bucket_of
from app.store.files import Files
from app.store.object_store import ObjectStore
from app.store.records import DictionaryRecord, Labels
from app.store.references import Reference, check_name
from app.store.store import Store
from app.store.workplace import MACHINE, Workplace
from tests.app.conftest import D, publish
from tests.s3 import S3


@pytest.fixture
def opened(tmp_path: Path) -> Store:
    """A store in a directory."""
    store = Store(tmp_path / "models")
    store.workplace.open()
    return store


class Place:
    """Where the bytes lie: a directory, or an object store, where each service has a directory of its own."""

    def __init__(self, folder: Path, objects: ObjectStore | None) -> None:
        self.folder = folder
        self.many = 50 if objects is None else 12  # of what is done at once: an answer takes its time
        self.objects = objects
        self._stores = count()
        self.bucket: Bucket = bucket_of(objects or ObjectStore(f"file://{folder}/models"))

    def store(self) -> Store:
        """That of another service."""
        store = Store(self.folder / f"service-{next(self._stores)}", self.objects)
        if self.objects is None:
            store = Store(self.folder / "models")
        store.workplace.open()
        return store


@pytest.fixture(params=["files", "file://", "memory://", "s3://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    url, options = None, {}
    if request.param == "file://":
        (tmp_path / "objects").mkdir()
        url = f"file://{tmp_path}/objects"
    elif request.param == "memory://":
        url = f"memory://{tmp_path.name}"
    elif request.param == "s3://":
        s3: S3 = request.getfixturevalue("s3")
        url, options = s3.new_url(), s3.options
    return Place(tmp_path, url and ObjectStore(url, options, listing_seconds=0))


def first(store: Store, name: str = "first") -> bool:
    """Whether this made the first version of a name; another try may tell, where that cannot be told yet."""
    for _ in range(100):
        try:
            store.publish(name, D, only_first=True, parameters={}, data={}, metrics={}, software={})
        except PreconditionFailed:
            return False
        except StoreUnavailable:
            time.sleep(0.05)
        else:
            return True
    raise AssertionError("it is never told")


def test_of_those_who_would_be_the_first_one_is(place: Place) -> None:
    stores = [place.store(), place.store()]
    with ThreadPoolExecutor(8) as pool:
        were = list(pool.map(lambda i: first(stores[i % 2]), range(16)))
    assert sum(were) == 1
    assert len(stores[0].versions("first")) == 1
    stores[0].remove("first", stores[0].versions("first"))
    assert first(stores[1])


def test_what_is_published_is_read_back(place: Place) -> None:
    store, other = place.store(), place.store()
    assert publish(store, "digits", D) == 1
    for reader in (store, other):
        np.testing.assert_array_equal(reader.load("digits", 1), D)
        record = reader.described(Reference("digits"))
        assert (record.nb_concepts, record.n_features, record.versions) == (2, 4, [1])
        assert reader.names() == ["digits"]
    files = {key.removeprefix("digits/1/") for key in place.bucket.entries("digits")}
    assert files - {"claim"} == {"dictionary.safetensors", "meta.json"}
    assert [key for key in place.bucket.entries() if "staging" in key] == []


def test_publications_of_one_name_at_once_are_as_many_versions(place: Place) -> None:
    stores = [place.store(), place.store()]
    made: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: made.append(publish(stores[i % 2], "a", np.full((1, 3), i, np.float32))))
        for i in range(place.many)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == stores[0].versions("a") == list(range(1, place.many + 1))
    assert {float(stores[1].load("a", version)[0, 0]) for version in made} == set(map(float, range(place.many)))


def edited(**fields: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | fields).encode()


DAMAGE: list[tuple[str, Callable[[bytes], bytes] | None, str]] = [
    ("dictionary.safetensors", lambda _: b"x", "SHA-256"),
    ("dictionary.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
    ("dictionary.safetensors", None, "has no dictionary.safetensors"),
    ("meta.json", lambda _: b"{", "cannot be read"),
    ("meta.json", lambda _: b"[]", "cannot be read"),
    ("meta.json", edited(format=99), "format 99"),
    ("meta.json", edited(n_features=7), "does not hold"),
]


def test_damage_is_told_and_hides_nothing(place: Place) -> None:
    opened = place.store()
    names = [f"a{i}" for i in range(len(DAMAGE))]
    for name, (file, change, _) in zip(names, DAMAGE, strict=True):
        publish(opened, name, D)
        publish(opened, name, 2 * D)
        damage(place.bucket, f"{name}/2/{file}", change)
    publish(opened, "b", 3 * D)
    store = place.store()
    for name, (_, _, said) in zip(names, DAMAGE, strict=True):
        with pytest.raises(DictionaryDamaged, match=f"{name}.*{said}"):
            store.load(name, 2)
        np.testing.assert_array_equal(store.load(name, 1), D)
    assert store.names() == [*names, "b"]
    assert [publish(opened, name, D) for name in names] == [3] * len(names)


def damage(bucket: Bucket, key: str, change: Callable[[bytes], bytes] | None) -> None:
    """Change what lies there, or remove it."""
    if change is None:
        bucket.delete(key)
    else:
        bucket.put(key, change(bucket.read(key)))


def publish_with_figures(store: Store) -> None:
    told: dict[str, Any] = {"parameters": {}, "data": {}, "metrics": {}, "software": {}}
    store.publish("a", D, figures_file.written({"uses": np.array([3, 5])}), **told)


def test_figures_are_published_with_their_dictionary(place: Place) -> None:
    store, other = place.store(), place.store()
    publish_with_figures(store)
    for reader in (store, other):
        assert reader.figures("a", 1)["uses"].tolist() == [3, 5]
    files = {key.removeprefix("a/1/") for key in place.bucket.entries("a")}
    assert files - {"claim"} == {"dictionary.safetensors", "figures.safetensors", "meta.json"}
    publish(store, "a", D)
    assert store.figures("a", 2) == {}
    with pytest.raises(UnknownDictionary):
        store.figures("a", 3)
    store.remove("a", [1])
    assert not [key for key in place.bucket.entries("a") if key.startswith("a/1/") and not key.endswith("claim")]
    with pytest.raises(UnknownDictionary):
        store.figures("a", 1)


def test_damaged_figures_are_told_and_hide_nothing(place: Place) -> None:
    opened = place.store()
    changes = [lambda _: b"x", lambda content: content[:-1] + bytes([content[-1] ^ 1]), None]
    for version, change in enumerate(changes, start=1):
        publish_with_figures(opened)
        damage(place.bucket, f"a/{version}/figures.safetensors", change)
    store = place.store()
    for version in range(1, len(changes) + 1):
        said = r"figures\.safetensors.*encodes and decodes need no figures"
        with pytest.raises(DictionaryDamaged, match=said) as told:
            store.figures("a", version)
        assert f"a@{version}" in str(told.value)
        np.testing.assert_array_equal(store.load("a", version), D)
        assert store.described(Reference("a", version)).version == version
    assert store.described(Reference("a")).version == len(changes)


def test_a_version_in_a_directory_without_its_record_is_damaged(opened: Store) -> None:
    publish(opened, "a", D)
    (opened.root / "a" / "1" / "meta.json").unlink()
    with pytest.raises(DictionaryDamaged, match=r"has no meta\.json"):
        Store(opened.root).load("a", 1)


def test_what_cannot_be_emptied_is_removed_all_the_same(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(opened, "digits", D)
    publish(opened, "digits", D)

    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("app.store.files._empty", refused)
        opened.remove("digits", [2])
    assert opened.versions("digits") == [1]
    assert publish(opened, "digits", D) == 3


def test_a_name_whose_directory_cannot_be_used_takes_no_fit(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(opened, "digits", D)
    monkeypatch.setattr("os.access", lambda *_: False)
    opened.require_free("other")
    with pytest.raises(StoreUnavailable, match="directory of 'digits' cannot be used"):
        opened.require_free("digits")


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
def test_a_directory_that_the_disk_does_not_give_is_waited_for(
    opened: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A fit that has ended was failed for it: what waits for the store knows no errors of disks."""
    publish(opened, "digits", D)
    look = os.stat

    def failing(path: Any, *args: Any, **told: Any) -> os.stat_result:
        if Path(path).name in (".dictserve", "digits"):
            raise OSError(code, os.strerror(code))
        return look(path, *args, **told)

    monkeypatch.setattr("os.stat", failing)
    monkeypatch.setattr("os.scandir", failing)
    told = f"the directory of digits cannot be read: {os.strerror(code)}"
    for asked in (opened.require_free, lambda name: publish(opened, name, D, job="1")):
        with pytest.raises(StoreUnavailable, match=told):
            asked("digits")
    with pytest.raises(StoreUnavailable, match=f"the store cannot be used: {os.strerror(code)}"):
        opened.versions("other")  # whether it is gone with the whole store is not known


def test_a_store_whose_own_directory_is_not_mounted_any_more_is_away(opened: Store) -> None:
    """There is an empty one in its place."""
    publish(opened, "digits", D)
    directory = opened.workplace.directory
    directory.rename(opened.root / ".elsewhere")
    directory.mkdir()
    with pytest.raises(StoreUnavailable, match="No such file"):
        opened.versions("other")


def test_numbers_of_what_is_removed_at_once_are_not_given_again(place: Place) -> None:
    given: list[int] = []
    stores = [place.store(), place.store()]

    def publish_and_remove(store: Store) -> None:
        for _ in range(place.many // 6):
            version = publish(store, "busy", D)
            given.append(version)
            store.remove("busy", [version])

    threads = [threading.Thread(target=publish_and_remove, args=(stores[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == len(set(given)) == place.many // 6 * 8
    assert all(store.names() == [] for store in stores)
    assert publish(stores[0], "busy", D) > max(given)


@pytest.mark.parametrize("removed", ["a", "a/3"])
def test_numbers_of_what_was_removed_by_hand_are_not_given_again(opened: Store, removed: str) -> None:
    """What the service and its worker keep in memory of one would be told of the other."""
    for _ in range(3):
        publish(opened, "a", D)
    assert opened.versions("a") == [1, 2, 3]
    shutil.rmtree(opened.root / removed)
    assert publish(opened, "a", 2 * D) == 4
    np.testing.assert_array_equal(opened.load("a", 4), 2 * D)


def test_what_has_been_removed_meanwhile(place: Place) -> None:
    opened, other = place.store(), place.store()
    publish(opened, "gone", D)
    assert other.record(Reference("gone")).version == 1
    opened.remove("gone", [1])
    opened.remove("gone", [1])
    opened.remove("gone", [])
    with pytest.raises(UnknownDictionary, match="gone@1 has been removed"):
        opened.relabel("gone", 1, lambda _: Labels(labels={"a": "b"}))
    for store in (opened, other):
        with pytest.raises(UnknownDictionary, match="no dictionary 'gone'"):
            store.record(Reference("gone"))
    assert publish(other, "gone", D) == 2


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("named", [False, True])
def test_one_that_is_removed_while_it_is_described(
    place: Place, named: bool, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as gone, rather than as one without versions and labels; who asked for the latest gets that."""
    opened, other = place.store(), place.store()
    for _ in range(others + 1):
        publish(opened, "gone", D)
    latest = others + 1
    opened.relabel("gone", latest, lambda _: Labels(labels={"a": "b"}))
    labels = opened.labels

    def removed(name: str, version: int) -> Labels:
        if version == latest:
            other.remove("gone", [latest])
        return labels(name, version)

    monkeypatch.setattr(opened, "labels", removed)
    monkeypatch.setattr(opened, "versions", place.store().versions)  # as they are on the shelf now
    if others and not named:
        assert opened.described(Reference("gone")).version == 1
        return
    with pytest.raises(UnknownDictionary, match=f"gone@{latest} has been removed" if named else "no dictionary"):
        opened.described(Reference("gone", latest if named else None))


def test_two_services_that_label_one_version_lose_nothing(place: Place) -> None:
    stores = [place.store(), place.store()]
    publish(stores[0], "a", D)

    def label(store: Store, who: str) -> None:
        for i in range(place.many // 3):
            store.relabel("a", 1, lambda old, i=i: Labels(labels=old.labels | {f"{who}-{i}": "x"}))

    threads = [
        threading.Thread(target=label, args=arguments) for arguments in zip(stores, ("one", "other"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        assert set(store.labels("a", 1).labels) == {
            f"{who}-{i}" for who in ("one", "other") for i in range(place.many // 3)
        }


LABELLER = """
import sys
from pathlib import Path
from app.store.records import Labels
from app.store.store import Store

store, who = Store(Path(sys.argv[1])), sys.argv[2]
store.workplace.open()
print("ready", flush=True)
sys.stdin.readline()
for i in range(40):
    store.relabel("a", 1, lambda old: Labels(labels=old.labels | {f"{who}-{i}": "x"}))
store.workplace.close()
"""


def test_two_processes_that_label_one_version_lose_nothing(opened: Store) -> None:
    publish(opened, "a", D)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LABELLER, str(opened.root), who], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for who in ("one", "other")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert set(opened.labels("a", 1).labels) == {f"{who}-{i}" for who in ("one", "other") for i in range(40)}


def test_references() -> None:
    assert Reference.parse("a") == Reference("a")
    assert Reference.parse("a.b-c_1@12") == Reference("a.b-c_1", 12)
    for bad in ("", "@1", "a@", "a@0", "a@-1", "a@01", "a@1@2", "a@9999999999", "a/b", "a b", "é", "a\n", "a\0"):
        with pytest.raises(ValueError, match="is not a"):
            Reference.parse(bad)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "/etc", ".a", "-a", "a.", "a ", " a", "a\\b", "x" * 129, "ａ"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        check_name(name)


def test_what_is_not_there(place: Place) -> None:
    opened = place.store()
    with pytest.raises(UnknownDictionary, match="no dictionary 'a'"):
        opened.resolve(Reference("a"))
    publish(opened, "a", D)
    with pytest.raises(UnknownDictionary, match="no version 2; it has 1"):
        opened.resolve(Reference("a", 2))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that have been listed."""
    scandir, directories = os.scandir, []

    def noted(directory: str) -> object:
        directories.append(str(directory))
        return scandir(directory)

    monkeypatch.setattr("app.store.files.os.scandir", noted)
    return directories


CHANGES = {
    "published": (lambda a, other: publish(other, "a", D), [1, 2, 3]),
    "removed": (lambda a, other: other.remove("a", [2]), [1]),
    "moved away by hand": (lambda a, other: (a / "1").rename(a.parent / "elsewhere"), [2]),
    "all removed by hand": (lambda a, other: shutil.rmtree(a), []),
    "a file in its place": (lambda a, other: (shutil.rmtree(a), a.touch()), []),
}


@pytest.mark.parametrize(("change", "versions"), CHANGES.values(), ids=CHANGES)
def test_a_list_of_versions_is_kept_until_somebody_changes_it(  # type: ignore[no-untyped-def]
    opened: Store, listed: list[str], monkeypatch: pytest.MonkeyPatch, change, versions: list[int]
) -> None:
    publish(opened, "a", D)
    publish(opened, "a", D)
    monkeypatch.setattr("app.store.files.SETTLED_NS", 0)
    time.sleep(0.02)  # a step of the file system's clock
    opened.versions("a").clear()  # the list is the caller's own
    listed.clear()
    assert opened.record(Reference("a")).version == 2
    assert opened.versions("a") == [1, 2]
    assert listed == []
    other = Store(opened.root)
    other.workplace.open()
    change(opened.root / "a", other)
    assert opened.versions("a") == versions


def test_a_directory_that_has_just_changed_is_listed_again(opened: Store, listed: list[str]) -> None:
    publish(opened, "a", D)
    listed.clear()
    assert opened.versions("a") == opened.versions("a") == [1]
    assert len(listed) == 2


@pytest.fixture
def unreadable(opened: Store, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names whose directories a disk does not give (to us, who may be root, permissions do not matter)."""
    names: set[str] = set()
    scandir = os.scandir

    def failing(directory: Any) -> Any:
        if Path(directory).name in names:
            raise PermissionError(13, "Permission denied")
        return scandir(directory)

    monkeypatch.setattr("app.store.files.os.scandir", failing)
    return names


@pytest.fixture
def withheld(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Files that a disk does not give, by the ends of their paths, and the errors that it tells."""
    errors: dict[str, int] = {}
    opening = os.open

    def failing(path: Any, *args: Any, **told: Any) -> int:
        for end, code in errors.items():
            if str(path).endswith(end):
                raise OSError(code, os.strerror(code))
        return opening(path, *args, **told)

    monkeypatch.setattr("app.store.disk.os.open", failing)
    return errors


def test_a_directory_that_cannot_be_read_hides_no_other(
    opened: Store, unreadable: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A service did not start, and nothing was listed."""
    for name in "abc":
        publish(opened, name, D)
    opened.remove("c", [1])
    unreadable |= {"b", "c"}
    opened.sweep()
    assert opened.names() == opened.names() == ["a"]
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert sorted(told) == [  # once
        f"{name} is left out of what is listed: the directory of {name} cannot be read: Permission denied"
        for name in "bc"
    ]
    with pytest.raises(StoreUnavailable, match="the directory of b cannot be read"):
        opened.record(Reference("b"))
    assert [where for where, what in opened.strays() if "cannot be read" in what] == ["b", "c"]
    publish(opened, "a", D)
    unreadable.add("a")  # all: what cannot be read is the store
    with pytest.raises(StoreUnavailable):
        opened.names()
    unreadable.clear()
    assert opened.names() == ["a", "b"]


def test_what_others_put_into_the_store_is_not_followed(opened: Store, tmp_path: Path) -> None:
    publish(opened, "real", D)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (opened.root / "link").symlink_to(opened.root / "real")
    (opened.root / "out").symlink_to(elsewhere)
    (opened.root / "file").write_text("no directory")
    (opened.root / "empty").mkdir()
    assert opened.names() == ["real"]
    with pytest.raises(UnknownDictionary):
        opened.resolve(Reference("link"))
    with pytest.raises(NameTaken):
        publish(opened, "out", D)
    with pytest.raises(NameTaken):
        publish(opened, "file", D)
    assert list(elsewhere.iterdir()) == []


def test_a_sweep_takes_the_leavings_of_the_dead_and_spares_the_living(opened: Store) -> None:
    (opened.workplace.staging / "123-dead.aa").mkdir()
    (opened.workplace.staging / "123-dead.aa" / "file").touch()
    (opened.workplace.staging / "123-dead.cc").touch()
    (opened.workplace.staging / f"{opened.workplace.owner}.bb").mkdir()
    owners = opened.workplace.directory / "owners"
    (owners / "123-dead").touch()
    starting = Store(opened.root)
    starting.workplace.open()
    opened.workplace.sweep(lambda: {opened.workplace.owner})
    assert [path.name for path in opened.workplace.staging.iterdir()] == [f"{opened.workplace.owner}.bb"]
    assert {path.name for path in owners.iterdir()} == {opened.workplace.owner, starting.workplace.owner}


@pytest.mark.parametrize("refused", ["rename", "rmtree", "unlink"])
def test_what_cannot_be_swept_is_told_of_and_left(
    opened: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """It may be another user's, and would end each start."""
    workplace = opened.workplace
    (workplace.staging / "123-dead.aa").mkdir()
    (workplace.staging / "123-dead.bb").touch()
    (workplace.directory / "owners" / "123-dead").touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "file")

    with monkeypatch.context() as patch:
        patch.setattr(shutil if refused == "rmtree" else Path, refused, refuse)
        workplace.sweep(set)
    left = {str(path) for path in (*workplace.staging.iterdir(), *workplace.directory.glob("owners/123-dead"))}
    told = {record.getMessage().partition(", which a dead process has left, stays")[0] for record in caplog.records}
    assert len(left) == len(told) == {"rename": 2, "rmtree": 1, "unlink": 2}[refused]
    assert told == left or refused == "rename"  # that error names both
    workplace.sweep(set)
    assert [*workplace.staging.iterdir(), *workplace.directory.glob("owners/123-dead")] == []


def test_a_lock_that_may_not_be_opened_tells_nothing(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, who has a process on this machine, or had one."""
    theirs = opened.workplace.directory / "owners" / f"{MACHINE}-1-other"
    theirs.touch()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert not opened.workplace.lock_is_free(theirs.name)


def test_what_is_swept_of_a_living_owner_is_published_whole_or_not_at_all(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was taken for dead while it staged: the sweep has the directory, or its owner has."""
    other = Store(opened.root)
    other.workplace.open()

    claim = Files._claim_version

    def claim_after_a_sweep(*arguments: Any) -> int:
        other.workplace.sweep(set)
        return claim(*arguments)

    monkeypatch.setattr(Files, "_claim_version", claim_after_a_sweep)
    with pytest.raises(StoreUnavailable):
        publish(opened, "a", D)
    assert opened.versions("a") == []
    assert list(opened.workplace.staging.iterdir()) == []


def test_a_job_is_published_once(place: Place) -> None:
    """Whichever of its attempts comes first; imports are no job's."""
    opened, other = place.store(), place.store()
    assert publish(opened, "a", D, job="1") == 1
    assert publish(other, "a", 2 * D, job="1") == 1
    assert publish(other, "a", 2 * D, job="2") > 1
    assert len(opened.versions("a")) == 2
    np.testing.assert_array_equal(opened.load("a", 1), D)


def test_a_record_that_cannot_be_read_for_a_moment_may_be_the_jobs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is read, nobody knows that the job has published nothing. One that is damaged never will be."""
    opened = place.store()
    publish(opened, "a", D, job="1")
    publish(opened, "a", D)
    place.bucket.put("a/2/meta.json", b"{")
    other = place.store()
    meta = other._shelf.meta

    def away(name: str, version: int, **told: bool) -> bytes:
        if version == 1:
            raise StoreUnavailable("away")
        return meta(name, version, **told)

    with monkeypatch.context() as patch:
        patch.setattr(other._shelf, "meta", away)
        with pytest.raises(StoreUnavailable):
            other.made_by("a", "1")
        there = place.bucket.entries("a").keys()
        with pytest.raises(StoreUnavailable):
            publish(other, "a", D, job="1")
        assert place.bucket.entries("a").keys() == there
    assert publish(other, "a", D, job="1") == 1
    assert place.store().versions("a") == [1, 2]


PASSING = [errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE]


@pytest.mark.parametrize("code", PASSING, ids=errno.errorcode.get)
def test_a_record_that_a_disk_does_not_give_for_a_moment_may_be_the_jobs(
    opened: Store, withheld: dict[str, int], code: int
) -> None:
    publish(opened, "a", D, job="1")
    other = Store(opened.root)
    other.workplace.open()
    withheld["a/1/meta.json"] = code
    told = f"meta.json of a@1 cannot be read: {os.strerror(code)}"
    for asked in (lambda: other.made_by("a", "1"), lambda: publish(other, "a", D, job="1")):
        with pytest.raises(StoreUnavailable, match=told):
            asked()
    withheld.clear()
    assert publish(other, "a", D, job="1") == 1
    assert other.versions("a") == [1]


@pytest.mark.parametrize("file", ["meta.json", "dictionary.safetensors", "labels.json"])
def test_a_file_that_a_disk_never_gives_again_takes_its_version_alone(
    opened: Store, withheld: dict[str, int], caplog: pytest.LogCaptureFixture, file: str
) -> None:
    """And new fits of its name, if it is a record: until it is restored or removed."""
    for name in ("a", "a", "b"):
        publish(opened, name, D)
    withheld[f"a/2/{file}"] = errno.EIO
    told = f"{file} of a@2 cannot be read: Input/output error"
    store = Store(opened.root)
    store.workplace.open()
    for reference in ("a@1", "b"):
        np.testing.assert_array_equal(store.load(*store.resolve(Reference.parse(reference))), D)
    with pytest.raises(StoreUnavailable, match=told):
        (store.labels if file == "labels.json" else store.load)("a", 2)
    weights_alone = file == "dictionary.safetensors"
    assert [str(record.reference) for record in store.latest()] == ["a@2" if weights_alone else "a@1", "b@1"]
    assert len(store.latest()) == 2
    told_once = caplog.text.count(f"left out of the list: {told}")
    assert told_once == (0 if weights_alone else 1)
    if file == "meta.json":
        with pytest.raises(StoreUnavailable, match=told):
            store.require_free("a")
    store.require_free("b")
    assert publish(store, "b", D, job="1") == 2
    assert publish(store, "a", D) == 3  # an import, of which there is no other attempt
    store.remove("a", [2])
    store.require_free("a")
    assert publish(store, "a", D, job="2") == 4


def test_a_disk_that_gives_no_record_at_all_is_no_empty_store(opened: Store, withheld: dict[str, int]) -> None:
    assert opened.latest() == []
    for name in ("a", "b"):
        publish(opened, name, D)
        withheld[f"{name}/1/meta.json"] = errno.EIO
    with pytest.raises(StoreUnavailable, match=r"meta\.json of a@1"):
        Store(opened.root).latest()


def test_one_version_of_a_disk_may_be_away_and_an_object_store_as_a_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.store()
    for name in ("a", "b"):
        publish(store, name, D)
    assert [record.name for record in store.latest()] == ["a", "b"]
    described = store.described

    def away(reference: Reference) -> DictionaryRecord:
        if reference.name == "b":
            raise StoreUnavailable("away")
        return described(reference)

    monkeypatch.setattr(store, "described", away)
    if place.objects is None:
        assert [record.name for record in store.latest()] == ["a"]
        return
    with pytest.raises(StoreUnavailable, match="away"):
        store.latest()


def test_what_a_job_published_was_published_though_it_is_removed_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever saw it first: the job has succeeded."""
    opened, other = place.store(), place.store()
    shelf = opened._shelf
    publish_on_shelf = shelf.publish

    def removed(name: str, *args: Any, **told: Any) -> int:
        version = publish_on_shelf(name, *args, **told)
        other.remove(name, [version])
        return version

    monkeypatch.setattr(shelf, "publish", removed)
    assert publish(opened, "a", D, job="1") == 1
    assert place.store().versions("a") == []


def test_a_lock_that_cannot_be_had_is_taken_when_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, flock = Workplace(tmp_path / ".dictserve"), fcntl.flock

    def failing(file: IO[str], operation: int) -> None:
        if file.name.endswith(place.owner):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(file, operation)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", failing)
        with pytest.raises(StoreUnavailable, match="No locks available"):
            place.open()
    place.open()
    assert not Workplace(place.directory).lock_is_free(place.owner)
    place.close()


def test_a_free_lock_tells_of_death_on_this_machine_alone(opened: Store) -> None:
    other = Store(opened.root)
    other.workplace.open()
    owners = opened.workplace.directory / "owners"
    assert not opened.workplace.lock_is_free(other.workplace.owner)
    (owners / "123-dead").touch()  # of a machine whose locks are not seen here
    assert not opened.workplace.lock_is_free("123-dead")
    assert not opened.workplace.lock_is_free(f"{MACHINE}-1-nowhere")
    code = (
        "import time; from pathlib import Path; from app.store.workplace import Workplace; "
        f"place = Workplace(Path({str(opened.workplace.directory)!r})); place.open(); "
        "print(place.owner, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        owner = process.stdout.readline().strip()
        assert not opened.workplace.lock_is_free(owner)
        process.kill()
        process.wait()
        assert opened.workplace.lock_is_free(owner)
    was = other.workplace.owner
    other.workplace.rename_owner()
    assert other.workplace.owner != was
    assert {path.name for path in owners.iterdir()} == {
        opened.workplace.owner,
        other.workplace.owner,
        owner,
        "123-dead",
    }
