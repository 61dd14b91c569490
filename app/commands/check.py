"""``dictserve check``: whether a store is whole, with or without a service running on it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.store.check import Finding


@dataclass
class _Count:
    """How many of a kind are whole, damaged and left in their place, damaged and set aside, and cannot be read."""

    whole: int = 0
    left: int = 0
    aside: int = 0
    unread: int = 0

    @classmethod
    def of(cls, findings: "Iterator[Finding | None]", repair: bool) -> "_Count":
        """Tell the findings, and set aside what they are about where that is wanted."""
        count = cls()
        for finding in findings:
            if finding is None:
                count.whole += 1
                continue
            typer.echo(str(finding))
            if not finding.is_damage:
                count.unread += 1
            elif repair and finding.set_aside is not None:
                typer.echo(f"         set aside as {finding.set_aside()}")
                count.aside += 1
            else:
                count.left += 1
        return count

    def __str__(self) -> str:
        aside = f", {self.aside} of them set aside" if self.aside else ""
        unread = f", {self.unread} cannot be read" if self.unread else ""
        return f"{self.left + self.aside} damaged{aside}{unread}"

    @property
    def remains(self) -> bool:
        """Whether any are left that are not known to be whole."""
        return self.left + self.unread > 0


def check(
    store: Annotated[Path, typer.Option(envvar="DICTSERVE_STORE", help="Directory of dictionaries.")] = Path(
        "models"
    ),
    objects: Annotated[
        str | None,
        typer.Option(
            envvar="DICTSERVE_OBJECTS", help="URL of the object store that has the dictionaries, if one has."
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set what is damaged aside, in .dictserve/quarantine.")
    ] = False,
) -> None:
    """Read every byte of a store, and tell what is damaged.

    With --repair what is damaged is set aside, and what dead processes have left half made is removed, as at a start.

    Exit code 1 says that something is damaged and still in its place, or cannot be read. Entries that no service made
    are told, too.
    """
    from app.commands.service import settings_of
    from app.errors import AppError
    from app.store.check import damaged, damaged_checkpoints, database_fault, strays
    from app.store.store import Store

    chosen = settings_of({"store": store} | ({"objects": objects} if objects is not None else {}))
    if chosen.object_store is None and not store.is_dir():
        raise typer.BadParameter(f"{store} is not a directory", param_hint="--store")
    try:
        opened = Store(store, chosen.object_store)
    except AppError as error:
        sys.exit(f"dictserve: {error}")
    try:
        if repair:
            opened.workplace.open()
            opened.sweep()
        versions = _Count.of(damaged(opened), repair)
        checkpoints = _Count.of(damaged_checkpoints(opened), repair)
        for stray in strays(opened):
            typer.echo(f"stray: {stray.where}: {stray.what}")
        if (fault := database_fault(opened.workplace.database)) is not None:
            typer.echo(str(fault))
    except AppError as error:
        sys.exit(f"dictserve: {error}")
    finally:
        opened.workplace.close()
    typer.echo(f"{versions.whole} versions are whole, {versions}")
    if checkpoints != _Count():
        typer.echo(f"{checkpoints.whole} checkpoints of fits are whole, {checkpoints}")
    raise typer.Exit(1 if versions.remains or checkpoints.remains or fault is not None else 0)
