"""Triton's interpreter, which gets its language ready once for each module of kernels.

By itself it does so, and undoes it, at each launch, and does it again within for each function that a kernel calls:
more than half of the time that kernels of this size take. Only for a process that compiles none.
"""

from typing import Any

import triton.runtime.interpreter as interpreter

_make_ready = interpreter._patch_lang
_ready: set[str] = set()


def _make_ready_once(function: Any) -> Any:
    if function.__module__ not in _ready:
        _make_ready(function)
        _ready.add(function.__module__)
    return interpreter._LangPatchScope()  # in which nothing is to be undone


interpreter._patch_lang = _make_ready_once
