"""Arrays in files and pipes: the format of what comes in, and of what goes out."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from app.client.bodies import Body

FORMATS = ("npy", "csv", "json", "safetensors")
TEXT = ("csv", "json")
ARRAY_NAMES = ("data", "codes", "activations", "weights")  # under which JSON holds an array

Input = Annotated[Path, typer.Argument(metavar="FILE", help="An npy, csv, json or safetensors file; - is stdin.")]
OptionalInput = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="An npy, csv, json or safetensors file; - is stdin.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")]
Format = Annotated[
    Literal["npy", "csv", "json", "safetensors"] | None,
    typer.Option(help="Of the output.", show_default="by the output's suffix, else as the input"),
]
STDIO = Path("-")


def read_input(path: Path) -> "tuple[Body, str]":
    """A file or stdin as a body, and its format. A file goes out from the disk, unless it is JSON."""
    from app.client.bodies import MEDIA_TYPES, Held, as_array, file_body, npy_body

    format = _suffix(path) if path != STDIO else None
    if format is not None and format != "json":
        return file_body(path), format
    text = sys.stdin.buffer.read() if path == STDIO else path.read_bytes()
    format = format or _sniffed(text)
    if format == "json":  # as a body it would have to hold the other fields too
        try:
            return npy_body(as_array(_rows(text))), format
        except (TypeError, ValueError):  # numpy's words are of its own
            raise typer.BadParameter("the rows of the JSON are to hold numbers, each as many as the others") from None
    return Held(MEDIA_TYPES[format], (text,)), format


def output_format(output: Path, told: str | None, otherwise: str) -> str:
    """The format to ask for. Binary is not written to a terminal."""
    format = told or (otherwise if output == STDIO else _suffix(output) or otherwise)
    if output == STDIO and format not in TEXT and sys.stdout.isatty():
        raise typer.BadParameter(
            f"{format} is binary, and stdout is a terminal: use -o FILE, a pipe, or --format csv",
            param_hint="--output",
        )
    return format


def write_output(output: Path, content: bytes | bytearray) -> None:
    if output == STDIO:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        output.write_bytes(content)


def _suffix(path: Path) -> str | None:
    """The format that a file's name tells; None where it has no suffix."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix and suffix not in FORMATS:
        raise typer.BadParameter(f"{path}: the suffix is to be one of {', '.join(FORMATS)}")
    return suffix or None


def _sniffed(text: bytes) -> str:
    """The format of a body, by its first bytes; what is nothing else is CSV, perhaps with a header line."""
    if text.startswith(b"\x93NUMPY"):
        return "npy"
    if text[8:9] == b"{" and b"\0" in text[:8]:
        return "safetensors"
    return "json" if text.lstrip()[:1] in (b"[", b"{") else "csv"


def _rows(text: bytes) -> object:
    """Rows of numbers: alone, or in an object such as the service answers with."""
    try:
        value = json.loads(text)
        rows = value if isinstance(value, list) else next(value[name] for name in ARRAY_NAMES if name in value)
    except (TypeError, ValueError, StopIteration, RecursionError):
        raise typer.BadParameter(
            f"the JSON is neither rows of numbers nor an object with {' or '.join(ARRAY_NAMES)}"
        ) from None
    return rows
