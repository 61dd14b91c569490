"""The rows of a fit's files, read in place a slice at a time, however many there are."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from app.formats.npy_file import unchanged
from app.worker.messages import Files
from core.checks import check_scale


class FileRows:
    """Rows of all files in order, as a matrix (rows, n_features) of which slices can be had: float32, checked.

    No file stays open, and each is looked at anew with every slice: one that has changed is not read on.
    """

    def __init__(self, files: Files, n_features: int) -> None:
        self._root, self._files, self._clip = Path(files.root), files.files, files.clip
        self._ends = list(accumulate(file.rows for file in files.files))
        self.shape = self._ends[-1], n_features
        self._largest = 0.0  # value that was read

    def __getitem__(self, rows: slice) -> np.ndarray:
        """
        Raises:
            DataChanged: a file is not what it was when the fit was accepted.
            DataUnavailable: the directory is away.
            InvalidArray: a value is not finite, negative (unless clipped) or beyond float32; tells file and place.
        """
        parts, start = [], rows.start
        while start < rows.stop:
            index = bisect_right(self._ends, start)
            stop = min(rows.stop, self._ends[index])
            parts.append(self._read(index, start, stop))
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read(self, index: int, start: int, stop: int) -> np.ndarray:
        expected = self._files[index]
        before = self._ends[index] - expected.rows
        with unchanged(self._root, expected, self.shape[1]) as file:
            block, largest = file.read_checked(range(start - before, stop - before), clip=self._clip)
        self._largest = max(self._largest, largest)
        return block

    def check_scale(self) -> None:
        """Raises OutOfRange where all that was read is too small for float32."""
        check_scale(self._largest, name="activations")
