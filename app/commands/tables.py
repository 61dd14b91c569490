"""What commands print: tables for people, JSON for programs."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# What moves a terminal's cursor, or sets its title: whoever may label a dictionary is not to do that to who looks.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))  # which escapes the characters below a space


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; into a pipe it goes at its full width, so that nothing is cut off."""
    from rich.table import Table

    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(_written, row))
    _print(table)


def print_pairs(pairs: Mapping[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "figure", box=None, pad_edge=False, show_header=False)
    for name, figure in pairs.items():
        table.add_row(Text(name, style="bold"), _written(figure))
    _print(table)


def figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _written(text: str) -> Any:
    """What people have written: it is no markup, and no order to the terminal."""
    from rich.text import Text

    return Text(_CONTROL.sub(lambda found: repr(found[0])[1:-1], text))


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


WIDE = 500
