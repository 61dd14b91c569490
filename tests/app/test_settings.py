"""Settings that would do other than what whoever set them thinks."""

import errno
import resource
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.commands.service import OWN_FILES, _within_open_files, settings_of
from app.settings import Settings, misspelt


@pytest.mark.parametrize("empty", ["", "."])
def test_a_store_that_would_be_the_working_directory_is_refused(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICTSERVE_STORE", empty)
    with pytest.raises(ValidationError, match="name a directory of its own"):
        Settings()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///?mode=memory"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="names no file"):
        Settings(database_url=url)
    Settings(database_url="sqlite:////tmp/jobs.sqlite3")


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("objects", "s3://KEY:topsecret@bucket/models"),
        ("objects", "s3://KEY:top/secret@bucket/models"),
        ("objects", "sftp://user:topsecret@host:22/models"),
        ("objects", "simplecache::sftp://:topsecret@host/models"),
        ("objects", "KEY:topsecret@bucket/models"),
        ("store", "sftp://user:topsecret@host/models"),
        ("objects_options", "topsecret"),
    ],
)
def test_a_password_in_a_url_is_refused_and_told_to_nobody(setting: str, url: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(**{setting: url})
    with pytest.raises(SystemExit) as ended:
        settings_of({setting: url})
    for told in (str(raised.value), str(ended.value)):
        assert "secret" not in told
        assert setting in told


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MAX_ROWS", "many", "setting max_rows: "),
        ("DEVICES", "tpu", "setting devices: "),
        ("DATA_DIR", "/no/directory", "setting data_dir: Value error, there is no directory /no/directory"),
        ("OBJECTS_OPTIONS", "x", "setting objects_options: it is not JSON"),
    ],
)
def test_a_bad_setting_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"DICTSERVE_{variable}", value)
    with pytest.raises(SystemExit) as ended:
        settings_of({})
    (line,) = str(ended.value).splitlines()
    assert said in line


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/models",
        "sftp://user@host/models",
        "webhdfs://user@host:9870/models",
        "sftp://host:22/models@work",
        "abfs://container@account.dfs.core.windows.net/models",
        "file:///srv/a:b@c",
    ],
)
def test_urls_of_object_stores_that_have_no_password(url: str) -> None:
    assert Settings(objects=url).objects == url


def test_an_empty_variable_is_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose hands on what is not set."""
    monkeypatch.setenv("DICTSERVE_DATA_DIR", "")
    assert Settings().data_dir is None
    monkeypatch.setenv("DICTSERVE_TOKENS_FILE", "")
    with pytest.raises(ValidationError, match="it is empty: name a file"):
        Settings()


def test_a_directory_that_does_not_answer_is_no_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encodes need none of it: a start does not end for a server that is away."""
    for path in (tmp_path / "absent", Path(__file__)):
        with pytest.raises(ValidationError, match=f"there is no directory {path}"):
            Settings(data_dir=path)

    def stale(_: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "is_dir", stale)
    assert Settings(data_dir=tmp_path).data_dir == tmp_path


def test_what_is_no_setting_is_told() -> None:
    told = ["DICTSERVE_PROT", "DICTSERVE_URL", "DICTSERVE_PORT", "dictserve_store", "PATH", "DICTSERVE_XYZZY_QUUX"]
    assert misspelt(told) == [
        "DICTSERVE_PROT is no setting; is DICTSERVE_PORT meant?",
        "DICTSERVE_XYZZY_QUUX is no setting",
    ]


def test_numbers_that_no_worker_could_be_told_are_refused() -> None:
    for name in ("cache_bytes", "queue_rows", "max_iterations"):
        Settings(**{name: 2**63 - 1})
        with pytest.raises(ValidationError, match="the largest number of 64 bits"):
            Settings(**{name: 2**63})


@pytest.mark.parametrize(
    ("hard", "connections"), [(resource.RLIM_INFINITY, 1000), (4096, 1000), (1024, 384), (300, 75), (64, 16)]
)
def test_no_more_connections_are_taken_than_files_may_be_open(
    hard: int, connections: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (min(hard, 64) if hard > 0 else 64, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    chosen = _within_open_files(Settings(store=tmp_path, max_connections=1000))
    assert chosen.max_connections == connections
    assert (f"no more than {connections} connections" in caplog.text) == (connections < 1000)
    if hard != 64:
        wanted = 2 * 1000 + OWN_FILES
        assert set_to == [(wanted if hard in (resource.RLIM_INFINITY, 4096) else hard, hard)]
