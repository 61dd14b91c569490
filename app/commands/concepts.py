"""Concepts as tables: the strongest of a dictionary, one in full, and those of two dictionaries that match."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from app.commands.connection import AsJson, Url, connected
from app.commands.solve import Reference
from app.commands.tables import figure, print_json, print_pairs, print_rows

STRONGEST = 10
SHOWN_PAIRS = 10  # the best, and the worst

Record = Mapping[str, Any]


def print_strongest(columns: Record) -> None:
    """A table of the concepts with most of the energy; nothing where that is not known."""
    energy = columns["energy"]
    if energy is None:
        return
    strongest = sorted(range(len(energy)), key=lambda j: -energy[j])[:STRONGEST]
    print_rows(
        ("concept", "energy", "uses", "largest", "nearest", "cosine", "label"),
        [
            (
                str(j),
                figure(energy[j]),
                _share(_at(columns["uses"], j), columns["rows"]),
                figure(_at(columns["largest"], j)),
                _concept(_at(columns["nearest"], j)),
                figure(_at(columns["cosine"], j)),
                columns["labels"].get(str(j), ""),
            )
            for j in strongest
        ],
    )


def print_concept(told: Record) -> None:
    from app.commands.curve import bars

    state = [name for name, holds in (("dead", told["dead"]), ("near-dense", told["near_dense"])) if holds]
    pairs = {
        "dictionary": f"{told['dictionary']}@{told['version']}",
        "concept": str(told["concept"]),
        "label": told["label"] or "",
        "state": ", ".join(state),
        "norm": figure(told["norm"]),
        "energy": figure(told["energy"]),
        "uses": _share(told["uses"], told["rows"]),
        "largest": figure(told["largest"]),
    }
    if told["histogram"] is not None:
        pairs["codes"] = f"0 {bars(told['histogram'])} {figure(told['largest'])}"
    print_pairs({name: text for name, text in pairs.items() if text})
    if told["top_rows"]:
        print_rows(("row", "code"), [(str(top["row"]), figure(top["code"])) for top in told["top_rows"]])
    for name, score in (("nearest", "cosine"), ("together", "overlap")):
        if told[name]:
            rows = [(str(near["concept"]), figure(near[score]), near["label"] or "") for near in told[name]]
            print_rows((name, score, "label"), rows)


def compare(
    a: Reference,
    b: Annotated[str, typer.Argument(metavar="DICTIONARY", help="The other one.")],
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Match the concepts of two dictionaries, and tell how alike they are."""
    with connected(url) as client:
        told = client.compare(a, b)
    if as_json:
        print_json(told)
        return
    names = [f"{told[side]['dictionary']}@{told[side]['version']}" for side in ("a", "b")]
    print_pairs(
        {
            **{name: f"{told[side]['nb_concepts']} concepts" for name, side in zip(names, ("a", "b"), strict=True)},
            "mean cosine": figure(told["mean_cosine"]),
            "median cosine": figure(told["median_cosine"]),
            "stability": figure(told["stability"]),
        }
    )
    pairs = told["matches"]
    worst = pairs[max(SHOWN_PAIRS, len(pairs) - SHOWN_PAIRS) :]
    for head, shown in (("best", pairs[:SHOWN_PAIRS]), ("worst", worst)):
        if shown:
            rows = [(str(pair["a"]), str(pair["b"]), figure(pair["cosine"])) for pair in shown]
            print_rows((f"{head}: {names[0]}", names[1], "cosine"), rows)


def _at(column: list[Any] | None, j: int) -> Any:
    return None if column is None else column[j]


def _concept(j: int | None) -> str:
    return "" if j is None or j < 0 else str(j)


def _share(uses: int | None, rows: int | None) -> str:
    if uses is None:
        return ""
    return f"{uses} ({uses / rows:.1%})" if rows else str(uses)
