"""What README and docs/ say is so."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from app.cli import main
from app.client import Client
from app.errors import INTERNAL, KINDS
from app.http.problems import HTTP_KINDS
from app.main import create_app
from app.schemas import FitParameters
from app.settings import Settings, settings_table
from tests.blocks import PAGES, ROOT, blocks

README = (ROOT / "README.md").read_text()
HTTP = (ROOT / "docs" / "http.md").read_text()
FAULTS = (ROOT / "docs" / "faults.md").read_text()
CLIENT = (ROOT / "docs" / "client.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_the_two_commands_are_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "serve", "check", "bench", "docs"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    ci = (ROOT / ".ci" / "run").read_text()
    assert [line for line in ci.splitlines() if "make" in line and not line.startswith("#")] == [
        "make --jobs 2 --output-sync=target install browser kernels check",
        "make demo",
        "exec make test",
    ]


def test_files_that_are_linked_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_lines_are_there(page: Path) -> None:
    """What blocks hold is run by tests/e2e/test_every_block.py."""
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
        match words:
            case ["make", *targets]:
                for target in targets:
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
            case ["python", "-m", module, *_]:
                assert find_spec(module), command
            case ["dictserve", name, *rest]:
                known = get_command(main)
                for word in [name, *(word for word in rest if word.startswith("-") or word in ("new",))]:
                    if word.startswith("-"):
                        assert word in {option for p in known.params for option in p.opts} | {"--help"}, command
                    else:
                        known = known.commands[word]  # type: ignore[attr-defined]


def test_every_command_and_method_is_documented() -> None:
    for command in main.registered_commands:
        assert re.search(rf"`{command.name}\b", CLI), command.name
    for name in vars(Client):
        if not name.startswith("_") and name not in ("send", "close"):
            assert re.search(rf"`{name}\(", CLIENT), name


def test_the_tree_in_the_docs_is_that_of_the_sources() -> None:
    """What docs/architecture.md names is there, and nothing of core/, app/ and its layers is left out."""
    (tree,) = (block.text for block in blocks(ROOT / "docs" / "architecture.md") if block.language == "text")
    core, app = re.split(r"^app/", tree, flags=re.MULTILINE)
    for folder, told in {"core": core, "app": app}.items():
        named = set(re.findall(r"\b([a-z_]+(?:\.py|/))", told)) - {"core/"}
        files = {path.name for path in (ROOT / folder).rglob("*.py")}
        folders = {f"{path.parent.name}/" for path in (ROOT / folder).rglob("__init__.py")}
        assert named <= files | folders
    of_core = dict.fromkeys(("core", "core/kernels", "core/kernels/cpu", "core/kernels/cuda"), core)
    for folder, told in {**of_core, "app": app, "app/http": app, "app/jobs": app, "app/store": app}.items():
        here = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py", "__main__.py"}
        assert here <= set(re.findall(r"\b[a-z_]+\.py", told))


def test_every_setting_is_documented() -> None:
    told = OPERATIONS.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    assert told.strip() == settings_table(), "paste the output of `dictserve settings` into docs/operations.md"
    assert all(field.description for field in Settings.model_fields.values())


def test_every_fault_has_a_test_that_exists() -> None:
    """Each row of docs/faults.md names one; of a name with brackets, the case is in that file too."""
    rows = [line for line in FAULTS.splitlines() if re.match(r"\| (?!---)", line) and not line.endswith("| test |")]
    assert len(rows) > 60
    for row in rows:
        names = re.findall(r"`((?:app|core|e2e|faults)/[^`:]+)::(\w+)(?:\[([^`]+)\])?`|`\[([^`]+)\]`", row)
        assert names, row
        source = ""
        for file, function, case, another in names:
            source = (ROOT / "tests" / file).read_text() if file else source
            assert not function or re.search(rf"^ *def {function}\(", source, re.MULTILINE), f"{file}: {function}"
            assert f'"{case or another}"' in source if case or another else True, row


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICTSERVE_PORT", "9000")
    monkeypatch.setenv("DICTSERVE_MAX_ROWS", "7")
    assert (Settings().port, Settings().max_rows) == (9000, 7)


def test_every_problem_type_is_documented_under_its_status() -> None:
    rows = dict(re.findall(r"^\| (\d{3}) \| (.*) \|$", HTTP, re.MULTILINE))
    for kind in [*KINDS.values(), *HTTP_KINDS.values(), INTERNAL]:
        assert f"`{kind.slug}`" in rows[str(kind.status)], kind
        if kind.status == 503:
            assert kind.retry_after_seconds


def test_every_path_and_parameter_is_documented() -> None:
    for path, operations in create_app(Settings()).openapi()["paths"].items():
        for method in operations:
            told = re.sub(r"\{[a-z]+\}", lambda m: {"{reference}": "{name}"}.get(m[0], m[0]), path)
            assert f"{method.upper()} {told}" in HTTP or f"`{told}`" in HTTP, f"{method} {path}"
    for name, field in FitParameters.model_fields.items():
        row = re.search(rf"^\| `{name}` \| (.*?) \|", HTTP, re.MULTILINE)
        assert row is not None, name
        if not field.is_required():
            assert row[1].strip("`") == ("–" if field.default is None else str(field.default)), name
