"""LitServe as its README has it: JSON lists in, JSON lists out; with BATCH=1 in the environment its batching too."""

import os
from typing import Any

import litserve
import numpy as np

from benchmarks.service.peers import BATCH_REQUESTS, BATCH_SECONDS, arguments, dictionaries
from core import Dictionary

Rows = tuple[str, np.ndarray]  # of which dictionary, and A


class Encode(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, paths: dict[str, str], **batching: Any) -> None:
        super().__init__(**batching)
        self.paths = paths

    def setup(self, device: str) -> None:
        self.known: dict[str, Dictionary] = dictionaries(self.paths)

    def decode_request(self, request: dict[str, Any]) -> Rows:
        return request["dictionary"], np.array(request["data"], np.float32)

    def predict(self, asked: Rows) -> np.ndarray:
        name, A = asked
        return self.known[name].encode(A).codes.numpy()

    def encode_response(self, codes: np.ndarray) -> dict[str, Any]:
        return {"codes": codes.tolist()}


class EncodeTogether(Encode):
    """One encode for all requests of a batch; the load asks for one dictionary at a time."""

    def batch(self, inputs: list[Rows]) -> list[Rows]:
        return inputs

    def predict(self, asked: list[Rows]) -> list[np.ndarray]:  # type: ignore[override]
        names = {name for name, _ in asked}
        answers: list[np.ndarray] = [np.empty(0)] * len(asked)
        for name in names:
            places = [place for place, (of, _) in enumerate(asked) if of == name]
            parts = [asked[place][1] for place in places]
            codes = self.known[name].encode(np.concatenate(parts)).codes.numpy()
            ends = np.cumsum([len(part) for part in parts])[:-1]
            for place, part in zip(places, np.split(codes, ends), strict=True):
                answers[place] = part
        return answers

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        return output


if __name__ == "__main__":
    port, paths = arguments()
    api = (
        EncodeTogether(paths, max_batch_size=BATCH_REQUESTS, batch_timeout=BATCH_SECONDS)
        if "BATCH" in os.environ
        else Encode(paths)
    )
    litserve.LitServer(api, accelerator="cpu", timeout=False).run(
        host="127.0.0.1", port=port, log_level="error", generate_client_file=False
    )
