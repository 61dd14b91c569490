"""``POST /decode``: codes → activations."""

from fastapi import APIRouter, Request, Response

from app.formats.answer import Scalar
from app.http.access import take_rows
from app.http.bodies import read_payload
from app.http.shares import share_of_answers
from app.routes import examples
from app.routes.openapi import array_answers, array_body, device_full, problems
from app.schemas import DecodeAnswer, DecodeRequest, ProblemAnswer
from app.services import ServicesDep

router = APIRouter(tags=["encode and decode"])


@router.post(
    "/decode",
    summary="Decode codes on a dictionary",
    response_class=Response,
    responses={
        **array_answers(DecodeAnswer),
        **problems(400, 404, 406, 413, 415, 422, 500, 503),
        **device_full(ProblemAnswer),
    },
    openapi_extra=array_body(DecodeRequest, examples.DECODE, examples.DECODE_CSV),
)
async def decode(request: Request, services: ServicesDep) -> Response:
    """Z·D."""
    payload = await read_payload(request, DecodeRequest, services.settings)
    take_rows(request, len(payload.fields.data))
    fields, base64 = payload.fields, payload.fields.encoding_format == "base64"
    growth = payload.growth(many_arrays=False, base64=base64)
    record, (activations,) = await services.solve(
        "decode", fields.dictionary, fields.data, share_of_answers(request.scope), growth=growth
    )
    scalars: dict[str, Scalar] = {"dictionary": record.name, "version": record.version}
    return await payload.answer(scalars, {"activations": activations}, base64)
