"""The command line: ``dictserve serve`` is the service, the other commands talk to one."""

from collections.abc import Callable
from typing import Annotated

import typer

from app import __version__
from app.commands import check, concepts, dictionaries, fit, service, solve, token
from app.commands.connection import Commands

main = typer.Typer(
    name="dictserve",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Activations into concepts, as a service.",
    epilog="Exit codes: 0 good, 1 refused by the service, 2 usage or files, 3 not found, 4 unavailable, 130 Ctrl-C.",
)


@main.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"dictserve {__version__}")
        raise typer.Exit


COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit.fit,
    "encode": solve.encode,
    "decode": solve.decode,
    "ls": dictionaries.ls,
    "show": dictionaries.show,
    "compare": concepts.compare,
    "import": dictionaries.import_,
    "export": dictionaries.export,
    "label": dictionaries.label,
    "rm": dictionaries.rm,
    "jobs": fit.jobs,
    "cancel": fit.cancel,
    "serve": service.serve,
    "settings": service.settings,
    "check": check.check,
}
for _name, _command in COMMANDS.items():
    main.command(_name)(_command)
main.add_typer(token.group, name="token")
