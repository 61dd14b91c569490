"""``/jobs``: fits under way and ended."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.jobs import ENDED
from app.routes.openapi import problems
from app.schemas import Job, JobList, State
from app.services import ServicesDep

router = APIRouter(prefix="/jobs", tags=["fit"])


@router.get("", summary="Jobs, newest first", responses=problems(422, 503))
async def list_jobs(
    services: ServicesDep,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    name: Annotated[str | None, Query(description="Only fits of this dictionary.", max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(description="`next` of the page before.", max_length=40)] = None,
) -> JobList:
    """A page of them; `next` is there as long as more may follow."""
    jobs = await services.fits.newest(limit, before=cursor, state=state, name=name)
    return JobList(jobs=jobs, next=jobs[-1].id if len(jobs) == limit else None)


@router.get("/{id}", summary="A job, with its progress", responses=problems(404))
async def get_job(id: str, response: Response, services: ServicesDep) -> Job:
    job = await services.fits.get(id)
    if job.state not in ENDED:
        response.headers["Retry-After"] = "1"
    return job


@router.delete(
    "/{id}",
    summary="Cancel a job, or remove the record of one that has ended",
    response_model=Job,
    responses={204: {"description": "The record is removed."}, **problems(404)},
)
async def delete_job(id: str, services: ServicesDep) -> Job | Response:
    """Cancelling takes effect within a slice of the fit: the answer is the job's record after it."""
    job = await services.fits.cancel(id)
    return Response(status_code=204) if job is None else job
