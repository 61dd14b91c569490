"""The data sets, made in seconds from fixed seeds and passed to the libraries as npy files."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

NOISE = 0.01  # of the norm of what is planted


@dataclass(frozen=True)
class DataSet:
    """Activations to fit on, and more rows from where they come.

    Attributes:
        nb_concepts: k to factorise with.
        path, fresh_path: npy files of A (rows, n_features) and of the further rows.
        dictionary_path: npy file of the planted D, None where it is not known or not to be used.
    """

    name: str
    nb_concepts: int
    path: Path
    fresh_path: Path
    dictionary_path: Path | None = None

    @cached_property
    def A(self) -> np.ndarray:  # noqa: N802
        return np.load(self.path)  # type: ignore[no-any-return]

    @cached_property
    def fresh(self) -> np.ndarray:
        return np.load(self.fresh_path)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        rows, n_features = self.A.shape
        return f"{self.name} {rows}×{n_features}, k={self.nb_concepts}"


def digits(folder: Path, *, nb_concepts: int = 64) -> DataSet:
    """Hidden activations of a network that tells handwritten digits apart, and the same rows to encode."""
    from demo.digits import digits_activations

    A = digits_activations()
    return _saved(folder, "digits", nb_concepts, A, A)


def pixels(folder: Path) -> DataSet:
    """Handwritten digits as they are."""
    from sklearn.datasets import load_digits

    A = load_digits().data.astype(np.float32)
    return _saved(folder, "pixels of digits", 16, A, A)


def planted(folder: Path, rows: int, n_features: int, nb_concepts: int, *, name: str = "planted") -> DataSet:
    """Sparse non-negative Z (a fifth) and D (a third in use), exponential values, 1 % noise."""
    rng = np.random.default_rng(0)
    D = _sparse(rng, nb_concepts, n_features, 0.3)
    A = _noisy(rng, _sparse(rng, rows, nb_concepts, 0.2), D)
    fresh = _noisy(rng, _sparse(rng, 200, nb_concepts, 0.2), D)
    return _saved(folder, name, nb_concepts, A, fresh)


def overcomplete(folder: Path, n_features: int, nb_concepts: int, *, active: float = 20) -> DataSet:
    """Many more concepts than features, about `active` of them in a row; encodes use the planted D."""
    rng = np.random.default_rng(0)
    return _with_dictionary(folder, "overcomplete", _sparse(rng, nb_concepts, n_features, 0.3), rng, active)


def smooth(folder: Path, n_features: int, nb_concepts: int, *, active: float = 20) -> DataSet:
    """Bumps a tenth of the features wide, each of which its neighbours nearly make up; encodes use these."""
    apart = np.linspace(0, 1, nb_concepts)[:, None] - np.linspace(0, 1, n_features)
    D = np.exp(-(apart**2) / (2 * 0.05**2)).astype(np.float32)
    return _with_dictionary(folder, "smooth", D, np.random.default_rng(0), active)


def _with_dictionary(folder: Path, name: str, D: np.ndarray, rng: np.random.Generator, active: float) -> DataSet:
    """Rows of this D, each of about `active` concepts, to be encoded with it."""
    fresh = _noisy(rng, _sparse(rng, 200, len(D), active / len(D)), D)
    path = folder / f"{name}-{len(D)}-D.npy"
    np.save(path, D)
    return replace(_saved(folder, name, len(D), fresh, fresh), dictionary_path=path)


def _sparse(rng: np.random.Generator, rows: int, columns: int, density: float) -> np.ndarray:
    values = rng.standard_exponential((rows, columns), np.float32)
    return values * (rng.random((rows, columns), np.float32) < density)


def _noisy(rng: np.random.Generator, Z: np.ndarray, D: np.ndarray) -> np.ndarray:
    A = Z @ D
    noise = rng.standard_normal(A.shape, np.float32) * (NOISE * float(np.linalg.norm(A)) / A.size**0.5)
    return np.maximum(A + noise, 0)  # type: ignore[no-any-return]


def _saved(folder: Path, name: str, nb_concepts: int, A: np.ndarray, fresh: np.ndarray) -> DataSet:
    stem = f"{name}-{len(A)}-{nb_concepts}"
    path, fresh_path = folder / f"{stem}.npy", folder / f"{stem}-fresh.npy"
    np.save(path, A)
    np.save(fresh_path, fresh)
    return DataSet(name, nb_concepts, path, fresh_path)


class DataSets:
    """The data sets of a run, each made when it is first asked for; tiny ones where `quick`."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder, self.quick = folder, quick

    @cached_property
    def to_fit(self) -> list[DataSet]:
        """Digits, and planted factors of two sizes."""
        if self.quick:
            return [self.digits]
        return [self.digits, self.planted, self.large]

    @cached_property
    def digits(self) -> DataSet:
        return planted(self.folder, 200, 48, 8) if self.quick else digits(self.folder)

    @cached_property
    def planted(self) -> DataSet:
        return planted(self.folder, 300, 48, 12) if self.quick else planted(self.folder, 5_000, 768, 128)

    @cached_property
    def large(self) -> DataSet:
        if self.quick:  # with more concepts than were planted, so that a fit goes on for seconds
            return replace(planted(self.folder, 4_000, 96, 16), nb_concepts=64)
        return planted(self.folder, 20_000, 768, 256)

    @cached_property
    def small(self) -> list[DataSet]:
        """What a notebook tries first."""
        of_planted = planted(self.folder, 400, 32, 8)
        return [of_planted] if self.quick else [of_planted, pixels(self.folder)]

    @cached_property
    def wide(self) -> DataSet:
        """More concepts than features."""
        return overcomplete(self.folder, 24, 48, active=4) if self.quick else overcomplete(self.folder, 768, 1024)

    @cached_property
    def to_encode(self) -> list[DataSet]:
        """Fitted dictionaries, planted ones with more concepts than features, and one of concepts that are alike."""
        if self.quick:
            return [*self.to_fit, self.wide, smooth(self.folder, 24, 32, active=4)]
        return [*self.to_fit[:2], self.wide, overcomplete(self.folder, 768, 4096), smooth(self.folder, 256, 300)]
