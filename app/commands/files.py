"""Arrays in files and pipes: the format of what comes in, and of what goes out."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from app.client.bodies import Array, Body

# those of app.client.bodies.MEDIA_TYPES, which takes a moment to import
FormatName = Literal["npy", "csv", "json", "safetensors"]
FORMATS: tuple[str, ...] = get_args(FormatName)
TEXT = ("csv", "json")
ARRAY_NAMES = ("data", "codes", "activations", "weights")  # under which JSON holds an array

Input = Annotated[Path, typer.Argument(metavar="FILE", help="An npy, csv, json or safetensors file; - is stdin.")]
OptionalInput = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="An npy, csv, json or safetensors file; - is stdin.")
]


def _with_folder(output: Path) -> Path:
    """Looked at before anything is sent, or computed."""
    if output != STDIO and not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}")
    return output


Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where to write; - is stdout.",
        dir_okay=False,
        writable=True,
        callback=_with_folder,
    ),
]
Format = Annotated[
    FormatName | None,
    typer.Option(help="Of the output.", show_default="by the output's suffix, else as the input"),
]
STDIO = Path("-")
SNIFFED_BYTES = 4096  # text has no zero among them


def read_input(path: Path) -> "tuple[Body, str]":
    """A file or stdin as a body, and its format. A file goes out from the disk, unless it is JSON; what is no file,
    as a pipe, is read as stdin is."""
    from app.client.bodies import file_body

    format = _suffix(path)
    if format is not None and format != "json" and path.is_file():
        return file_body(path), format
    return _body(*_read(path))


def read_codes(path: Path) -> "tuple[Body, str]":
    """As ``read_input``, of codes, which may also be what `dictserve encode` writes of them in several arrays."""
    from app.client.codes import codes_body

    body, format = read_input(path)
    try:
        return codes_body(body), format
    except ValueError as error:
        raise typer.BadParameter(f"{path}: {error}") from None


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
    """A file is there whole, or as it was before."""
    if output == STDIO:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    elif output.is_symlink() or (output.exists() and not output.is_file()) or not os.access(output.parent, os.W_OK):
        output.write_bytes(content)  # /dev/stdout, a pipe; or nothing can be put beside it
    else:
        beside = output.with_name(f".dictserve-{os.getpid()}.part")
        try:
            beside.write_bytes(content)
            if output.exists():
                shutil.copymode(output, beside)
            beside.replace(output)
        finally:
            beside.unlink(missing_ok=True)


def _read(path: Path) -> tuple[bytes, str]:
    """All of a file or of stdin, and its format."""
    text = sys.stdin.buffer.read() if path == STDIO else path.read_bytes()
    return text, _suffix(path) or _sniffed(text)


def _body(text: bytes, format: str) -> "tuple[Body, str]":
    from app.client.bodies import MEDIA_TYPES, Held, as_array, npy_body

    if format != "json":
        return Held(MEDIA_TYPES[format], (text,)), format
    try:  # as a body it would have to hold the other fields too
        return npy_body(as_array(_rows(text))), format
    except (TypeError, ValueError):  # numpy's words are of its own
        raise typer.BadParameter("the rows of the JSON must hold numbers, all rows equally many") from None


def _dense(parts: "Mapping[str, Any]") -> "Array":
    from app.client.answers import dense

    try:
        return dense(parts)
    except ValueError as error:
        raise typer.BadParameter(f"the compressed rows cannot be read: {error}") from None


def _suffix(path: Path) -> str | None:
    """The format that a file's name tells; None where it has no suffix."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix and suffix not in FORMATS:
        raise typer.BadParameter(f"{path}: the suffix is to be one of {', '.join(FORMATS)}")
    return suffix or None


def _sniffed(text: bytes) -> str:
    """The format of a body, by its first bytes; text that is nothing else is CSV, perhaps with a header line."""
    if text.startswith(b"\x93NUMPY"):
        return "npy"
    if text[8:9] == b"{" and b"\0" in text[:8]:
        return "safetensors"
    if text.lstrip()[:1] in (b"[", b"{"):
        return "json"
    if b"\0" in text[:SNIFFED_BYTES]:
        raise typer.BadParameter("this is of no known format: npy, safetensors, JSON and CSV are read")
    return "csv"


def _rows(text: bytes) -> object:
    """Rows of numbers: alone, or in an object such as the service answers with."""
    try:
        value = json.loads(text)
        if isinstance(value, dict) and value.get("indptr") is not None:
            return _dense(value)
        rows = value if isinstance(value, list) else next(value[name] for name in ARRAY_NAMES if name in value)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"this is no JSON: {error}") from None
    except (TypeError, ValueError, StopIteration, RecursionError):
        raise typer.BadParameter(
            f"the JSON is neither rows of numbers nor an object with {' or '.join(ARRAY_NAMES)}"
        ) from None
    return rows
