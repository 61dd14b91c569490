"""``/jobs``: fits under way and ended."""

import re
from collections.abc import AsyncIterable
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.jobs.jobs import ENDED
from app.routes.openapi import RETRY_AFTER, problems
from app.routes.prefer import APPLIED, Prefer, waited_for
from app.routes.query import KNOWN_ALONE
from app.schemas import Job, JobList, JobProgress, State
from app.services import ServicesDep

_EVENT = re.compile(r"(\d{1,9})-(\d{1,9})", re.ASCII)
END = "end"  # the last event, and its id
NOTHING = (-1, -1)  # before the first

LastEventId = Annotated[str, Header()]

router = APIRouter(prefix="/jobs", tags=["fit"], dependencies=KNOWN_ALONE)


@router.get("", summary="Jobs, newest first", responses=problems(422, 503))
async def list_jobs(
    services: ServicesDep,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    name: Annotated[str | None, Query(description="Only fits of this dictionary.", max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(description="`next` of the page before.", max_length=40)] = None,
) -> JobList:
    """A page of them, without their loss histories; `next` is there as long as more may follow."""
    jobs = await services.fits.following.newest(limit, before=cursor, state=state, name=name)
    return JobList(jobs=jobs, next=jobs[-1].id if len(jobs) == limit else None)


@router.get(
    "/{id}",
    summary="A job, with its progress",
    responses={200: {"headers": APPLIED | RETRY_AFTER}, **problems(404, 422, 500, 503)},
)
async def get_job(id: str, request: Request, response: Response, services: ServicesDep, prefer: Prefer = "") -> Job:
    """With the header `Prefer: wait=30` it waits up to 30 s for the job's end."""
    following = services.fits.following
    return await waited_for(following, await following.get(id), prefer, request, response)


async def _existing(id: str, services: ServicesDep, response: Response, last_event_id: LastEventId = "") -> Job:
    """What is no stream is told before one begins: an unknown job by a 404, and to who has had the end by a 204 that
    there is no more, without which an EventSource asks for ever."""
    job = await services.fits.following.get(id)
    if _is_told(job, last_event_id):
        response.status_code = 204
    return job


@router.get(
    "/{id}/events",
    summary="A job's progress as it comes (server-sent events)",
    response_class=EventSourceResponse,
    responses={204: {"description": "The `end` has been had."}, **problems(404, 422, 500, 503)},
)
async def follow_job(
    begun: Annotated[Job, Depends(_existing)], services: ServicesDep, last_event_id: LastEventId = ""
) -> AsyncIterable[ServerSentEvent]:
    """Events `progress`, with the job's state, then one `end` with its record. After a break the browser sends
    `Last-Event-ID`, and what it has had is not sent again."""
    if _is_told(begun, last_event_id):
        return
    had = _position(last_event_id)
    state = None if had == NOTHING else "running"  # as it was thought to be: a job in the queue is told of again
    async for job in services.fits.following.follow(begun):
        at = (job.attempts, job.progress.iteration)
        if job.state in ENDED:
            yield ServerSentEvent(data=job, event=END, id=END)
        elif at > had or job.state != state:
            had, state = max(at, had), job.state
            told = JobProgress(**vars(job.progress), state=state)
            yield ServerSentEvent(data=told, event="progress", id=f"{at[0]}-{at[1]}")


def _is_told(job: Job, last_event_id: str) -> bool:
    """Whether there is nothing to come of the job's events after this one."""
    return job.state in ENDED and last_event_id == END


def _position(event_id: str) -> tuple[int, int]:
    """(attempt, iteration) of an event; before all where it is no id of ours."""
    found = _EVENT.fullmatch(event_id)
    return NOTHING if found is None else (int(found[1]), int(found[2]))


@router.delete(
    "/{id}",
    summary="Cancel a job, or remove the record of one that has ended",
    response_model=Job,
    responses={204: {"description": "The record is removed."}, **problems(404, 422, 500, 503)},
)
async def delete_job(id: str, services: ServicesDep) -> Job | Response:
    """Cancelling takes effect within a slice of the fit: the answer is the job's record after it."""
    job = await services.fits.following.cancel_or_remove(id)
    return Response(status_code=204) if job is None else job


@router.post("/{id}/cancel", summary="Cancel a job", responses=problems(404, 422, 500, 503))
async def cancel_job(id: str, services: ServicesDep) -> Job:
    """As `DELETE` of a job that has not ended. One that has stays as it is, so that this can be sent twice."""
    return await services.fits.following.cancel(id)
