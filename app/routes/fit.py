"""``POST /fit``: activations → a job that learns a dictionary."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.bodies import read_payload
from app.errors import InvalidFields
from app.routes.openapi import array_body, problems
from app.schemas import FitRequest, Job
from app.services import ServicesDep

router = APIRouter(tags=["fit"])


@router.post(
    "/fit",
    status_code=202,
    summary="Fit a dictionary in the background",
    responses={202: {"model": Job}, **problems(400, 406, 413, 415, 422, 503, 507)},
    openapi_extra=array_body(FitRequest),
)
async def fit(request: Request, response: Response, services: ServicesDep) -> Job:
    """Starts a job. Once this has answered, the job and its data survive a crash of the service."""
    uploads = services.fits.uploads
    upload = uploads.new_path()
    try:
        payload = await read_payload(request, FitRequest, services.settings, upload)
        if payload.fields.nb_concepts > services.settings.max_concepts:
            raise InvalidFields.at("nb_concepts", msg=f"at most {services.settings.max_concepts}")
        if payload.fields.max_iter > services.settings.max_iterations:
            raise InvalidFields.at("max_iter", msg=f"at most {services.settings.max_iterations}")
        staged = await asyncio.to_thread(uploads.stage, payload.fields.data, upload)
        job = await services.fits.submit(payload.fields, staged)
    except BaseException:
        uploads.discard(upload.name)
        raise
    response.headers["Location"] = f"/jobs/{job.id}"
    response.headers["Retry-After"] = "1"
    return job
