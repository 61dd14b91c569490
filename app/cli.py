"""The command line: ``dictserve serve``, ``dictserve settings``."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError

from app import __version__
from app.errors import AppError
from app.main import create_app
from app.settings import Settings, settings_table

main = typer.Typer(
    name="dictserve",
    no_args_is_help=True,
    add_completion=False,
    help="Activations into concepts, as a service.",
)


@main.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"dictserve {__version__}")
        raise typer.Exit


@main.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000")] = None,
    store: Annotated[Path | None, typer.Option(help="Directory of dictionaries.", show_default="models")] = None,
) -> None:
    """Serve over HTTP until SIGTERM or Ctrl-C. Options win over the environment (DICTSERVE_PORT, …)."""
    told = {"host": host, "port": port, "store": store}
    chosen = _settings({name: value for name, value in told.items() if value is not None})
    app = create_app(chosen)
    try:
        app.state.services.open()
    except AppError as error:
        sys.exit(f"dictserve: {error}")
    logging.basicConfig(level=chosen.log_level.upper(), format="%(levelname)s: %(message)s")
    # uvicorn stops in order at SIGTERM, and then raises it again: that is not to end the process with an error.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(
        app,
        host=chosen.host,
        port=chosen.port,
        access_log=chosen.access_log,
        log_level=chosen.log_level,
        timeout_graceful_shutdown=chosen.shutdown_grace_seconds,
        server_header=False,
    )


@main.command()
def settings() -> None:
    """Print every setting, its default and its meaning."""
    typer.echo(settings_table())


def _settings(told: dict[str, Any]) -> Settings:
    """The settings, or an end with one line for each bad one."""
    try:
        return Settings(**told)
    except ValidationError as error:
        lines = [f"dictserve: setting {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        sys.exit("\n".join(lines))
