"""The command line without a service: formats, exit codes, what it loads, what it draws."""

import errno
import gc
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save
from typer.testing import CliRunner

from app import commands
from app.cli import main
from app.client import Client, DictserveError, Overloaded, UnknownDictionary, UnknownJob, Unreachable, calls
from app.client.errors import Unauthorized
from app.commands import dictionaries, files, fit
from app.commands.connection import _open_streams, _told_here, exit_code
from app.commands.curve import BLOCKS, COLUMNS, ROWS, bars, curve
from app.commands.tables import print_pairs, print_rows
from app.http.tokens import TokenFile
from demo.service import free_port, npy

ROOT = Path(commands.__file__).parents[2]
NOWHERE = f"http://127.0.0.1:{free_port()}"


def run(*arguments: str, input: str | bytes = "") -> tuple[int, str]:
    """The exit code, and all that was printed."""
    result = CliRunner().invoke(main, arguments, input=input)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DictserveError("d"), 1),
        (FileNotFoundError("f"), 2),
        (UnknownDictionary("d"), 3),
        (UnknownJob("j"), 3),
        (Overloaded("o"), 4),
        (Unreachable("u"), 4),
        (RuntimeError("a bug"), None),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: Exception, code: int | None) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UnknownDictionary("there is no dictionary 'x'; GET /dictionaries lists them"), "`dictserve ls` lists them"),
        (UnknownJob("there is no job 'x'; GET /jobs lists them"), "`dictserve jobs` lists them"),
        (Unauthorized("this needs a token"), "this needs a token (here it is taken from DICTSERVE_TOKEN)"),
        (OSError("disk"), "disk"),
    ],
)
def test_hints_are_of_commands(error: Exception, told: str) -> None:
    assert _told_here(error).endswith(told)
    assert "GET" not in _told_here(error)


def test_a_token_is_printed_and_its_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    code, token = run("token", "new", "team", "--write", "--rows-per-minute", "5", "--file", str(path))
    assert code == 0
    caller = TokenFile(path).find(token.strip())
    assert caller is not None
    assert (caller.name, caller.scopes, list(caller.allowances)) == ("team", {"read", "write"}, ["rows_per_minute"])
    code, told = run("token", "new", "team", "--file", str(path))
    assert code == 2
    assert "already" in told


