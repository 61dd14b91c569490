"""The rules of the house: who imports whom, and what the HTTP process never loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numba", "sklearn", "scipy"}
OF_THE_WORKER = {"app/worker/loop.py", "app/worker/cache.py", "app/worker/__main__.py"}
# the client gives sparse codes as SciPy's, and imports it for those alone
OF_THE_CLIENT = {"app/client/answers.py": {"scipy"}}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources("core"), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_knows_nothing_of_the_service(path: Path) -> None:
    service = {"app", "fastapi", "starlette", "uvicorn", "pydantic", "httpx", "sqlalchemy", "msgspec", "orjson"}
    assert not {name.partition(".")[0] for name in imported(path)} & service


@pytest.mark.parametrize("path", sources("app"), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_worker_computes(path: Path) -> None:
    names = set(imported(path))
    if str(path.relative_to(ROOT)) not in OF_THE_WORKER:
        may = OF_THE_CLIENT.get(str(path.relative_to(ROOT)), set())
        assert not {name.partition(".")[0] for name in names} & HEAVY - may
        of_core = {name for name in names if name.partition(".")[0] == "core"}
        assert {name for name in of_core if not name.startswith(("core.errors", "core.checks"))} <= {"core"}


@pytest.mark.parametrize("path", [*sources("app"), *sources("core")], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_pickles(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(path)} & {
        "pickle",
        "dill",
        "cloudpickle",
        "shelve",
        "marshal",
    }
    assert "allow_pickle=True" not in path.read_text()


@pytest.mark.parametrize("path", sources("app"), ids=lambda path: str(path.relative_to(ROOT)))
def test_routes_are_known_to_main_alone(path: Path) -> None:
    if path.name != "main.py" and path.parent.name != "routes":
        assert not [name for name in imported(path) if name.startswith("app.routes")]


def test_the_app_is_made_without_torch() -> None:
    code = (
        "import sys; from app.main import create_app; import app.cli; create_app(); "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
