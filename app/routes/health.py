"""Probes: ``/livez`` (the process answers), ``/readyz`` (it can do its work); and the figures, ``/metrics``."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from app.metrics import CONTENT_TYPE, Metrics
from app.services import ServicesDep

router = APIRouter(tags=["probes"])


@router.get("/livez", summary="Whether the process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get("/readyz", summary="Whether the worker takes work", responses={503: {"description": "Not now."}})
async def readyz(response: Response, services: ServicesDep) -> dict[str, Any]:
    """Its worker's loop was heard to turn lately."""
    supervisor = services.supervisor
    if not supervisor.is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return {"status": "ready" if supervisor.is_ready else "not ready", "worker": vars(supervisor.health)}


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