@pytest.fixture
def as_before() -> Iterator[None]:
    """What a service settles for its whole process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    gc.enable()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "dictserve token new"),  # noqa: S104 - that is what is refused
        (["--host", "::"], "dictserve token new"),
        (["--host", "no.such.host.invalid"], "nothing can listen on 'no.such.host.invalid'"),
        (["--tokens-file", "absent"], "cannot be read"),
    ],
)
def test_a_start_that_would_be_open_to_all_is_refused(
    tmp_path: Path, as_before: None, options: list[str], told: str
) -> None:
    code, output = run("serve", "--store", str(tmp_path / "models"), *options)
    assert code == 1
    assert told in output
    assert "Traceback" not in output


def test_no_service_is_told_in_a_line() -> None:
    code, told = run("ls", "--url", NOWHERE)
    assert code == 4
    assert told.startswith("dictserve: no answer from http://127.0.0.1")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--url", "nonsense"],
        ["encode", "x", "absent.npy"],
        ["encode", "x", "-", "--format", "pt"],
        ["encode", "x", "-", "-o", "Z.pt"],
        ["encode", "x", "-", "-o", "absent/Z.npy"],
        ["encode", "x", "-", "-o", "."],
        ["label", "x", "--concept", "9" * 5000 + "=y"],
        ["fit", "-"],
        ["fit", "--name", "x", "--nb-concepts", "2"],
        ["fit", "-", "--files", "*.npy", "--name", "x", "--nb-concepts", "2"],
        ["nonsense"],
    ],
)
def test_usage_errors_are_2(arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def test_an_output_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was full left half of the new one."""
    output = tmp_path / "Z.npy"
    files.write_output(output, b"old")
    output.chmod(0o640)

    def to_a_full_disk(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as told:
        told.setattr(Path, "write_bytes", to_a_full_disk)
        with pytest.raises(OSError, match="full"):
            files.write_output(output, b"new")
    assert (output.read_bytes(), list(tmp_path.iterdir())) == (b"old", [output])
    files.write_output(output, b"new")
    assert (output.read_bytes(), list(tmp_path.iterdir())) == (b"new", [output])
    assert output.stat().st_mode & 0o777 == 0o640
    (link := tmp_path / "link").symlink_to(output)  # as /dev/stdout is one
    files.write_output(link, b"newer")
    assert (output.read_bytes(), link.is_symlink()) == (b"newer", True)


def test_a_pipe_is_read_as_stdin_is(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "A.npy")
    threading.Thread(target=pipe.write_bytes, args=(npy([[1.0]]),), daemon=True).start()
    body, format = files.read_input(pipe)
    assert (b"".join(body.chunks()), format) == (npy([[1.0]]), "npy")


def test_codes_that_cannot_be_read_are_a_usage_error(tmp_path: Path) -> None:
    parts = {"shape": [1, 2], "indptr": [0, 1], "indices": [5], "values": [1]}
    (file := tmp_path / "Z.safetensors").write_bytes(save({name: np.array(part) for name, part in parts.items()}))
    code, told = run("decode", "x", str(file), "--url", NOWHERE)
    assert code == 2
    assert "the codes cannot be read" in " ".join(told.split())


def test_binary_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for format in ("npy", "safetensors"):
        with pytest.raises(Exception, match=r"binary.*--format csv"):
            files.output_format(files.STDIO, format, "npy")
    assert files.output_format(files.STDIO, "csv", "npy") == "csv"
    assert files.output_format(Path("Z.npy"), None, "csv") == "npy"


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (npy([[1.0]]), "npy"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"data"', "safetensors"),
        (b"[[1, 2]]", "json"),
        (b' {"data": [[1, 2]]}', "json"),
        (b"1,2\n", "csv"),
        (b"one,two\n1,2\n", "csv"),
    ],
)
def test_stdin_is_known_by_its_first_bytes(content: bytes, format: str) -> None:
    assert files._sniffed(content) == format


@pytest.mark.parametrize("text", ["[[1, 2]]", '{"data": [[1, 2]]}', '{"version": 1, "codes": [[1, 2]]}'])
def test_json_holds_rows_alone_or_as_the_service_answers(text: str) -> None:
    assert files._rows(text.encode()) == [[1, 2]]


@pytest.mark.parametrize("text", ["[", "{}", '{"a": [[1]]}', "nan nan", "3", '"data"', "null", "[" * 100_000])
def test_other_json_is_a_usage_error(text: str) -> None:
    with pytest.raises(Exception, match="JSON"):
        files._rows(text.encode())


@pytest.mark.parametrize(
    "text",
    ["[[1, 2], [1]]", '[["a"]]', "[[null]]", '{"data": {"base64": "AAAAAA==", "shape": [1, 1]}}', f"[[{10**30}]]"],
)
def test_json_rows_of_something_else_are_a_usage_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "A.json"
    file.write_text(text)
    code, told = run("encode", "digits", str(file), "--url", NOWHERE)
    assert code == 2
    assert "must hold numbers" in " ".join(told.split())


