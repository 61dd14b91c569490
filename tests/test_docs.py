"""What README and docs/ say is so."""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database import Database
from app.errors import HTTP_KINDS, INTERNAL, KINDS
from app.jobs import Jobs
from app.main import create_app
from app.schemas import FitParameters
from app.settings import Settings, settings_table
from tests.e2e.conftest import Service

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HTTP = (ROOT / "docs" / "http.md").read_text()
FAULTS = (ROOT / "docs" / "faults.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("docs") / "models").start()
    yield service
    service.stop()


def test_the_two_commands_are_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "serve", "check", "bench"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make check demo test" in ci


def test_readmes_curl_lines_work_when_pasted(service: Service) -> None:
    lines = next(block for block in blocks("sh") if "curl" in block).strip().splitlines()
    assert len(lines) == 3
    for line in lines:
        command = shlex.split(line.replace("localhost:8000", f"localhost:{service.port}"))
        run = subprocess.run([*command, "--silent", "--fail-with-body"], capture_output=True, timeout=60)
        assert run.returncode == 0, run.stdout
        json.loads(run.stdout)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
def test_readmes_python_runs(service: Service, block: str) -> None:
    service.client.post(
        "/fit", json={"name": "toy", "nb_concepts": 2, "data": [[1, 0, 2, 0]]}, headers={"prefer": "wait=30"}
    ).raise_for_status()
    code = block.replace("localhost:8000", f"localhost:{service.port}")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr


def test_files_that_are_linked_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


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


def test_the_store_in_the_docs_is_the_store_on_the_disk(service: Service) -> None:
    service.client.post(
        "/fit", json={"name": "digits", "nb_concepts": 1, "data": [[1, 2]]}, headers={"prefer": "wait=30"}
    ).raise_for_status()
    service.client.patch("/dictionaries/digits", json={"labels": {"a": "b"}}).raise_for_status()
    assert service.client.put("/dictionaries/digits", json={"data": [[1, 2]]}).json()["version"] == 2
    assert service.client.delete("/dictionaries/digits@2").status_code == 204
    (tree,) = re.findall(r"```\n(models/.*?)```", OPERATIONS, re.DOTALL)
    for path in re.findall(r"^  (\S+)", tree, re.MULTILINE):
        assert os.path.exists(service.store / path), path


def test_a_backup_made_and_restored_as_told_is_whole(service: Service) -> None:
    service.client.post(
        "/fit", json={"name": "owners", "nb_concepts": 1, "data": [[1, 2]]}, headers={"prefer": "wait=30"}
    ).raise_for_status()
    section = OPERATIONS.partition("## Backup and restore")[2].partition("\n## ")[0]
    commands = "".join(blocks("sh", section))
    for word, path in {"python3": sys.executable, "dictserve": f"{sys.executable} -m app"}.items():
        commands = re.sub(rf"^{word} ", f"{path} ", commands, flags=re.MULTILINE)
    folder = service.store.parent
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        ["sh", "-e", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
    restored = folder / "restored" / "models"
    assert (restored / "owners" / "1" / "dictionary.safetensors").exists()
    with tarfile.open(folder / "models.tar") as archive:
        left_out = re.compile(r"models/\.dictserve/(owners|staging|jobs\.sqlite3)")
        assert not [name for name in archive.getnames() if left_out.match(name)]
    database = Database(f"sqlite:///{restored / '.dictserve' / 'jobs.sqlite3'}")
    try:
        succeeded = Jobs(database).newest(100, before=None, state="succeeded", name=None)
        assert "owners" in {record.job.name for record in succeeded}
    finally:
        database.close()
