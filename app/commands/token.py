"""``dictserve token new``: a caller of the service, and the token that lets them in."""

from pathlib import Path
from typing import Annotated

import typer

group = typer.Typer(no_args_is_help=True, help="Tokens that callers of the service need.")


@group.callback()
def _group() -> None:
    pass


@group.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose it is: in logs and messages.")],
    file: Annotated[
        Path, typer.Option(envvar="DICTSERVE_TOKENS_FILE", help="The tokens file; made where there is none.")
    ],
    write: Annotated[
        bool, typer.Option("--write", help="May fit, import, label and remove, too; else encode, decode and list.")
    ] = False,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests.")] = None,
    rows_per_minute: Annotated[int | None, typer.Option(min=1, help="Most rows of all requests.")] = None,
) -> None:
    """Make a token, print it, and add its hash to the file. It cannot be shown again; the service sees it at once.

    To take it back, remove its line from the file.
    """
    from app.errors import TokensUnreadable
    from app.http.tokens import READ, WRITE, add, new_token

    if not name or name != "".join(name.split()) or not name.isprintable():  # of a line, its parts apart by blanks
        raise typer.BadParameter(f"{name!r} is no name: one has no blanks", param_hint="NAME")
    token = new_token()
    limits = {"requests_per_minute": requests_per_minute, "rows_per_minute": rows_per_minute}
    told = {limit: value for limit, value in limits.items() if value is not None}
    try:
        add(file, name, [READ, WRITE] if write else [READ], token, told)
    except TokensUnreadable as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(token)
