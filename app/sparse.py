"""Codes as compressed sparse rows (CSR): most are zero, and need not travel."""

import numpy as np


def compressed_rows(Z: np.ndarray, top_k: int | None = None) -> dict[str, np.ndarray]:
    """The non-zero codes of Z (rows, nb_concepts), or of each row only the ``top_k`` largest.

    Returns:
        ``shape`` (2,), ``indptr`` (rows + 1,), ``indices`` and ``values``, as ``scipy.sparse.csr_array`` takes them;
        the indices of a row ascend.
    """
    kept = Z > 0
    if top_k is not None and top_k < Z.shape[1]:
        largest = np.argpartition(Z, -top_k, axis=1)[:, -top_k:]
        among_largest = np.zeros_like(kept)
        np.put_along_axis(among_largest, largest, True, axis=1)
        kept &= among_largest
    indptr = np.zeros(len(Z) + 1, np.int64)
    np.cumsum(kept.sum(axis=1), out=indptr[1:])
    return {
        "shape": np.array(Z.shape, np.int64),
        "indptr": indptr,
        "indices": np.nonzero(kept)[1].astype(np.int32),
        "values": Z[kept],
    }
