"""``dictserve serve`` and ``dictserve settings``."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from app.settings import Settings

OWN_FILES = 256  # of the service, besides those of its connections; a few of these are spare connections'


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000")] = None,
    store: Annotated[Path | None, typer.Option(help="Directory of dictionaries.", show_default="models")] = None,
    objects: Annotated[
        str | None, typer.Option(help="URL of an object store for the dictionaries, as s3://bucket/prefix.")
    ] = None,
    tokens_file: Annotated[Path | None, typer.Option(help="File of the tokens that callers need.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond loopback without tokens.")
    ] = None,
) -> None:
    """Serve over HTTP until SIGTERM, SIGHUP or Ctrl-C. Options win over the environment (DICTSERVE_PORT, …)."""
    import gc
    import logging
    import signal

    _end_when_told()
    gc.disable()  # to look through what imports make, nearly all of which stays, takes a tenth of a start
    from app.worker.launch import Launched

    told = {"host": host, "port": port, "store": store, "objects": objects, "tokens_file": tokens_file}
    told |= {"insecure": insecure}
    chosen = settings_of({name: value for name, value in told.items() if value is not None})
    _require_address(chosen.host, chosen.port)
    if chosen.tokens_file is None and not chosen.insecure and not _is_loopback(chosen.host):
        sys.exit(
            f"dictserve: {chosen.host} is more than this machine, and no tokens are set: make some with "
            "`dictserve token new` and set DICTSERVE_TOKENS_FILE, or say --insecure (DICTSERVE_INSECURE=true)"
        )
    if _is_loopback(chosen.host):
        chosen = chosen.of_local_names
    worker = Launched(chosen)  # it imports for longer than all that comes here before it is needed

    try:
        from app import logs
        from app.errors import AppError
        from app.http.server import Server
        from app.main import create_app
        from app.settings import misspelt

        logs.configure(chosen.log_format, chosen.log_level)
        for told_of in misspelt(os.environ):
            logging.getLogger("dictserve").warning(told_of)
        try:
            app = create_app(chosen, worker=worker)
            app.state.services.open()
        except AppError as error:
            file = getattr(error.__cause__, "filename", None)  # of an OSError; clients are told of no paths
            sys.exit(f"dictserve: {error}" + (f" ({file})" if file else ""))
    except BaseException:
        worker.kill()  # before it can say that there is no service
        raise
    gc.enable()
    server = Server(app, _within_open_files(chosen))
    server.run()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # it has ended in order; another would but spoil what it exits with
    if not server.started:
        sys.exit(1)  # it has told why


def _end_when_told() -> None:
    """Until there is something to end in order. The first process of a container is not ended by a signal that it has
    no handler for, so that a stop during the start would go unheard."""
    import signal

    def end(number: int, frame: object) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, end)


def _require_address(host: str, port: int) -> None:
    """End with a line where nothing can listen there, before anything else is begun."""
    import socket

    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        sys.exit(f"dictserve: nothing can listen on {host!r}, port {port}: {getattr(error, 'strerror', error)}")


def _within_open_files(chosen: "Settings") -> "Settings":
    """Raise the limit on open files to what so many connections need; where the system does not let us, fewer are
    taken."""
    import logging
    import resource

    connections = chosen.max_connections
    wanted = 2 * connections + OWN_FILES  # a connection may have a file beside it
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if max(soft, allowed) >= wanted:
        return chosen
    fewer = max(1, (allowed - OWN_FILES) // 2 if allowed > 2 * OWN_FILES else allowed // 4)
    told = "%d open files are allowed, %d connections need %d: no more than %d connections are taken"
    logging.getLogger("dictserve").warning(told, allowed, connections, wanted, fewer)
    return chosen.model_copy(update={"max_connections": fewer})


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def settings() -> None:
    """Print every setting of the service, its default and its meaning."""
    from app.settings import settings_table

    typer.echo(settings_table())


def settings_of(told: dict[str, Any]) -> "Settings":
    """The settings, or an end with one line for each bad one."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from app.settings import Settings, what_is_wrong

    try:
        return Settings(**told)
    except (ValidationError, SettingsError) as error:
        sys.exit("\n".join(f"dictserve: {line}" for line in what_is_wrong(error)))
