"""The HTTP app and its life."""

import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from app import __version__
from app.http.access import Access
from app.http.cross_site import OwnSite, hosts_of
from app.http.direct import Direct
from app.http.head_method import HeadAsGet
from app.http.observed import Observed
from app.http.problems import install_handlers
from app.http.shares import Shares
from app.http.tokens import TokenFile
from app.metrics import Metrics
from app.routes import compare, concepts, decode, dictionaries, encode, fit, health, inference, jobs, pages
from app.routes.openapi import document
from app.services import Services
from app.settings import Settings
from app.supervisor import Supervisor
from app.tracing import tracing
from app.worker.launch import Launched
from app.workers import Workers

DESCRIPTION = """
Neural-network activations into concepts, as a service. A dictionary of concepts D is learned from non-negative
activations A by non-negative matrix factorisation, A ≈ Z·D, with non-negative codes Z.
"""

# Figures, logs and spans are our own; FastAPI's would look at every request whether OpenTelemetry is set up.
UNTOLD: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}


def create_app(
    settings: Settings | None = None,
    *,
    worker: Launched | None = None,
    supervisor: Supervisor | Sequence[Supervisor] | None = None,
) -> FastAPI:
    """The app; nothing is opened or started before its lifespan begins.

    Args:
        settings: read from the environment where absent.
        worker: the first worker's process, where it has been launched already.
        supervisor: takes the place of the real workers' (tests).
    """
    settings = settings or Settings()
    traces = tracing()
    supervisors = [supervisor] if isinstance(supervisor, Supervisor) else supervisor or ()
    services = Services(settings, Workers(settings, supervisors, worker), traces)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await services.start()
        gc.freeze()  # what is there now stays: a collection that looked through it would hold requests up
        try:
            yield
        finally:
            gc.unfreeze()
            await services.stop()

    app = FastAPI(
        title="dictserve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere: ours is in app.routes.pages
        redoc_url=None,
        redirect_slashes=False,  # to a place that is made of the Host header, where a POST would be sent again
        telemetry=UNTOLD,
    )
    app.state.services = services
    install_handlers(app)
    for module in (fit, jobs, encode, decode, dictionaries, concepts, compare, health, inference, pages):
        # as they are: included, they would be made anew for each app by its first requests, which waited for that
        app.router.routes.extend(module.router.routes)
    routes = (route for route in app.router.routes if isinstance(route, APIRoute))
    app.state.metrics = Metrics(
        services, [(method, route.path) for route in routes for method in route.methods or ()]
    )
    tokens = None if settings.tokens_file is None else TokenFile(settings.tokens_file)
    frameworks_stack = app.build_middleware_stack

    def stack() -> ASGIApp:
        """Ours lies around the framework's, which what is answered directly has no use for."""
        endpoints = {"/encode": encode.encode, "/decode": decode.decode}
        endpoints |= dict.fromkeys(inference.INFER_ROUTES, inference.infer)
        inner: ASGIApp = HeadAsGet(Direct(frameworks_stack(), endpoints, services))
        inner = Shares(inner, services.bodies, services.answers)
        if tokens is not None:
            inner = Access(inner, tokens, settings.metrics_open)
        inner = OwnSite(inner, needs_tokens=tokens is not None, hosts=hosts_of(settings.allowed_hosts))
        inner = Observed(inner, app.state.metrics, settings.access_log)
        return inner if traces is None else traces.around(inner)

    app.build_middleware_stack = stack  # type: ignore[method-assign]
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return app