@pytest.fixture
def service(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Which the commands talk to."""
    for command in (dictionaries, fit):
        made = lambda _: Client("http://testserver", transport=client._transport, retries=0)  # noqa: E731
        monkeypatch.setattr(command, "connected", made)
    return client


def versions(service: TestClient, name: str) -> list[int]:
    found = service.get(f"/dictionaries/{name}")
    return found.json()["versions"] if found.is_success else []


def test_what_was_not_asked_about_is_not_removed(
    service: TestClient, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that came while the question stood went with the others. One that went already is no fault."""
    headers = {"content-type": "application/x-npy"}

    def make() -> None:
        assert service.put(f"/dictionaries/{digits}", content=npy([[1.0, 2.0]]), headers=headers).is_success

    def answer(question: str, **_: object) -> bool:
        asked.append(question)
        make()
        service.delete(f"/dictionaries/{digits}@1").raise_for_status()
        return True

    asked: list[str] = []
    make()
    monkeypatch.setattr(dictionaries.typer, "confirm", answer)
    assert run("rm", digits) == (0, "")
    assert asked == ["Remove digits@1, digits@2?"]
    assert versions(service, digits) == [3]
    assert run("rm", f"{digits}@3", "--yes") == (0, "")
    assert run("rm", f"{digits}@3", "--yes")[0] == 3


def test_as_many_jobs_are_listed_as_are_asked_for(service: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_JOBS", 2)
    fits = [
        service.post(
            "/fit?nb_concepts=1&name=x", content=npy([[1.0, 2.0]]), headers={"content-type": "application/x-npy"}
        )
        for _ in range(5)
    ]
    newest_first = sorted((fit.json()["id"] for fit in fits), reverse=True)
    listed = json.loads(run("jobs", "--json", "--limit", "3")[1])
    assert [job["id"] for job in listed] == newest_first[:3]
    assert [job["id"] for job in json.loads(run("jobs", "--json")[1])] == newest_first


class Full(io.StringIO):
    """As /dev/full is."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize("stderr", [None, Full()], ids=["closed", "full"])
def test_a_fit_that_can_tell_nobody_of_its_progress_gives_its_dictionary(
    service: TestClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stderr: io.StringIO | None,
) -> None:
    (file := tmp_path / "A.npy").write_bytes(npy([[1.0, 2.0]]))
    with monkeypatch.context() as told:
        told.setattr(sys, "stderr", stderr)
        main(["fit", str(file), "--name", "x", "--nb-concepts", "1"], standalone_mode=False)
    assert capsys.readouterr().out == "x@1\n"


def test_the_curve_falls_as_the_loss_does() -> None:
    history = [(i, 1000.0 / i) for i in range(1, 501)]
    head, *rows, foot = curve(history).splitlines()
    assert (head, foot.strip()) == ("loss", "iteration 1 to 500")
    assert len(rows) == ROWS
    assert (rows[0].split()[0], rows[-1].split()[0]) == ("1000", "2")
    drawn = [row[5:] for row in rows]
    assert {len(row) for row in drawn} == {COLUMNS}
    heights = [sum(" ▁▂▃▄▅▆▇█".index(row[column]) for row in drawn) for column in range(COLUMNS)]
    assert heights == sorted(heights, reverse=True)
    assert (heights[0], heights[-1]) == (8 * ROWS, 1)


@pytest.mark.parametrize("history", [[(1, 100.7), (2, 100.71)], [(1, 0.0), (2, 0.0)], [(1, 5.0)]])
def test_what_hardly_moves_is_drawn_flat(history: list[tuple[int, float]]) -> None:
    _, *rows, _ = curve(history).splitlines()
    assert not any(set(row) & set("▁▂▃▄▅▆▇█") for row in rows[:-1])
    assert set(rows[-1].split()[1]) <= set("▁▂▃")


@pytest.mark.parametrize("history", [[(1, 5.0)], [(1, 0.0), (2, 0.0)], [(1, 5.0), (2, 0.0)], [(1, 5.0), (9, 5.0)]])
def test_curves_of_little(history: list[tuple[int, float]]) -> None:
    assert len(curve(history).splitlines()) == ROWS + 2


def test_what_is_not_empty_is_seen_in_a_histogram() -> None:
    drawn = bars([0, 1, 500, 1000, 0])
    assert [BLOCKS.index(block) for block in drawn] == [0, 1, 4, 8, 0]
    assert bars([0] * 20) == " " * 20


def test_tables_show_what_people_wrote_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs({"note": "[bold]x[/nonsense]"})
    print_rows(("label",), [("[red]",)])
    assert "[bold]x[/nonsense]" in (told := capsys.readouterr().out)
    assert "[red]" in told


def test_what_people_have_written_gives_the_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    """A label set its title, or wiped it clean."""
    written = "\x1b]0;title\x07a\x1b[2J\x9b31m\r\x7fé\tb"
    print_pairs({"label": written})
    print_rows(("label",), [(written,)])
    told = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in told)
    assert told.count(r"\x1b]0;title\x07a\x1b[2J\x9b31m\r\x7fé") == 2


def test_commands_load_what_they_need_alone() -> None:
    """typer itself loads pydantic where there is one."""
    unwanted = {
        "torch",
        "numba",
        "sklearn",
        "scipy",
        "fastapi",
        "starlette",
        "uvicorn",
        "sqlalchemy",
        "core",
    }
    for arguments in (["--help"], ["ls", "--url", NOWHERE]):
        code = (
            "import sys; from app.cli import main\n"
            f"try: main({arguments!r})\n"
            f"except SystemExit: print('loaded', sorted({unwanted!r} & set(sys.modules)))"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert ended.stdout.splitlines()[-1] == "loaded []"


def test_json_is_printed_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    from app.commands.tables import print_json

    print_json({"name": "ζ", "values": [1, None]})
    assert json.loads(capsys.readouterr().out) == {"name": "ζ", "values": [1, None]}


def test_json_gives_the_terminal_no_orders_either(capsys: pytest.CaptureFixture[str]) -> None:
    from app.commands.tables import print_json

    written = {"label": "\x1b[2J\x7f\u0085\u009b31m é"}
    print_json(written)
    told = capsys.readouterr().out
    assert json.loads(told) == written
    assert all(character.isprintable() or character == "\n" for character in told)
    assert r"\u001b[2J\u007f\u0085\u009b31m é" in told


@pytest.mark.parametrize(
    "command", ["encode a - <&-", "decode a - <&-", "settings >&-", "settings <&- >&-", "ls 2>&-", "ls 2>/dev/full"]
)
def test_streams_that_are_closed_are_no_fault_of_ours(command: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m app {command}"
    told = os.environ | {"DICTSERVE_URL": "http://127.0.0.1:1"}
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=told)
    assert "Traceback" not in run.stderr
    assert run.returncode == (0 if "settings" in command else 4), run.stderr
    assert not ("2>" in command and run.stdout)


@pytest.mark.parametrize(
    "command",
    [
        "show {}",
        "encode {} -",
        "decode {} -",
        "compare x {}",
        "label x {}=1",
        "label x --concept 3={}",
        "fit - --nb-concepts 2 --name {}",
        "fit --files {} --nb-concepts 2 --name x",
        "jobs {}",
        "jobs --name {}",
        "cancel {}",
        "rm {}",
        "import {} -",
        "export {}",
        "ls --url http://{}",
        "ls --url http://.example",
        "token new {} --file absent",
    ],
)
def test_an_argument_that_is_not_utf_8_is_a_usage_error(command: str) -> None:
    code, told = run(*command.format("dig\udcff").split(), input="1,2\n")
    assert code == 2, told


@pytest.mark.parametrize("command", ["--help", "ls --help", "settings"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_without_room_is_told_in_a_line(command: str, unbuffered: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m app {command} > /dev/full"
    told = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=told)
    assert (run.returncode, run.stderr) == (2, "dictserve: [Errno 28] No space left on device\n")


def test_an_output_that_is_taken_in_part_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file is that the system has little room for, where PYTHONUNBUFFERED has nothing before it."""

    class Narrow(io.RawIOBase):
        taken = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.taken += (part := bytes(data)[:7])
            return len(part)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(narrow := Narrow(), "utf-8", write_through=True))
    _open_streams()
    files.write_output(files.STDIO, b"as codes are")
    print("\nas JSON is")
    assert narrow.taken == b"as codes are\nas JSON is\n"


def test_tables_have_their_full_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal of 80 columns had no job's id whole, and a pipe of 500 no long name."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    monkeypatch.setenv("COLUMNS", "80")
    row = ["0" * 32, "name" * 200, "succeeded", "1000/1000", "1.234e+05", "2026-11-30T21:20:49Z"]
    print_rows(fit.HEADS, [row])
    assert capsys.readouterr().out.splitlines()[1].split() == row
    print_pairs({"name": "x" * 600, "loss": "1"})
    assert [len(line.split()[-1]) for line in capsys.readouterr().out.splitlines()] == [600, 1]


def test_json_loses_nothing_where_stdout_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.commands.tables import print_json

    stdout = io.TextIOWrapper(printed := io.BytesIO(), "latin-1", errors="replace")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_json({"name": "ζ"})
    stdout.flush()
    assert json.loads(printed.getvalue()) == {"name": "ζ"}
