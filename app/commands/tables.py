"""What commands print: tables for people, JSON for programs."""

import codecs
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

_CONTROL = re.compile(r"[\x7f-\x9f]")  # those that JSON leaves as they are


def print_json(value: Any) -> None:
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"  # what another lacks would be lost
    text = json.dumps(value, indent=2, ensure_ascii=not is_utf8)
    print(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_line(text: str, *, err: bool = False) -> None:
    """What a service has told, in a line; what goes to stderr ends nothing where nobody can read it."""
    from app.client.text import printable

    with suppress(OSError) if err else nullcontext():
        print(printable(text), file=sys.stderr if err else sys.stdout, flush=True)


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table. It has its full width, so that nothing is cut off: a terminal that is narrower breaks its lines."""
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

    from app.client.text import printable

    return Text(printable(text))


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=WIDE)
    with console.capture() as printed:
        console.print(table)
    lines = [line.rstrip() for line in printed.get().split("\n")]  # one long text pads all of its column
    print("\n".join(lines), end="")


WIDE = 10**9
