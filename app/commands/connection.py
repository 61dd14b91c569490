"""What all commands that talk to a service share: its URL, the client, and what an error ends the process with."""

import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from app.commands.tables import print_line

if TYPE_CHECKING:
    from app.client import Client

RETRIES = 2  # a person waits less long than a program for a service that is not there, or does not say how long
REFUSED, USAGE, NOT_FOUND, UNAVAILABLE = 1, 2, 3, 4
COMMANDS_OF = {"GET /dictionaries": "dictserve ls", "GET /jobs": "dictserve jobs"}  # of what the service names

Url = Annotated[
    str | None,
    typer.Option(
        envvar="DICTSERVE_URL",
        help="The service; the token that it may want is taken from DICTSERVE_TOKEN.",
        show_default="http://127.0.0.1:8000",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON: a record as the HTTP API has it, or a list of them.")
]


def connected(url: str | None) -> "Client":
    """A client of the service at this URL; its token comes from DICTSERVE_TOKEN, which no list of processes shows."""
    from app.client import Client

    _tell_waits()
    try:
        return Client(url, retries=RETRIES)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


class _Waits(logging.Handler):
    """Has who sits there know what the client waits for, which may take minutes."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(record.getMessage(), err=True)


def _tell_waits() -> None:
    logger = logging.getLogger("dictserve.client")
    if not any(isinstance(handler, _Waits) for handler in logger.handlers):
        logger.addHandler(_Waits())
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Commands(TyperGroup):
    """The commands, whose errors end the process with a line on stderr and an exit code that says which kind."""

    def main(self, *args: Any, **options: Any) -> Any:
        _open_streams()
        try:
            return super().main(*args, **options)
        except Exception as error:
            code = exit_code(error)
            if code is None:
                raise
            print_line(f"dictserve: {_told_here(error)}", err=True)
            try:
                sys.stdout.flush()
            except OSError:  # as just told: Python would tell it again when it ends
                sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
            sys.exit(code)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer's own name for the class
        try:
            return super().invoke(ctx)
        finally:
            sys.stdout.flush()  # while an error still has an exit code


def _open_streams() -> None:
    """Standard streams that can be read, and written as far as there is room for it."""
    if sys.stdin is None:  # closed by whoever started this: nothing comes from there
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and isinstance(out.buffer, io.RawIOBase):
        # By PYTHONUNBUFFERED: it takes a part of what is written, and nobody asks how much.
        encoding = out.encoding
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(out.detach()), encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack characters that labels and curves have
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _told_here(error: Exception) -> str:
    """The service's words, for who is at a terminal."""
    from app.client.errors import Unauthorized

    told = str(error)
    for over_http, here in COMMANDS_OF.items():
        told = told.replace(f"{over_http} lists", f"`{here}` lists")
    return f"{told} (here it is taken from DICTSERVE_TOKEN)" if isinstance(error, Unauthorized) else told


def exit_code(error: Exception) -> int | None:
    """Of what is expected to go wrong; None for an error that is not ours."""
    from app.client.errors import DictserveError, InvalidRequest, NotFound, Unavailable

    match error:
        case InvalidRequest(status=None):  # nothing was sent of it
            return USAGE
        case NotFound():
            return NOT_FOUND
        case Unavailable():
            return UNAVAILABLE
        case DictserveError():
            return REFUSED
        case OSError():  # a file that cannot be read or written
            return USAGE
    return None
