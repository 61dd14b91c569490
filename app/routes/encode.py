"""``POST /encode``: activations → codes."""

from fastapi import APIRouter, Request, Response

from app.formats.answer import Scalar
from app.http.access import take_rows
from app.http.bodies import INLINE_BINARY_BYTES, aside, read_payload
from app.http.shares import share_of_answers
from app.routes import examples
from app.routes.openapi import array_answers, array_body, device_full, problems
from app.schemas import EncodeAnswer, EncodeRequest, ProblemAnswer
from app.services import ServicesDep
from app.sparse import compressed_rows

router = APIRouter(tags=["encode and decode"])


@router.post(
    "/encode",
    summary="Encode activations on a dictionary",
    response_class=Response,
    responses={
        **array_answers(EncodeAnswer),
        **problems(400, 404, 406, 413, 415, 422, 500, 503),
        **device_full(ProblemAnswer),
    },
    openapi_extra=array_body(EncodeRequest, examples.ENCODE, examples.ENCODE_CSV),
)
async def encode(request: Request, services: ServicesDep) -> Response:
    """Non-negative least squares of A on the fixed D, row by row: the same row gets the same codes in any batch."""
    payload = await read_payload(request, EncodeRequest, services.settings)
    fields = payload.fields
    take_rows(request, len(fields.data))
    sparse = fields.sparse or fields.top_k is not None
    base64 = fields.encoding_format == "base64"
    growth = payload.growth(many_arrays=sparse or fields.reconstruct, base64=base64)  # or refuse: not after the work
    record, (codes, converged, *errors) = await services.solve(
        "encode",
        fields.dictionary,
        fields.data,
        share_of_answers(request.scope),
        growth=1 if sparse else growth,
        reconstruct=fields.reconstruct,
        top_k=fields.top_k,
    )
    scalars: dict[str, Scalar] = {
        "dictionary": record.name,
        "version": record.version,
        "converged": bool(converged.all()),
    }
    arrays = {"codes": codes}
    if sparse:
        arrays = await aside(codes.nbytes, lambda: compressed_rows(codes, fields.top_k), INLINE_BINARY_BYTES)
    if fields.reconstruct:
        arrays["relative_error"] = errors[0]
    return await payload.answer(scalars, arrays, base64)
