"""A fit's progress as a bar on the terminal (stderr), or nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.client.records import Progress
from app.client.text import printable

Show = Callable[[Progress], None]


@contextmanager
def shown(wanted: bool | None, name: str) -> Iterator[Show]:
    """What to call with each progress of the fit of ``name``. None shows it where stderr is a terminal."""
    if wanted is False:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if wanted is None and not (console.is_terminal or console.is_jupyter):
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )
    # What others print meanwhile goes above the bar, where it would go to the same terminal.
    with Bars(*columns, console=console, redirect_stdout=sys.stdout is not None and sys.stdout.isatty()) as bars:
        task = bars.add_task(printable(name), total=None, told="queued")
        yield lambda p: bars.update(task, total=p.max_iter, completed=p.iteration, told=figures(p))


def figures(progress: Progress) -> str:
    """The loss and the relative error, as far as they are known."""
    told = {"loss": progress.loss, "relative error": progress.relative_error}
    return ", ".join(f"{name} {value:.4g}" for name, value in told.items() if value is not None)
