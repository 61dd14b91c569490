"""A dictionary as the Open Inference Protocol has it: a model with named tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from app.store.records import DictionaryRecord
from app.worker.messages import Task

PLATFORM = "dictserve_nmf"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
)  # not "model_repository", which loads and unloads models

INPUT: Mapping[Task, str] = {"encode": "activations", "decode": "codes"}
# The first is what a request gets that names none.
OUTPUTS: Mapping[Task, Sequence[str]] = {
    "encode": ("codes", "converged", "relative_error", "reconstruction"),
    "decode": ("activations",),
}


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(Ready):
    name: str


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="In a model's metadata, -1 stands for the rows of a request.")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class ModelState(BaseModel):
    """An entry of the repository's index."""

    name: str
    version: str
    state: str = Field(description="`READY` or `UNAVAILABLE`.")
    reason: str = Field("", description="Why it is unavailable.")


class AnsweredTensor(Tensor):
    data: list[float] | list[bool] | None = Field(None, description="Unless its bytes follow the JSON.")
    parameters: dict[str, int] | None = Field(None, description="`binary_data_size` where its bytes follow the JSON.")


class InferenceAnswer(BaseModel):
    model_name: str
    model_version: str
    id: str | None = Field(None, description="The request's.")
    parameters: dict[str, bool] | None = Field(None, description="Of an encode: `converged`, whether every row did.")
    outputs: list[AnsweredTensor]


class ErrorAnswer(BaseModel):
    """The protocol's form of an error."""

    error: str


def metadata(record: DictionaryRecord, versions: Sequence[int]) -> ModelMetadata:
    """What the protocol tells of a version: the tensors of an encode."""
    k, n = record.nb_concepts, record.n_features
    shapes = {"codes": [-1, k], "converged": [-1], "relative_error": [-1], "reconstruction": [-1, n]}
    return ModelMetadata(
        name=record.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=[Tensor(name=INPUT["encode"], datatype="FP32", shape=[-1, n])],
        outputs=[
            Tensor(name=name, datatype="BOOL" if name == "converged" else "FP32", shape=shapes[name])
            for name in OUTPUTS["encode"]
        ],
    )


def configuration(told: ModelMetadata) -> dict[str, Any]:
    """The same as Triton's model configuration. ``max_batch_size`` 0 says that shapes hold the rows, too."""
    return {
        "name": told.name,
        "platform": told.platform,
        "backend": "dictserve",
        "max_batch_size": 0,
        "input": [_configured(tensor) for tensor in told.inputs],
        "output": [_configured(tensor) for tensor in told.outputs],
    }


def _configured(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": tensor.shape}
