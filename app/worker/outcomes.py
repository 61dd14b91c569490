"""What is told of a task or a job when it has ended: why it failed, or with what it was computed."""

import logging

import numba
import numpy as np
import torch

from app import __version__
from app.errors import INTERNAL, kind_of
from app.worker import device
from app.worker.device import DeviceFailed
from app.worker.messages import Failed
from core.errors import DeviceTooSmall

logger = logging.getLogger("dictserve.worker")


def software() -> dict[str, str]:
    """Versions of what computes, as a dictionary's record has them."""
    return {
        "dictserve": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def failed(task: int | str, error: Exception) -> Failed:
    """The error as a message, which the service logs with the request or job that it is of; what nobody expects is
    logged here, with where it came from.

    Raises:
        DeviceFailed: it is one of the device's, which no other task would fare better on.
    """
    name = type(error).__name__
    if device.has_failed(error):
        raise DeviceFailed(f"task {task}: {name}: {error}") from error
    if device.is_want_of_memory(error):
        advice = "send fewer rows at a time" if isinstance(task, int) else "fit fewer rows or concepts"
        told = f"the device has too little memory for this; {advice} ({name}: {error})"
        return Failed(task, "DeviceOutOfMemory", (str(error) if isinstance(error, DeviceTooSmall) else told)[:1000])
    if kind_of(error) is INTERNAL:
        logger.error("task %s failed", task, exc_info=error)
    return Failed(task, name, str(error)[:1000])
