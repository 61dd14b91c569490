"""The service on a Ray cluster: ``serve run app.ray:deployment``.

Two deployments of Ray Serve, which starts their replicas, spreads them over the nodes and replaces those that are
lost. A replica of ``Dictserve`` is the whole service with a worker of its own, but for fits: it puts them into the
jobs' database, from which the replicas of ``Fitter`` take them.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsError
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from app import logs
from app.errors import WorkerUnavailable
from app.http.ray_replica import ReplicaApp
from app.jobs.loops import STOP_SECONDS
from app.main import create_app
from app.services import Services
from app.settings import Settings, misspelt, what_is_wrong
from app.workers import Workers

logger = logging.getLogger("dictserve")

PROXIES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
SQLITE = "sqlite:///"
# Requests in flight are averaged over as long, since proxies tell of them every 10 s: Serve's 30 s would have a surge
# wait for half of that again.
LOOK_BACK_SECONDS = 15.0
# Between two questions after a replica's health, and after how long without one it may have been told to go: Serve
# asks as late as after 1.6 times the period.
HEALTH_SECONDS, UNASKED_SECONDS = 3.0, 8.0

M = TypeVar("M", bound=BaseModel)


class Scale(BaseModel):
    """How much of the cluster the service takes: the arguments of ``serve run app.ray:deployment``."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: PositiveInt = Field(1, description="Fewest replicas that answer requests.")
    max_replicas: PositiveInt = Field(4, description="Most of them.")
    target_requests: PositiveInt = Field(8, description="Requests in flight at each that their number aims at.")
    # A replica answers some 4 s after its start, when a shorter burst is over. It then costs little to keep one for a
    # while, and another's worker would have kernels and dictionaries to load again.
    upscale_seconds: NonNegativeFloat = Field(
        5, description="How long more must be in flight before replicas are added."
    )
    downscale_seconds: NonNegativeFloat = Field(
        120, description="How long fewer must be before replicas are taken away."
    )
    fitters: PositiveInt = Field(1, description="Replicas that run fits.")
    cpus: NonNegativeFloat = Field(
        1, allow_inf_nan=False, description="CPUs of each replica; its worker has as many threads."
    )
    gpus: NonNegativeFloat = Field(0, allow_inf_nan=False, description="GPUs of each replica.")

    @field_validator("cpus", "gpus")
    @classmethod
    def _countable(cls, value: float) -> float:
        if value != round(value, 4):
            raise ValueError("Ray counts in ten-thousandths")
        return value

    @model_validator(mode="after")
    def _most_is_not_less(self) -> "Scale":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}")
        return self


def deployment(arguments: dict[str, Any]) -> Application:
    """The service, for Ray Serve to run.

    Args:
        arguments: fields of ``Scale``. Settings are read from the environment of whoever calls this.

    Raises:
        click.ClickException: one of either is bad; Serve's command line tells of it in a line.
    """
    scale, settings = _read(Scale, "argument", arguments), _absolute(_read(Settings, "setting", {}))
    for told in misspelt(os.environ):
        logger.warning(told)
    if not settings.insecure:
        settings = settings.of_local_names
    # For the proxies of a Ray that `serve run` is about to start; those of one that runs have it from their nodes.
    os.environ.setdefault(PROXIES, "app.http.ray_proxy:middlewares")
    common: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        "graceful_shutdown_timeout_s": settings.shutdown_grace_seconds + STOP_SECONDS,
        "logging_config": {"enable_access_log": False},  # ours tells more
    }

    def app() -> ASGIApp:
        logs.configure(settings.log_format, settings.log_level)
        return ReplicaApp(create_app(settings.model_copy(update={"fits": False})))

    front = serve.deployment(
        name="Dictserve",
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_requests,
            "look_back_period_s": LOOK_BACK_SECONDS,
            "upscale_delay_s": scale.upscale_seconds,
            "downscale_delay_s": scale.downscale_seconds,
        },
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=settings.max_connections,
        health_check_period_s=HEALTH_SECONDS,
        **common,
    )(serve.ingress(app)(Dictserve))
    fitter = serve.deployment(name="Fitter", num_replicas=scale.fitters, **common)(Fitter)
    return front.bind(fitter.bind(settings.model_copy(update={"fits": True})))


class Dictserve:
    """A replica that answers requests, by the app that Serve gives it."""

    app: ReplicaApp

    def __init__(self, fitters: DeploymentHandle[Any]) -> None:
        """Nothing is asked of the fitters: Serve runs what is bound to what it runs."""
        self._unasked: asyncio.TimerHandle | None = None

    async def check_health(self) -> None:
        if self._unasked is not None:
            self._unasked.cancel()
        try:
            await _wait_for_worker(self.app.services)
        finally:
            self._unasked = asyncio.get_running_loop().call_later(UNASKED_SECONDS, self._let_go)

    def _let_go(self) -> None:
        """End waits for jobs, which may take hours. Serve does not tell a replica that it is to go before its last
        request has been answered; but it asks no more after its health. Where it only is late, nothing is lost:
        whoever waited asks again."""
        self.app.services.fits.following.let_go()
        self._unasked = asyncio.get_running_loop().call_later(HEALTH_SECONDS, self._let_go)


class Fitter:
    """A replica that runs fits."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.configure(settings.log_format, settings.log_level)
        self._services = Services(settings, Workers(settings))
        await self._services.start()

    async def check_health(self) -> None:
        await _wait_for_worker(self._services)

    async def __del__(self) -> None:
        """What Serve awaits before it ends a replica: the fit under way is left with a checkpoint."""
        await self._services.stop()


async def _wait_for_worker(services: Services) -> None:
    """A replica's health. Serve gives it no requests before the first time that this has returned, and replaces it
    where this fails or hangs several times: until then the workers' supervisors are left to bring one back."""
    try:
        async with asyncio.timeout(services.settings.worker_start_seconds):
            await services.workers.wait_ready()
    except TimeoutError:
        raise WorkerUnavailable("no worker starts") from None


def _absolute(settings: Settings) -> Settings:
    """Paths as they are here: a replica runs in a directory of Ray's."""
    paths = {name: getattr(settings, name) for name in ("store", "data_dir", "tokens_file")}
    absolute: dict[str, object] = {name: path.absolute() for name, path in paths.items() if path is not None}
    if (url := settings.database_url) is not None and url.startswith(SQLITE):
        absolute["database_url"] = f"{SQLITE}{Path(url.removeprefix(SQLITE)).absolute()}"
    return settings.model_copy(update=absolute)


def _read(model: type[M], what: str, told: dict[str, Any]) -> M:
    try:
        return model(**told)
    except (ValidationError, SettingsError) as error:
        raise click.ClickException("; ".join(what_is_wrong(error, what))) from None
