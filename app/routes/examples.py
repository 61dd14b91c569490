"""Examples of the OpenAPI document: bodies that work when pasted, in the order of the page, and what they show.

The first fit makes the dictionary that the others use: two concepts of four features.
"""

from typing import Any

Examples = dict[str, dict[str, Any]]

_ROWS = [[0, 1.5, 0.25, 0], [2, 0, 0, 0.75], [2, 3, 0.5, 0.75]]
_ROWS_AS_TEXT = {"base64": "AAAAAAAAwD8AAIA+AAAAAA==", "shape": [1, 4], "dtype": "float32"}

_FIT = {"name": "digits", "nb_concepts": 2}
FIT: Examples = {
    "rows": {"summary": "Rows of numbers", "value": _FIT | {"data": _ROWS}},
    "warm": {"summary": "From a dictionary on", "value": _FIT | {"init": "digits", "max_iter": 50, "data": _ROWS}},
    "base64": {"summary": "Base64 text", "value": {"name": "one", "nb_concepts": 1, "data": _ROWS_AS_TEXT}},
    "files": {
        "summary": "Files of the data directory, where the service has one",
        "value": {"name": "layer4", "nb_concepts": 2, "files": ["layer4/*.npy"]},
    },
}
FIT_CSV = "a,b,c,d\n0,1.5,0.25,0\n2,0,0,0.75\n"

_ENCODE = {"dictionary": "digits", "data": _ROWS}
ENCODE: Examples = {
    "rows": {"summary": "Rows of numbers", "value": _ENCODE},
    "row": {"summary": "A single row, on one version", "value": {"dictionary": "digits@1", "data": _ROWS[0]}},
    "base64": {
        "summary": "Base64 text in and out",
        "value": {"dictionary": "digits", "encoding_format": "base64", "data": _ROWS_AS_TEXT},
    },
    "sparse": {"summary": "The codes that are not zero", "value": _ENCODE | {"sparse": True}},
    "top_k": {"summary": "The largest code of each row", "value": _ENCODE | {"top_k": 1}},
    "reconstruct": {"summary": "With each row's relative error", "value": _ENCODE | {"reconstruct": True}},
    "clip": {
        "summary": "Negative values made zero",
        "value": {"dictionary": "digits", "clip": True, "data": [[-0.5, 1.5, 0.25, 0]]},
    },
    "float64": {"summary": "In float64", "value": _ENCODE | {"dtype": "float64"}},
}
ENCODE_CSV = "0,1.5,0.25,0\n2,0,0,0.75\n"

_CODES_AS_TEXT = {"base64": "AAAAAAAAoD8=", "shape": [1, 2], "dtype": "float32"}
DECODE: Examples = {
    "codes": {"summary": "Rows of codes", "value": {"dictionary": "digits", "data": [[0, 1.25], [0.5, 0]]}},
    "base64": {
        "summary": "Base64 text in and out",
        "value": {"dictionary": "digits", "encoding_format": "base64", "data": _CODES_AS_TEXT},
    },
    "float64": {
        "summary": "In float64",
        "value": {"dictionary": "digits", "dtype": "float64", "data": [[0, 1.25]]},
    },
}
DECODE_CSV = "0,1.25\n0.5,0\n"

IMPORT: Examples = {
    "concepts": {"summary": "A row a concept", "value": {"data": [[0, 1.5, 0.25, 0], [2, 0, 0, 0.75]]}}
}
IMPORT_CSV = "0,1.5,0.25,0\n2,0,0,0.75\n"

INDEX: Examples = {
    "all": {"summary": "Every version", "value": {}},
    "ready": {"summary": "Those that can be used now", "value": {"ready": True}},
}
INFER: Examples = {
    "encode": {
        "summary": "Activations to codes",
        "value": {"inputs": [{"name": "activations", "shape": [3, 4], "datatype": "FP32", "data": _ROWS}]},
    },
    "outputs": {
        "summary": "With what else an encode gives",
        "value": {
            "inputs": [{"name": "activations", "shape": [3, 4], "datatype": "FP32", "data": _ROWS}],
            "outputs": [{"name": "codes"}, {"name": "relative_error"}, {"name": "reconstruction"}],
        },
    },
    "decode": {
        "summary": "Codes to activations",
        "value": {
            "inputs": [{"name": "codes", "shape": [2], "datatype": "FP32", "data": [0, 1.25]}],
            "parameters": {"task": "decode"},
        },
    },
}

LABELS: Examples = {
    "labels": {
        "summary": "Labels of the dictionary and of its first concept",
        "value": {"labels": {"team": "vision"}, "concept_labels": {"0": "loop"}},
    }
}
