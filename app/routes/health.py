"""Probes: ``/livez`` (the process answers), ``/readyz`` (it can do its work); and the figures, ``/metrics``."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from app.errors import KINDS, WorkerUnavailable
from app.http.problems import retry_after
from app.metrics import CONTENT_TYPE, Metrics
from app.routes.openapi import RETRY_AFTER
from app.services import ServicesDep

router = APIRouter(tags=["probes"])


@router.get("/livez", summary="Whether the process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    summary="Whether a worker takes work",
    responses={503: {"model": dict[str, Any], "description": "Not now.", "headers": RETRY_AFTER}},
)
async def readyz(response: Response, services: ServicesDep) -> dict[str, Any]:
    """The loop of one of its workers, at least, was heard to turn lately. What else is away leaves the service ready:
    it encodes on what it has at hand."""
    is_ready = services.workers.is_ready
    if not is_ready:
        response.status_code = 503
        response.headers.update(retry_after(KINDS[WorkerUnavailable]))
    told = [vars(worker.health) for worker in services.workers]
    return {"status": "ready" if is_ready else "not ready", "workers": told, "away": services.away}


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, queue, worker, jobs and store, in Prometheus' text format."""
    figures: Metrics = request.app.state.metrics
    return Response(await asyncio.to_thread(figures.text), media_type=CONTENT_TYPE)
