"""``python -m benchmarks.report``: parts of pages in docs/ from the committed figures."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.cases import NAMES, OF_THE_SERVICE
from benchmarks.figures import Cell, Result, Table, number

RESULTS, SERVICE = (Path(__file__).with_name(name) for name in ("results.json", "service.json"))
DOCS = Path(__file__).parent.parent / "docs"
APART = {DOCS / "scale.md": ("capacity",), DOCS / "choosing.md": ("choosing",)}
PAGES = {DOCS / "performance.md": tuple(name for name in NAMES if (name,) not in APART.values()), **APART}
BEGIN, END = "<!-- made by python -m benchmarks.report -->", "<!-- /made -->"


def main() -> None:
    write_pages()
    print(goals_table(read()))


def file_of(case: str) -> Path:
    """The file that holds a case's figures."""
    return SERVICE if case in OF_THE_SERVICE else RESULTS


def read() -> dict[str, Result]:
    told = {name: told for path in (RESULTS, SERVICE) for name, told in json.loads(path.read_text()).items()}
    return {name: Result.from_json(of_case) for name, of_case in told.items()}


def write_pages() -> None:
    for path in PAGES:
        path.write_text(page(path, read()))


def page(path: Path, results: Mapping[str, Result]) -> str:
    """The page with what lies between its markers made anew."""
    old = path.read_text()
    results = {name: results[name] for name in PAGES[path] if name in results}
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{report(results)}\n\n{END}{after}"


def report(results: Mapping[str, Result]) -> str:
    parts = []
    for name, result in results.items():
        title, _, how = (import_module(f"benchmarks.cases.{name}").__doc__ or "").partition("\n")
        parts += [f"## {title.rstrip('.')}", *filter(None, [how.strip()]), provenance(result.made)]
        parts += [goals_table({name: result})] if result.figures else []
        parts += [detail(table) for table in result.tables]
    return "\n\n".join(parts)


def goals_table(results: Mapping[str, Result]) -> str:
    rows = [[f.name, f.shown, f.goal, f.verdict, f.note] for result in results.values() for f in result.figures]
    return _table(["figure", "value", "goal", "", "beside it"], rows)


def detail(table: Table) -> str:
    return f"{table.title}:\n\n{_table(table.columns, [[_cell(x) for x in row] for row in table.rows])}"


def provenance(made: Mapping[str, Any]) -> str:
    versions = {**made["versions"], **made["libraries"]}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"`{made['command']}`, {made['date']}, {made['seconds']} s on {made['cores']} cores "
        f"({made['processor']}), Python {made['python']}; {told}."
    )


def _cell(x: Cell) -> str:
    if x is None:
        return ""
    return x if isinstance(x, str) else str(x) if isinstance(x, int) else number(x)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
