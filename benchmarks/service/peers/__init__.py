"""Servers to compare with. Each is started as ``python -m benchmarks.service.peers.NAME PORT NAME=PATH …``, the
dictionaries being npy files of D, and answers from the same `core.Dictionary` as our service does; echo.py, the
floor, sends back what came."""

import sys

import numpy as np

from core import Dictionary
from core.warm import warm

BATCH_REQUESTS, BATCH_SECONDS = 64, 0.005  # of those that batch requests


def arguments() -> tuple[int, dict[str, str]]:
    """The port, and the paths of the dictionaries by name."""
    port, *told = sys.argv[1:]
    return int(port), dict(argument.split("=", 1) for argument in told)


def dictionaries(paths: dict[str, str]) -> dict[str, Dictionary]:
    warm()  # compiled code is loaded before anything is timed, as our worker does
    return {name: Dictionary(np.load(path)) for name, path in paths.items()}
