"""``dictserve check``: whether a store is whole, with or without a service running on it."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def check(
    store: Annotated[Path, typer.Option(envvar="DICTSERVE_STORE", help="Directory of dictionaries.")] = Path(
        "models"
    ),
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged versions aside, in .dictserve/quarantine of the store.")
    ] = False,
) -> None:
    """Read every byte of a store, and tell what is damaged. Nothing is ever deleted.

    Exit code 1 says that something is damaged and still in its place. Entries that no service made are told, too.
    """
    from app.check import damaged, database_fault, strays
    from app.errors import AppError
    from app.store import Store

    if not store.is_dir():
        raise typer.BadParameter(f"{store} is not a directory", param_hint="--store")
    opened = Store(store)
    try:
        if repair:
            opened.open()
        whole = left = aside = 0
        for finding in damaged(opened):
            if finding is None:
                whole += 1
                continue
            typer.echo(f"damaged: {finding.where}: {finding.what}")
            if repair and finding.version is not None:
                typer.echo(f"         set aside as {opened.set_aside(*finding.version)}")
                aside += 1
            else:
                left += 1
        for stray in strays(opened):
            typer.echo(f"stray: {stray.where}: {stray.what}")
        if (fault := database_fault(opened.database)) is not None:
            typer.echo(f"damaged: {fault.where}: {fault.what}")
            left += 1
    except AppError as error:
        sys.exit(f"dictserve: {error}")
    finally:
        opened.close()
    typer.echo(
        f"{whole} versions are whole, {left + aside} damaged" + (f", {aside} of them set aside" if aside else "")
    )
    raise typer.Exit(1 if left else 0)
