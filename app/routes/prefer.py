"""``Prefer: wait=…`` of RFC 7240: how long a client would wait for a job's end."""

import re
from typing import Annotated

from fastapi import Header, Request, Response

from app.http.disconnects import unless_gone
from app.jobs.following import Following
from app.jobs.jobs import ENDED
from app.routes.openapi import header
from app.schemas import Job

MAX_WAIT_SECONDS = 600
_WAIT = re.compile(r"""(?:^|,)\s*wait\s*=\s*"?(\d{1,9})\b""", re.ASCII | re.IGNORECASE)

Prefer = Annotated[str, Header()]
APPLIED = {"Preference-Applied": header("With `Prefer: wait=…`: the wait that was granted.")}


async def waited_for(following: Following, job: Job, prefer: str, request: Request, response: Response) -> Job:
    """The job once it has ended or the client's time is up; and the headers that tell so. Nobody waits for a client
    that has left."""
    wait = _WAIT.search(prefer)
    if wait is not None:
        seconds = min(int(wait[1]), MAX_WAIT_SECONDS)
        if job.state not in ENDED:
            job = await unless_gone(request.scope, following.wait(job, seconds))
        response.headers["Preference-Applied"] = f"wait={seconds}"
    if job.state not in ENDED:
        response.headers["Retry-After"] = "1"
    return job
