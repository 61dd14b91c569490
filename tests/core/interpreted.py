"""Triton's interpreter, which gets its language ready once for each module of kernels.

By itself it does so, and undoes it, at each launch, and does it again within for each function that a kernel calls:
more than half of the time that kernels of this size take. Only for a process that compiles none. Most of the rest is
for what it finds out anew for each value, which is kept here instead: numpy's type of Triton's, and a shape.
"""

import math
from functools import cache
from operator import index
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter

_make_ready = interpreter._patch_lang
_ready: set[str] = set()


def _make_ready_once(function: Any) -> Any:
    if function.__module__ not in _ready:
        _make_ready(function)
        _ready.add(function.__module__)
    return interpreter._LangPatchScope()  # in which nothing is to be undone


interpreter._patch_lang = _make_ready_once

_find_np_dtype = interpreter._get_np_dtype
_np_dtypes: dict[str, np.dtype[Any]] = {}  # by the name of Triton's, which is what it compares them by


def _np_dtype(of: Any) -> np.dtype[Any]:
    of = of.scalar
    if of.name not in _np_dtypes:
        _np_dtypes[of.name] = _find_np_dtype(of)
    return _np_dtypes[of.name]


interpreter._get_np_dtype = _np_dtype


@cache
def _shape(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """How many values, and the sizes, as a tensor has them."""
    return tl.constexpr(math.prod(sizes)), tl.core.tuple([tl.constexpr(size) for size in sizes])


def _begin(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _shape(tuple(type.shape) if type.is_block() else ())


tl.tensor.__init__ = _begin

_find_block = tl.block_type.__init__
_blocks: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}  # by type and sizes


def _begin_block(self: Any, element_ty: Any, shape: Any) -> None:
    key = element_ty.name, tuple([index(size) for size in shape])
    if key not in _blocks:
        _find_block(self, element_ty, shape)
        _blocks[key] = vars(self)
    self.__dict__ = _blocks[key].copy()


tl.block_type.__init__ = _begin_block
