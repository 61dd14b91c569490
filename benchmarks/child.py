"""``python -m benchmarks.child LIBRARY``: one library, asked on standard input and answering on standard output.

A request is a line of JSON, ``{"do": name, …}``, and so is its answer; arrays travel as npy files. The first line
out says that the library is there, or why not. Nothing of another library is imported here, so that it runs with
the thread settings of its own choice.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.libraries import LIBRARIES
from benchmarks.measure import dead_concepts, loss_of

MOST_CALLS = 200
WARM_ENOUGH_SECONDS = 2.0  # a first call that took this long is a measurement; a shorter one was a rehearsal


class Child:
    """What can be asked of a library; each method is a request."""

    def __init__(self, adapter: ModuleType) -> None:
        self.adapter = adapter
        self._encoder = cache(self._make_encoder)

    def fit(self, A: str, nb_concepts: int, settings: dict[str, Any], keep_D: str | None = None) -> dict[str, Any]:
        """Seconds of a fit, its loss and dead concepts; the dictionary in a file if asked for."""
        data = np.load(A)
        begun = time.perf_counter()
        Z, D = self.adapter.fit(data, nb_concepts, **settings)
        seconds = time.perf_counter() - begun
        if keep_D is not None:
            np.save(keep_D, np.ascontiguousarray(D, np.float32))
        return {"seconds": seconds, "loss": loss_of(data, Z, D), "dead": dead_concepts(Z, D)}

    def trace(self, A: str, **request: Any) -> dict[str, Any]:
        """See `benchmarks.libraries.dictserve.trace`."""
        data = np.load(A)
        told: dict[str, Any] = self.adapter.trace(data, **request)
        if told["finished"]:
            Z, D = told.pop("factors")
            told |= {"loss": loss_of(data, Z, D), "dead": dead_concepts(Z, D)}
        return told

    def encode(
        self, A: str, D: str, rows: int, settings: dict[str, Any], seconds: float, codes: str
    ) -> dict[str, Any]:
        """Milliseconds of each of as many encodes of the first rows as fit into so many seconds; codes in a file."""
        data = np.ascontiguousarray(np.load(A)[:rows])
        encode = self._encoder(D, json.dumps(settings))
        times: list[float] = []
        begun = time.perf_counter()
        Z = encode(data)
        first = time.perf_counter() - begun
        if first >= WARM_ENOUGH_SECONDS:
            times.append(1e3 * first)
        while not times or (sum(times) < 1e3 * seconds and len(times) < MOST_CALLS):
            begun = time.perf_counter()
            Z = encode(data)
            times.append(1e3 * (time.perf_counter() - begun))
        np.save(codes, Z)
        return {"ms": times}

    def _make_encoder(self, D: str, settings: str) -> Callable[[np.ndarray], np.ndarray]:
        return self.adapter.encoder(np.load(D), **json.loads(settings))  # type: ignore[no-any-return]


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an answer
    adapter, distribution = LIBRARIES[name]
    try:
        told: dict[str, Any] = {"version": version(distribution)}  # before torch, where the library is absent
        child = Child(import_module(adapter))
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), file=answers)
    if "error" in told:
        return
    for line in sys.stdin:
        request = json.loads(line)
        try:
            told = getattr(child, request.pop("do"))(**request)
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
