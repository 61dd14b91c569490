"""Dictionaries: ``ls``, ``show``, ``rm``, ``import``, ``export``."""

import re
from contextlib import suppress
from typing import Annotated

import typer

from app.commands.concepts import print_concept, print_strongest
from app.commands.connection import AsJson, Url, connected
from app.commands.files import STDIO, Format, Input, Output, output_format, read_input, write_output
from app.commands.solve import Reference
from app.commands.tables import figure, print_json, print_line, print_pairs, print_rows

CONCEPT = re.compile("[0-9]{1,18}")  # there are not as many; and of thousands of digits Python makes no number
METRICS = (
    "relative_error",
    "r2",
    "l0_mean",
    "sparsity",
    "dead_concepts",
    "near_dense_concepts",
    "duplicates",
    "coherence",
    "kkt_residual",
)


def ls(as_json: AsJson = False, url: Url = None) -> None:
    """List the latest version of every dictionary."""
    with connected(url) as client:
        found = client.dictionaries()
    if as_json:
        print_json([dictionary.record for dictionary in found])
        return
    rows = [
        (
            d.reference,
            str(d.nb_concepts),
            str(d.n_features),
            figure(d.metrics.get("relative_error")),
            figure(d.metrics.get("l0_mean")),
            d.record["created_at"],
        )
        for d in found
    ]
    print_rows(("dictionary", "concepts", "features", "relative error", "mean L0", "created"), rows)


def show(
    dictionary: Reference,
    concept: Annotated[int | None, typer.Option(min=0, help="One of its concepts, in its place.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show a dictionary's figures, its strongest concepts, and the loss of its fit as a curve."""
    from app.commands.curve import curve

    with connected(url) as client:
        if concept is not None:
            told = client.concept(dictionary, concept)
            print_json(told) if as_json else print_concept(told)
            return
        found = client.dictionary(dictionary)
        if as_json:
            print_json(found.record)
            return
        columns = client.concepts(found.reference)
    record = found.record
    worst = [f"{told['feature']} ({told['r2']:.4g})" for told in found.metrics.get("worst_features", [])]
    print_pairs(
        {
            "dictionary": found.reference,
            "versions": ", ".join(map(str, record["versions"])),
            "concepts": str(found.nb_concepts),
            "features": str(found.n_features),
            "created": record["created_at"],
            "sha256": record["sha256"],
            **{name: figure(value) for name, value in record["parameters"].items() if value is not None},
            **{name: figure(found.metrics[name]) for name in METRICS if name in found.metrics},
            **({"worst features (r2)": ", ".join(worst)} if worst else {}),
            **{f"label {key}": label for key, label in record["labels"].items()},
        }
    )
    print_strongest(columns)
    if found.loss_history:
        typer.echo(curve(found.loss_history))


def rm(
    dictionary: Reference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
) -> None:
    """Remove a version (name@version), or all of a name. Asks first."""
    from app.client.errors import UnknownDictionary
    from app.client.text import printable

    with connected(url) as client:
        found = client.dictionary(dictionary)
        versions = [found.version] if "@" in dictionary else found.record["versions"]
        references = [f"{found.name}@{version}" for version in versions]
        if not yes and not typer.confirm(f"Remove {printable(', '.join(references))}?", err=True):
            raise typer.Exit(1)
        for reference in references:  # not the name: a version that was made meanwhile was not asked about
            with suppress(UnknownDictionary):  # gone already
                client.remove(reference)


def label(
    dictionary: Reference,
    labels: Annotated[list[str] | None, typer.Argument(metavar="[KEY=TEXT]...", help="Of the dictionary.")] = None,
    concept: Annotated[
        list[str] | None, typer.Option(metavar="N=TEXT", help="What a concept shows; as often as there are some.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Label a version, or its concepts. No TEXT takes a label away."""
    of_dictionary = dict(_parted(told, "KEY=TEXT") for told in labels or ())
    of_concepts = dict(_parted(told, "N=TEXT") for told in concept or ())
    if not (of_dictionary or of_concepts):
        raise typer.BadParameter("give a label, as task=vision or --concept 3=edges", param_hint="KEY=TEXT")
    if wrong := [number for number in of_concepts if not CONCEPT.fullmatch(number)]:
        raise typer.BadParameter(f"{wrong[0]!r:.60} is not the number of a concept", param_hint="--concept")
    with connected(url) as client:
        labelled = client.label(
            dictionary, of_dictionary, concepts={int(number): text for number, text in of_concepts.items()}
        )
    print_json(labelled.record) if as_json else print_line(labelled.reference)


def _parted(told: str, form: str) -> tuple[str, str | None]:
    key, separator, text = told.partition("=")
    if not (key and separator):
        raise typer.BadParameter(f"{told!r} is not {form}", param_hint=form)
    return key, text or None


def import_(
    name: Annotated[str, typer.Argument(help="Of the dictionary; a name that exists gets its next version.")],
    file: Input,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Take in a dictionary that was made elsewhere: D, a concept a row."""
    from app.client import Dictionary, calls

    body, _ = read_input(file)
    with connected(url) as client:
        made = Dictionary(client, client.send(calls.import_dictionary(name, body)))
    print_json(made.record) if as_json else print_line(made.reference)


def export(dictionary: Reference, output: Output = STDIO, format: Format = None, url: Url = None) -> None:
    """Write D, a concept a row."""
    from app.client import calls

    wanted = output_format(output, format, "npy")
    with connected(url) as client:
        write_output(output, client.send(calls.weights_as(wanted, dictionary)))
