"""FastAPI as most people write it: pydantic lists in and out, the encode in the handler, one process; and as those
write it who have found out what lists cost: npy in and out."""

import io

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from benchmarks.service.peers import arguments, dictionaries


class EncodeRequest(BaseModel):
    dictionary: str
    data: list[list[float]]


class EncodeAnswer(BaseModel):
    codes: list[list[float]]


port, paths = arguments()
known = dictionaries(paths)
app = FastAPI()


@app.post("/encode")
async def encode(request: EncodeRequest) -> EncodeAnswer:
    A = np.array(request.data, np.float32)
    return EncodeAnswer(codes=known[request.dictionary].encode(A).codes.tolist())


@app.post("/encode/npy")
async def encode_npy(dictionary: str, request: Request) -> Response:
    A = np.load(io.BytesIO(await request.body()), allow_pickle=False)
    answer = io.BytesIO()
    np.save(answer, known[dictionary].encode(A).codes.numpy())
    return Response(answer.getvalue(), media_type="application/x-npy")


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ready": True}


if __name__ == "__main__":
    uvicorn.run(app, port=port, log_level="error", access_log=False)
