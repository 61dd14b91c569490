"""What a process has told torch of its own arithmetic changes nothing of ours, and nothing of it is changed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from core import NMF, Dictionary
from core.kernels.precision import own_precision

A = np.random.default_rng(0).random((300, 40), np.float32) ** 4
D = np.random.default_rng(1).random((64, 40), np.float32)


@contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(value)
    try:
        yield
        assert torch.get_float32_matmul_precision() == value
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def precision_of(backend: Any) -> Iterator[None]:
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        yield
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
        assert torch.is_autocast_enabled("cpu")


MODES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "medium": lambda: matmul_precision("medium"),
    "high": lambda: matmul_precision("high"),
    "oneDNN": lambda: precision_of(torch.backends.mkldnn.matmul),
    "cuda": lambda: precision_of(torch.backends.cuda.matmul),
    "autocast": autocast,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


def started() -> list[torch.Tensor]:
    nmf = NMF(8, seed=1)
    return [nmf.init_random_z(A), nmf.init_random_d(A), *nmf.init_nndsvda(A)]


def fitted(**parameters: Any) -> list[torch.Tensor]:
    nmf = NMF(8, seed=1, max_iter=12, **parameters)
    Z, D = nmf.fit(A)
    return [Z, D, torch.tensor(nmf.loss_history_, dtype=torch.float64, device="cpu"), nmf.encode(A), nmf.decode(Z)]


def learned() -> list[torch.Tensor]:
    nmf = NMF(8, seed=1)
    for batch in np.array_split(A, 3):
        nmf.partial_fit(batch)
    return [nmf.get_dictionary(), nmf.fit_online(A, epochs=2, batch_rows=100)]


def loaded() -> list[torch.Tensor]:
    state = NMF(8, seed=1, max_iter=2)
    state.fit(A)
    nmf = NMF(8)
    nmf.load_state_dict(state.state_dict())
    return [nmf.get_dictionary(), nmf(torch.from_numpy(A))]


def solved(dtype: torch.dtype) -> list[torch.Tensor]:
    dictionary = Dictionary(D, dtype=dtype)
    encoded = dictionary.encode(A)
    return [encoded.codes, encoded.kkt_residual, dictionary.decode(encoded.codes)]


WORK: dict[str, Callable[[], list[torch.Tensor]]] = {
    **{solver: lambda solver=solver: fitted(solver=solver) for solver in ("hals", "mu", "pgd", "anls")},  # type: ignore[misc]
    "random": lambda: fitted(init="random"),
    "sparse": lambda: list(NMF(8, seed=1, max_iter=5).fit(scipy.sparse.csr_array(A * (A > 0.3)))),
    "zero": lambda: list(NMF(8).fit(0 * A)),
    "tiny": lambda: list(NMF(8, seed=1, max_iter=5).fit(A * 1e-30)),
    "given": lambda: list(NMF(64, max_iter=5).fit(A, D=D)),
    "starts": started,
    "online": learned,
    "loaded": loaded,
    "float32": lambda: solved(torch.float32),
    "float64": lambda: solved(torch.float64),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("work", WORK)
def test_the_result_is_the_same_to_the_bit(work: str, mode: str) -> None:
    expected = WORK[work]()
    with MODES[mode]():
        found = WORK[work]()
    for ours, under in zip(expected, found, strict=True):
        assert under.dtype == ours.dtype
        assert torch.equal(under, ours)


def test_a_default_device_is_not_ours() -> None:
    expected = fitted() + solved(torch.float32)
    torch.set_default_device("meta")
    try:
        found = fitted() + solved(torch.float32)
    finally:
        torch.set_default_device(None)
    for ours, under in zip(expected, found, strict=True):
        assert torch.equal(under, ours)


def test_switches_are_turned_back_by_whoever_is_the_last_within() -> None:
    backend = torch.backends.mkldnn.matmul
    with matmul_precision("medium"), ExitStack() as outer:
        outer.enter_context(own_precision())
        told: list[str] = []

        def within() -> None:
            with own_precision():
                told.append(backend.fp32_precision)

        threads = [threading.Thread(target=within) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told == ["ieee"] * 4
        assert backend.fp32_precision == "ieee"
        outer.close()
        assert backend.fp32_precision == "bf16"
