"""``POST /encode``: activations → codes."""

from fastapi import APIRouter, Request, Response

from app.bodies import array_answer, read_payload
from app.formats import Scalars
from app.routes.openapi import BINARY, array_body, problems
from app.schemas import EncodeAnswer, EncodeRequest
from app.services import ServicesDep

router = APIRouter(tags=["encode and decode"])


@router.post(
    "/encode",
    summary="Encode activations on a dictionary",
    response_class=Response,
    responses={
        200: {"model": EncodeAnswer, "content": {"application/x-npy": {"schema": BINARY}}},
        **problems(400, 404, 406, 413, 415, 422, 503),
    },
    openapi_extra=array_body(EncodeRequest),
)
async def encode(request: Request, services: ServicesDep) -> Response:
    """Non-negative least squares of A on the fixed D, row by row: the same row gets the same codes in any batch."""
    payload = await read_payload(request, EncodeRequest, services.settings)
    record, (codes, converged) = await services.solve("encode", payload.fields.dictionary, payload.fields.data)
    scalars: Scalars = {"dictionary": record.name, "version": record.version, "converged": bool(converged.all())}
    return array_answer(payload.answer, scalars, "codes", codes)
