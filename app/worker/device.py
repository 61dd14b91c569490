"""The device as torch knows it: which it is, what of its memory is taken, and what its errors mean."""

import errno
import re

import torch

from app.worker.messages import DeviceMemory

# How torch, its libraries and Triton tell that the device has failed: what was asked of it after that fails, too.
FAILURE = re.compile(r"CUDA error|CUDA driver error|CUBLAS_STATUS|CUSOLVER_STATUS|CUDNN_STATUS|\[CUDA\]")
WANT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory|STATUS_ALLOC_FAILED")


class DeviceFailed(Exception):
    """The device cannot be used, by this process at least; another may find it well.

    Args:
        devices: how many such there are, where that was to be found out.
    """

    def __init__(self, why: str, devices: int = 1) -> None:
        super().__init__(why)
        self.devices = devices


def named(told: str) -> tuple[torch.device, str, int]:
    """The device that a setting means, what to call it, and how many such there are where that was to be found out.

    Raises:
        DeviceFailed: it does not do even the least.
    """
    found = torch.cuda.device_count() if told == "auto" and torch.cuda.is_available() else 0
    name, count = {"auto": "cuda:0" if found else "cpu", "cuda": "cuda:0"}.get(told, told), max(found, 1)
    # Of the CPU there is one, whatever number a worker on it goes by.
    device = torch.device("cpu" if name.startswith("cpu") else name)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of what does not say where: compiled kernels, pinned memory
        torch.zeros(1, device=device).add_(1).cpu()
    except Exception as error:  # of a kind that depends on what is missing
        is_without = device.type == "cuda" and torch.version.cuda is None and torch.version.hip is None
        why = f"this torch ({torch.__version__}) is one without CUDA" if is_without else error
        raise DeviceFailed(f"{name} cannot be used: {why}", count) from error
    return device, name, count


def memory(device: torch.device) -> DeviceMemory | None:
    """What torch knows of it by itself: the device is not asked, and goes on with what it is at."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory  # asked of the driver once, and kept by torch
    return DeviceMemory(torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device), total)


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps for tensors to come."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_want_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and WANT_OF_MEMORY.search(str(error)) is not None
    )


def has_failed(error: Exception) -> bool:
    """Whether the error tells that the device has failed, rather than what was asked of it."""
    if is_want_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and FAILURE.search(str(error)) is not None
    )
