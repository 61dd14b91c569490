"""Between the service's messages and `core`: what a fit is asked for, and what comes of it."""

import numpy as np
import orjson
import torch

from app.store import figures_file
from app.store.checkpoint_file import Rows
from app.worker.messages import Fit, Fitted
from core import NMF
from core.metrics import Measured

PROGRESS_SECONDS = 0.1  # between two progress messages


def nmf_of(fit: Fit, device: torch.device) -> NMF:
    return NMF(
        fit.nb_concepts,
        device=device,
        solver=fit.solver,
        tol=fit.tol,
        init=None if fit.init == "auto" else fit.init,
        seed=fit.seed,
    )


def mapped(fit: Fit) -> np.ndarray:
    """The activations of a fit, in their file."""
    return np.memmap(fit.path, np.float32, "c", fit.data_offset, (fit.rows, fit.n_features))  # "c": never written


def fitted_of(
    fit: Fit, nmf: NMF, measured: Measured, losses: np.ndarray, seconds: float
) -> tuple[Fitted, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The message that ends a fit, and its arrays."""
    D = nmf.get_dictionary().detach().cpu().contiguous().numpy()
    metrics = np.frombuffer(orjson.dumps(measured.metrics), np.uint8)
    figures = {name: tensor.cpu().contiguous().numpy() for name, tensor in measured.figures.known().items()}
    return Fitted(fit.job, seconds), D, metrics, losses, np.frombuffer(figures_file.written(figures), np.uint8)


def rows_of(tensor: torch.Tensor) -> Rows:
    """A tensor of any device and layout, of which no more than what is read at a time comes to the host."""
    dtype = "F64" if tensor.dtype == torch.float64 else "F32"

    def read(rows: slice) -> np.ndarray:
        array: np.ndarray = tensor[rows].cpu().numpy()
        return array

    return Rows(dtype, tuple(tensor.shape), read)
