"""Probes: ``/livez`` (the process answers) and ``/readyz`` (it can do its work)."""

from typing import Any

from fastapi import APIRouter, Response

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
