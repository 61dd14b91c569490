"""``dictserve fit``, and the jobs it starts: ``jobs``, ``cancel``."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.connection import AsJson, Url, connected
from app.commands.files import OptionalInput, read_input
from app.commands.tables import figure, print_json, print_line, print_pairs, print_rows

if TYPE_CHECKING:
    from app.client import Client, Dictionary, Job
    from app.client.records import JobRecord, Progress

HEADS = ("job", "dictionary", "state", "iteration", "loss", "created")  # of what `_row` gives
LINE_SECONDS = 1.0  # between two lines of progress where there is no terminal


def fit(
    file: OptionalInput = None,
    *,
    name: Annotated[str, typer.Option(help="Of the dictionary; a name that exists gets its next version.")],
    nb_concepts: Annotated[int, typer.Option(help="Concepts (rows of D).")],
    solver: Annotated[str | None, typer.Option(help="hals, mu, pgd or anls.")] = None,
    max_iter: Annotated[int | None, typer.Option(help="Most iterations.")] = None,
    tol: Annotated[float | None, typer.Option(help="Relative change of loss at which to stop.")] = None,
    init: Annotated[
        str | None, typer.Option(help="auto, nndsvda, random, or a dictionary to go on from (name or name@version).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same dictionary.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Processes that share out the rows.")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Make negative values zero.")] = False,
    files: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="In FILE's place: npy files of the service's data directory; as often as there are some.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of an online fit of --files, in memory that does not grow with them.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the dictionary, or print the job.")] = True,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Learn a dictionary from activations. Options that are not given have the service's defaults.

    The job goes on after Ctrl-C: `dictserve cancel` ends it.
    """
    from app.client import Job, calls

    if (file is None) == (not files):
        raise typer.BadParameter("give a FILE, or --files of the service's data directory", param_hint="FILE")
    body = None if file is None else read_input(file)[0]
    parameters: dict[str, calls.Parameter] = {
        "name": name,
        "nb_concepts": nb_concepts,
        "solver": solver,
        "max_iter": max_iter,
        "tol": tol,
        "init": init,
        "seed": seed,
        "ranks": ranks,
        "clip": clip or None,
        "epochs": epochs,
    }
    with connected(url) as client:
        job = Job(client, client.send(calls.fit(body, parameters, files or None)))
        if wait:
            dictionary = _waited(client, job)
            print_json(dictionary.record) if as_json else print_line(dictionary.reference)
        else:
            print_json(job.record) if as_json else print_line(job.id)


def jobs(
    id: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="One alone, by its id, with all that is known.")
    ] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the JOB's dictionary, and print it.")] = False,
    state: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or cancelled jobs alone.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Fits of this dictionary alone.")] = None,
    limit: Annotated[int, typer.Option(help="How many, at most.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List jobs, newest first; or show one."""
    if id is not None:
        _show(id, wait=wait, as_json=as_json, url=url)
        return
    if wait:
        raise typer.BadParameter("tell the JOB that is to be waited for", param_hint="--wait")
    with connected(url) as client:
        found = client.jobs(state=state, name=name, limit=limit)
    if as_json:
        print_json([job.record for job in found])
    else:
        print_rows(HEADS, [_row(job) for job in found])


def cancel(
    id: Annotated[str, typer.Argument(metavar="JOB", help="Its id.")], as_json: AsJson = False, url: Url = None
) -> None:
    """End a job; one that has ended stays as it is."""
    with connected(url) as client:
        job = client.job(id)
        job.cancel()
    print_json(job.record) if as_json else print_line(job.state)


def _show(id: str, *, wait: bool, as_json: bool, url: str | None) -> None:
    with connected(url) as client:
        job = client.job(id)
        if wait:
            dictionary = _waited(client, job)
            print_json(dictionary.record) if as_json else print_line(dictionary.reference)
            return
    if as_json:
        print_json(job.record)
        return
    error = job.record.get("error") or {}
    print_pairs(
        {
            **dict(zip(HEADS, _row(job), strict=True)),
            "relative error": figure(job.progress.relative_error),
            "seconds": figure(job.progress.seconds),
            "attempts": str(job.attempts),
            **({"error": f"{error['type']}: {error['detail']}"} if error else {}),
        }
    )


def _waited(client: "Client", job: "Job") -> "Dictionary":
    """The job's dictionary, with its progress on stderr: a bar on a terminal, else a line now and then."""
    from app.client.errors import Unavailable

    try:
        if sys.stderr.isatty():
            return job.wait(progress=True)
        said, next_line = None, 0.0
        for progress in job.events():
            if time.monotonic() >= next_line:
                said, next_line = _say(job.name, progress), time.monotonic() + LINE_SECONDS
        if job.progress != said:  # the last came within a second of a line
            _say(job.name, job.progress)
    except (KeyboardInterrupt, Unavailable):
        print_line(f"dictserve: job {job.id} goes on; `dictserve cancel {job.id}` ends it", err=True)
        raise
    return client.dictionary(job.fitted())


def _say(name: str, progress: "Progress") -> "Progress":
    from app.client.display import figures

    line = f"{name}: iteration {progress.iteration}/{progress.max_iter} {figures(progress)}"
    print_line(line.rstrip(), err=True)
    return progress


def _row(job: "JobRecord") -> tuple[str, ...]:
    progress = job.progress
    return (
        job.id,
        job.name if job.version is None else f"{job.name}@{job.version}",
        job.state,
        f"{progress.iteration}/{progress.max_iter}",
        "" if progress.loss is None else f"{progress.loss:.4g}",
        job.record["created_at"],
    )
