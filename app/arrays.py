"""Arrays as pydantic fields: validated as arrays, never turned into pydantic floats.

An array reaches a model as an ndarray (a format has read it already); the field's validator gives it rank two, C
order and the dtype to compute in, and refuses what is not finite or is negative. The JSON schema tells of it as rows
of numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from core.checks import check_activations, check_codes

Check = Callable[..., np.ndarray]


AS_TEXT: JsonSchemaValue = {
    "type": "object",
    "properties": {
        "base64": {"type": "string", "contentEncoding": "base64"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "dtype": {"enum": ["float16", "float32", "float64", "int32", "int64"], "default": "float32"},
    },
    "required": ["base64", "shape"],
    "additionalProperties": False,
}


class ArrayField:
    """Marks an ndarray field of a model. Two fields declared before it are heeded: with ``clip`` negatives are made
    zero, and ``dtype`` is the one to compute in (float32 where there is no such field)."""

    def __init__(self, check: Check, columns: str, example: list[list[float]]) -> None:
        self._check = check
        self._columns = columns
        self._example = example

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        row = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 1}
        return {
            "description": f"Rows of {self._columns} non-negative finite numbers; or a single row; or the array's "
            "bytes (little-endian, C order) as base64 text.",
            "anyOf": [{"type": "array", "items": row, "minItems": 1}, row, AS_TEXT],
            "examples": [self._example],
        }

    def _validate(self, value: object, info: ValidationInfo) -> np.ndarray:
        if not isinstance(value, np.ndarray):
            raise ValueError("expected rows of numbers, such as [[0.5, 1.2], [0, 3]]")  # noqa: TRY004 - pydantic's way
        told = {"clip": True} if info.data.get("clip") else {}
        return self._check(value, dtype=np.dtype(info.data.get("dtype", "float32")).type, **told)


_activations = ArrayField(check_activations, "n_features", [[0.0, 1.5, 0.25, 0.0], [2.0, 0.0, 0.0, 0.75]])
Activations = Annotated[np.ndarray, _activations]
MaybeActivations = Annotated[np.ndarray | None, _activations]  # None by default alone: no body says it
Codes = Annotated[np.ndarray, ArrayField(check_codes, "nb_concepts", [[0.0, 1.25], [0.5, 0.0]])]
Concepts = Annotated[
    np.ndarray, ArrayField(partial(check_activations, name="concepts"), "n_features", [[0.0, 1.5, 0.25, 0.0]])
]
