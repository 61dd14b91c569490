"""MLServer with its own defaults (one process for HTTP, one for models): the Open Inference Protocol in JSON; with
BATCH=1 in the environment its adaptive batching too."""

import json
import os
import sys
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.cli import main
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.service.peers import BATCH_REQUESTS, BATCH_SECONDS, arguments, dictionaries
from demo.service import free_port


class Encode(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        path = self.settings.parameters.uri
        self.dictionary = dictionaries({self.name: path})[self.name]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        A = NumpyCodec.decode_input(payload.inputs[0])
        codes = self.dictionary.encode(A).codes.numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("codes", codes)])


def write_settings(folder: Path, port: int, paths: dict[str, str]) -> None:
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({**settings, "debug": False}))
    batching = {"max_batch_size": BATCH_REQUESTS, "max_batch_time": BATCH_SECONDS} if "BATCH" in os.environ else {}
    for name, path in paths.items():
        (folder / name).mkdir()
        told = {"name": name, "implementation": f"{__spec__.name}.Encode", "parameters": {"uri": path}, **batching}
        (folder / name / "model-settings.json").write_text(json.dumps(told))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as told:
        write_settings(Path(told), *arguments())
        sys.argv = ["mlserver", "start", told]
        main()
