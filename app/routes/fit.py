"""``POST /fit``: activations → a job that learns a dictionary."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app.errors import InvalidFields
from app.http.access import take_rows
from app.http.bodies import read_payload
from app.http.disconnects import Gone, Leaving, leaving_of
from app.http.shares import share_of_bodies
from app.jobs.data_files import NamedFiles
from app.jobs.fits import Fits
from app.jobs.jobs import ENDED
from app.routes import examples
from app.routes.openapi import RETRY_AFTER, array_body, header, problems
from app.routes.prefer import APPLIED, Prefer, waited_for
from app.schemas import FitRequest, Job
from app.services import Services, ServicesDep
from app.settings import Settings
from app.store.uploads import Staged

router = APIRouter(tags=["fit"])

HEADERS = {"Location": header("The job."), **APPLIED}


@router.post(
    "/fit",
    status_code=202,
    summary="Fit a dictionary in the background",
    responses={
        200: {"model": Job, "description": "The job has ended.", "headers": HEADERS},
        202: {"headers": HEADERS | RETRY_AFTER},
        **problems(400, 409, 413, 415, 422, 500, 503, 507),
    },
    openapi_extra=array_body(FitRequest, examples.FIT, examples.FIT_CSV),
)
async def fit(
    request: Request,
    response: Response,
    services: ServicesDep,
    prefer: Prefer = "",
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Job:
    """Starts a job. Once this has answered, the job and its data survive a crash of the service.

    With the header `Prefer: wait=30` it waits up to 30 s for the job's end, and then answers 200 with its record.
    With `Idempotency-Key` a request can be sent again: the same key gives the job that it made the first time.
    """
    job = await _job(request, services, idempotency_key)
    share_of_bodies(request.scope).hold(0)  # before a wait that may be long
    job = await waited_for(services.fits.following, job, prefer, request, response)
    response.headers["Location"] = f"/jobs/{job.id}"
    if job.state in ENDED:
        response.status_code = 200
    return job


async def _job(request: Request, services: Services, idempotency_key: str | None) -> Job:
    """The job that a request makes, or that one with its key has made."""
    fits, uploads = services.fits, services.fits.uploads
    await fits.submissions.require_room(idempotency_key)
    upload = uploads.new_path()
    try:
        fields = (await read_payload(request, FitRequest, services.settings, upload, answers_array=False)).fields
        _check(fields, services.settings)
        if (earlier := await fits.submissions.of_files(fields, idempotency_key)) is not None:
            return earlier
        threads = uploads.threads if fields.files is None else fits.data_files.threads
        data = await threads(_data, fits, fields, upload, partial(_require_there, leaving_of(request.scope)))
        take_rows(request, data.rows)
        if services.tracing is not None:
            services.tracing.note(fields.name, data.rows)
    except BaseException:
        await uploads.threads(uploads.discard, upload.name)
        raise
    return await fits.submissions.submit(fields, data, idempotency_key)


def _check(fields: FitRequest, settings: Settings) -> None:
    """What is asked of a request before its activations are looked at."""
    for name, setting in (("nb_concepts", "max_concepts"), ("max_iter", "max_iterations"), ("ranks", "max_ranks")):
        if getattr(fields, name) > (most := getattr(settings, setting)):
            raise InvalidFields.at(name, msg=f"at most {most} (DICTSERVE_{setting.upper()} of the service)")
    if fields.files is not None and fields.data is not None:
        raise InvalidFields.at("files", msg="only without `data`: a fit has one or the other")


def _require_there(leaving: Leaving | None) -> None:
    """Raises Gone where the client has left."""
    if leaving is not None and leaving.has_left:
        raise Gone


def _data(fits: Fits, fields: FitRequest, upload: Path, require_wanted: Callable[[], None]) -> Staged | NamedFiles:
    """The activations of a request, staged; or those that its files name, their headers checked."""
    if fields.files is None:
        if fields.data is None:
            raise InvalidFields.at("data", msg="required, or `files` in its place")
        if fields.epochs is not None:
            raise InvalidFields.at("epochs", msg="only with `files`: what is sent is fitted as a whole")
        return fits.uploads.stage(fields.data, upload)
    named = fits.data_files.find(fields.files, clip=fields.clip, stage_as=upload.name, require_wanted=require_wanted)
    if fields.epochs is not None and fields.ranks > 1:
        raise InvalidFields.at("ranks", msg="only 1 with `epochs`: an online fit is one process's")
    epochs = None if fields.ranks > 1 else fits.data_files.online_epochs(named, fields.nb_concepts, fields.epochs)
    if epochs is None:
        fits.uploads.require_room(named.rows, named.n_features)
        return named
    if fields.solver != "hals":
        msg = "only `hals` fits online, as is done with `epochs` and with files as large as these"
        raise InvalidFields.at("solver", msg=msg)
    return replace(named, epochs=min(epochs, fields.max_iter))
