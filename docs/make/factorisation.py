"""docs/pictures/factorisation.svg: A ≈ Z·D of real activations, as three grids of shades."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from core import NMF
from demo.digits import digits_activations

PICTURE = Path(__file__).parents[1] / "pictures" / "factorisation.svg"

NB_CONCEPTS = 8
FEATURES = 32  # shown: those that vary most
CELL, GAP, LEFT, TOP = 14, 56, 34, 58
STYLE = """
text { font-family: sans-serif }
.ground { fill: #ffffff } .grid { fill: #e9efee } .cell { fill: #00695c } text { fill: #212121 }
@media (prefers-color-scheme: dark) {
.ground { fill: #1e2129 } .grid { fill: #2b303b } .cell { fill: #64d8cb } text { fill: #eceff1 } }
""".strip()


def picture() -> str:
    """One row of A for each digit, and those of Z; the concepts are of a fit to all rows and features."""
    A = digits_activations()
    nmf = NMF(NB_CONCEPTS, seed=0)
    Z, D = (factor.numpy() for factor in nmf.fit(A))
    error = float(np.linalg.norm(A - Z @ D) / np.linalg.norm(A))
    labels = load_digits().target
    rows = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
    features = np.sort(np.argsort(A.std(axis=0))[-FEATURES:])

    x_codes = LEFT + FEATURES * CELL + GAP
    x_concepts = x_codes + NB_CONCEPTS * CELL + GAP
    width = x_concepts + FEATURES * CELL + LEFT // 2
    height = TOP + len(rows) * CELL + 46
    middle = TOP + len(rows) * CELL / 2 + 8
    told = (
        f"Activations of ten handwritten digits, {FEATURES} of {A.shape[1]} features, beside their codes for "
        f"{NB_CONCEPTS} concepts and the dictionary; the relative error over all {len(A)} rows is {error:.3f}."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>A ≈ Z·D</title><desc>{told}</desc><style>{STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}" rx="8"/>',
        *_grid(A[np.ix_(rows, features)], LEFT, "A", "activations: a row an image, a column a neuron"),
        *_grid(Z[rows], x_codes, "Z", "codes"),
        *_grid(D[:, features], x_concepts, "D", "dictionary: a row a concept"),
        _sign("≈", x_codes - GAP / 2, middle),
        _sign("·", x_concepts - GAP / 2, middle),
        *(
            f'<text x="{LEFT - 8}" y="{TOP + i * CELL + 11}" font-size="11" text-anchor="end">{digit}</text>'
            for i, digit in enumerate(range(10))
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(values: np.ndarray, x: float, name: str, meaning: str) -> Iterator[str]:
    """A matrix, darker (on a dark ground brighter) where it is larger; empty where it is zero."""
    rows, columns = values.shape
    yield f'<text x="{x}" y="{TOP - 26}" font-size="20" font-weight="bold">{name}</text>'
    yield f'<text x="{x}" y="{TOP - 9}" font-size="12">{meaning}</text>'
    yield f'<rect class="grid" x="{x}" y="{TOP}" width="{columns * CELL}" height="{rows * CELL}"/>'
    yield f'<text x="{x}" y="{TOP + rows * CELL + 18}" font-size="12">{rows} × {columns}</text>'
    for (i, j), shade in np.ndenumerate(values / values.max()):
        if round(float(shade), 2) > 0:
            place = f'x="{x + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 1}" height="{CELL - 1}"'
            yield f'<rect class="cell" {place} fill-opacity="{shade:.2f}"/>'


def _sign(sign: str, x: float, y: float) -> str:
    return f'<text x="{x}" y="{y}" font-size="28" text-anchor="middle">{sign}</text>'
