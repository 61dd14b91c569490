"""``python -m benchmarks.gpu_counts``: what an encode on a GPU takes, counted where there is none.

Triton's interpreter runs the kernels of `core.kernels.cuda` on a few rows of the data that encodes are timed on; what
is counted depends on the machine only by way of the dictionaries, which are fitted first: rounds, gradients of all
concepts by their precision, and products of a working set's gram with a vector. Factors of products on tensor
cores are rounded as these round them.
"""

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read as kernels are defined

import numpy as np
import torch

from benchmarks import data, tensor_cores
from core import NMF, kernels
from core.kernels.cuda import encode, interface
from core.kernels.precision import Precision

ROWS = 8


class Counted(encode.Encode):
    """Counts what is done, as it is done."""

    seen: "list[Counted]" = []  # noqa: RUF012 - of the one call under way

    def begin(self) -> None:
        super().begin()
        self.rounds, self.sizes = 0, list[int]()
        self.looks = Counter[Precision]()
        Counted.seen.append(self)

    def look(self, precision: Precision, some: torch.Tensor | None = None) -> None:
        super().look(precision, some)
        self.looks[precision] += len(self.rows.index if some is None else some)

    def lower(self, size: int) -> None:
        self.rounds += len(self.rows.index)
        self.sizes.append(int(self.rows.wanted.max()))
        super().lower(size)


def count(A: np.ndarray, D: np.ndarray) -> str:
    products = torch.zeros(len(A), dtype=torch.int64)
    Counted.seen.clear()
    prepared = kernels.prepare(torch.from_numpy(np.ascontiguousarray(D)), hold_gram=len(D) <= 4096)
    for i, row in enumerate(torch.from_numpy(np.ascontiguousarray(A)).split(1)):
        _, residual = interface.solve(row, prepared, 1e-6, 300)
        assert float(residual.max()) <= 1e-6
        products[i] = int(Counted.seen[-1].rows.spent.sum())
    n, seen = len(A), Counted.seen
    looks = (sum(e.looks[kind] for e in seen) / n for kind in Precision)
    return (
        f"| {sum(e.rounds for e in seen) / n:.1f} | {' | '.join(f'{each:.1f}' for each in looks)} | "
        f"{products.double().mean():.0f} | {max(size for e in seen for size in e.sizes)} |"
    )


def problems(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, A, D)."""
    for k in (64, 256):
        digits = data.digits(folder, nb_concepts=k)
        _, D = NMF(k, seed=0).fit(digits.A)
        yield f"digits, k={k}, 512 features", digits.fresh, D.numpy()
    for k in (1024, 4096):
        wide = data.overcomplete(folder, 768, k)
        assert wide.dictionary_path is not None
        yield f"overcomplete, k={k}, 768 features", wide.fresh, np.load(wide.dictionary_path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_counts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of each data set")
    given = parser.parse_args()
    encode.product, encode.LEAST_PRODUCTS = tensor_cores.product, 0  # type: ignore[assignment]
    interface.Encode = Counted  # type: ignore[misc]
    print("| a row of | rounds | gradients in TF32 | split | float32 | products of its gram | largest working set |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, A, D in problems(Path(folder)):
            print(f"| {name} {count(A[: given.rows], D)}", flush=True)


if __name__ == "__main__":
    main()
