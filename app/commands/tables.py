"""What commands print: tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; into a pipe it goes at its full width, so that nothing is cut off."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # what people have written is no markup
    _print(table)


def print_pairs(pairs: Mapping[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "figure", box=None, pad_edge=False, show_header=False)
    for name, figure in pairs.items():
        table.add_row(Text(name, style="bold"), Text(figure))
    _print(table)


def figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


WIDE = 500
