"""The tokens file: what it may say, and how it is read anew."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.errors import RateLimited, TokensUnreadable
from app.http import tokens as module
from app.http.tokens import Allowance, TokenFile, add, hash_of, new_token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_what_is_added_is_found(path: Path) -> None:
    reader, writer = new_token(), new_token()
    add(path, "reader", ["read"], reader, {})
    add(path, "writer", ["read", "write"], writer, {"requests_per_minute": 10})
    tokens = TokenFile(path)
    found = tokens.find(writer)
    assert found is not None
    assert (found.name, found.scopes) == ("writer", {"read", "write"})
    assert found.allowances["requests_per_minute"].per_minute == 10
    assert tokens.find(reader + "x") is None
    assert tokens.find("") is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert reader not in path.read_text()


def test_a_name_has_one_token(path: Path) -> None:
    add(path, "a", ["read"], new_token(), {})
    with pytest.raises(TokensUnreadable, match="already"):
        add(path, "a", ["read"], new_token(), {})


def test_comments_and_empty_lines_are_passed_over(path: Path) -> None:
    path.write_text(f"# ours\n\na read {hash_of('x')}  # the page's\n")
    found = TokenFile(path).find("x")
    assert found is not None
    assert found.name == "a"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a read", "of the form"),
        ("a read secret-token", "64 hexadecimal"),
        ("a all " + "0" * 64, "read and write"),
        ("../a read " + "0" * 64, "letters"),
        ("a read " + "0" * 64 + " rows=3", "rows_per_minute=N"),
        ("a read " + "0" * 64 + " rows_per_minute=0", "N ≥ 1"),
        ("a read " + "0" * 64 + " rows_per_minute=" + "9" * 400, "15 digits"),
        ("a read " + "0" * 64 + " rows_per_minute=" + "9" * 5000, "15 digits"),
        ("a read " + "0" * 64 + " rows_per_minute=" + "0" * 5000 + "1", "15 digits"),
        ("a read " + "0" * 64 + "\na read " + "1" * 64, "twice"),
    ],
)
def test_what_is_wrong_is_told_without_repeating_the_line(path: Path, line: str, told: str) -> None:
    path.write_text(line + "\n")
    with pytest.raises(TokensUnreadable, match=told) as caught:
        TokenFile(path)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(TokensUnreadable, match="cannot be read"):
        TokenFile(path)


def test_the_file_is_read_anew(path: Path) -> None:
    first, second = new_token(), new_token()
    add(path, "first", ["read"], first, {})
    tokens = TokenFile(path)
    assert tokens.find(second) is None
    add(path, "second", ["read"], second, {})
    assert tokens.find(second) is not None
    path.write_text("\n".join(path.read_text().splitlines()[1:]))  # the first is taken back
    assert tokens.find(first) is None


def test_a_mark_of_how_bytes_are_ordered_is_passed_over(path: Path) -> None:
    """Editors on Windows begin a file with it."""
    path.write_text(f"a read {hash_of('x')}", encoding="utf-8-sig")
    assert TokenFile(path).find("x") is not None


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "then",
    [
        lambda path: path.write_text("nonsense"),
        lambda path: None,
        lambda path: os.mkfifo(path),  # which opens once somebody writes to it
        lambda path: path.mkdir(),
    ],
    ids=["nonsense", "nothing", "a pipe", "a directory"],
)
def test_a_file_that_is_broken_later_changes_nothing(path: Path, then: Callable[[Path], object]) -> None:
    token = new_token()
    add(path, "a", ["read"], token, {})
    tokens = TokenFile(path)
    path.unlink()
    then(path)
    assert tokens.find(token) is not None


def test_a_file_that_could_not_be_read_is_read_as_soon_as_it_can_be(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever kept it: an error that passes, or the mode of the one in its place. It was read when it was touched
    again, and who had been taken off it was let in until then."""
    names = ["first", "second", "third"]
    given = {name: new_token() for name in names}
    now, fails, reads = 0.0, False, 0
    real = module._read

    def read(path: Path) -> list[module.Caller]:
        nonlocal reads
        reads += 1
        if fails:
            raise TokensUnreadable("input/output error")
        return real(path)

    def let_in() -> list[str]:
        return [name for name in names if tokens.find(given[name]) is not None]

    def replace_by(name: str) -> None:
        path.unlink(missing_ok=True)
        add(path, name, ["read"], given[name], {})

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    replace_by("first")
    tokens = TokenFile(path)
    monkeypatch.setattr(module, "_read", read)
    fails = True
    replace_by("second")
    assert (let_in(), reads) == (["first"], 1)
    now = 1.0
    assert (let_in(), reads) == (["first"], 2)
    fails = False
    assert (let_in(), reads) == (["first"], 2)  # once a second
    now = 2.0
    assert (let_in(), reads) == (["second"], 3)
    fails = True
    replace_by("third")
    assert (let_in(), reads) == (["second"], 4)
    fails = False
    path.chmod(0o640)
    assert (let_in(), reads) == (["third"], 5)  # at once, for it has changed
    told = "changes of the tokens file have no effect"
    lines = [record.getMessage() for record in caplog.records]
    assert lines == 2 * [f"{told}: input/output error", f"over after 0 s: {told}"]


def test_what_is_used_of_a_limit_stays_used(path: Path) -> None:
    token = new_token()
    add(path, "a", ["read"], token, {"requests_per_minute": 1})
    tokens = TokenFile(path)
    caller = tokens.find(token)
    assert caller is not None
    caller.take("requests_per_minute", 1)
    add(path, "b", ["read"], new_token(), {})
    again = tokens.find(token)
    assert again is not None
    assert again is not caller
    with pytest.raises(RateLimited):
        again.take("requests_per_minute", 1)


def test_an_allowance_fills_up_with_time() -> None:
    now = 0.0
    allowance = Allowance(60, clock=lambda: now)
    assert [allowance.take(1) for _ in range(60)] == [0] * 60
    assert allowance.take(1) == pytest.approx(1)
    now = 1.0
    assert allowance.take(1) == 0
    now = 1000.0
    assert allowance.take(100) == 0  # more than a minute's takes all of it, and the next pay for it
    assert allowance.take(1) == pytest.approx(41)


def test_a_token_is_added_to_a_file_whose_last_line_has_no_end(path: Path) -> None:
    """As editors leave it. Two lines became one, and no start went by it any more."""
    path.write_text(f"a read {hash_of('x')}")
    add(path, "b", ["read"], "y", {})
    found = [TokenFile(path).find(token) for token in ("x", "y")]
    assert [caller and caller.name for caller in found] == ["a", "b"]


def test_a_file_without_tokens_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens"
    path.write_text("# none yet\n")
    TokenFile(path)
    assert "has no tokens: nobody is let in" in caplog.text
