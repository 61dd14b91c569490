"""What the long runs found: kept in benchmarks/trust.json, told in docs/performance.md between its markers."""

import json
from importlib import import_module
from pathlib import Path

from benchmarks.figures import Result
from benchmarks.report import detail, goals_table, provenance

ROOT = Path(__file__).parents[3]
TRUST = ROOT / "benchmarks" / "trust.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- made by python -m tests.faults.load -->", "<!-- /made -->"


def save(case: str, result: Result) -> None:
    """Keep a case's figures, beside those of the others, and tell them."""
    known = json.loads(TRUST.read_text()) if TRUST.exists() else {}
    TRUST.write_text(json.dumps(known | {case: result.as_json()}, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(PAGE.read_text()))


def page(old: str) -> str:
    """The page with what lies between its markers made anew."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    told = {case: Result.from_json(told) for case, told in json.loads(TRUST.read_text()).items()}
    parts = [part for case, result in told.items() for part in _section(case, result)]
    return "\n\n".join([before + BEGIN, *parts, END]) + after


def _section(case: str, result: Result) -> list[str]:
    """What its module says that it does, when it was run, and what it found."""
    title, _, told = (import_module(f"tests.faults.load.{case}").__doc__ or "").strip().partition("\n\n")
    tables = [detail(table) for table in result.tables]
    return [f"### {title.rstrip('.')}", told, provenance(result.made), goals_table({case: result}), *tables]
