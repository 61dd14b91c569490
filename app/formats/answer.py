"""What an answer with arrays holds, before a format makes bytes of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Content = bytes | tuple[memoryview, ...]  # of a body: whole, or in parts
Scalar = str | int | float | bool


@dataclass(frozen=True)
class Answer:
    """Scalars and arrays by name; the first array is the one that was asked for, further ones go with it."""

    scalars: Mapping[str, Scalar]
    arrays: Mapping[str, np.ndarray]

    @property
    def main(self) -> np.ndarray:
        return next(iter(self.arrays.values()))

    def as_text(self) -> dict[str, str]:
        """The scalars as text, for headers and for formats whose metadata are strings."""
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in self.scalars.items()
        }
