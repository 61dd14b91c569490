"""The rules of the house: who imports whom, and what the HTTP process never loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numba", "sklearn", "scipy"}
OF_THE_WORKER = {
    f"app/worker/{name}.py"
    for name in (
        "loop",
        "outcomes",
        "solving",
        "transfers",
        "device",
        "fitting",
        "pace",
        "cache",
        "conversion",
        "ranked",
        "matching",
        "watch",
        "__main__",
    )
}
# the client gives sparse codes as SciPy's, and imports it for those alone
OF_THE_CLIENT = {"app/client/answers.py": {"scipy"}}


@cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a file imports, anywhere in it but under TYPE_CHECKING."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
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
    found = sorted((ROOT / folder).rglob("*.py"))
    assert len(found) > 20
    return found


def test_core_knows_nothing_of_the_service() -> None:
    service = {"app", "fastapi", "starlette", "uvicorn", "pydantic", "httpx", "sqlalchemy", "msgspec", "orjson"}
    for path in sources("core"):
        assert not {name.partition(".")[0] for name in imported(path)} & service, path


def test_only_the_worker_computes() -> None:
    for path in sources("app"):
        file, names = path.relative_to(ROOT).as_posix(), imported(path)
        if file not in OF_THE_WORKER:
            assert not {name.partition(".")[0] for name in names} & HEAVY - OF_THE_CLIENT.get(file, set()), path
            of_core = {name for name in names if name.partition(".")[0] == "core"}
            assert {
                name for name in of_core if not name.startswith(("core.errors", "core.checks", "core.constants"))
            } <= {"core"}, path


PICKLING = {
    "pickle",
    "_pickle",
    "pickletools",
    "cloudpickle",
    "dill",
    "jsonpickle",
    "shelve",
    "marshal",
    "joblib",
} | {
    "multiprocessing"  # pickles what it passes on
}


def code_from_data(tree: ast.AST) -> Iterator[str]:
    """Calls that may run what is in the bytes that they read."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            called in ("eval", "exec", "compile", "__import__")
            or called.rpartition(".")[2] in ("read_pickle", "to_pickle", "unsafe_load", "full_load")
            or told.get("allow_pickle", "False") != "False"
            or (
                None in told  # `**options`: what they hold is not seen here
                and called.endswith((".load", ".loads"))
            )
            or called in ("torch.save", "yaml.load")
            or (called == "torch.load" and told.get("weights_only") != "True")
        ):
            yield ast.unparse(node)


def test_nothing_pickles() -> None:
    for path in (*sources("app"), *sources("core")):
        assert not {part for name in imported(path) for part in name.split(".")} & PICKLING, path
        assert list(code_from_data(ast.parse(path.read_text()))) == [], path


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(model, path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, None, allow_pickle=trusted)",
        "np.load(path, **options)",
        "pandas.read_pickle(path)",
        "yaml.load(text)",
        "eval(header)",
    ],
)
def test_what_may_run_data_is_seen(line: str) -> None:
    assert list(code_from_data(ast.parse(line))) == [line]
    assert not list(code_from_data(ast.parse("np.load(path, allow_pickle=False); orjson.loads(text)")))


def test_routes_are_known_to_main_alone() -> None:
    for path in sources("app"):
        if path.name != "main.py" and path.parent.name != "routes":
            assert not [name for name in imported(path) if name.startswith("app.routes")], path


def test_the_worker_needs_no_triton() -> None:
    """Which torch's builds for a CPU do not bring."""
    made = "import sys; sys.modules['triton'] = None; import app.worker.__main__, app.worker.loop"
    subprocess.run([sys.executable, "-c", made], check=True, cwd=ROOT)


def test_the_app_is_made_without_torch() -> None:
    code = (
        "import sys; from app.main import create_app; import app.cli; create_app(); "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
