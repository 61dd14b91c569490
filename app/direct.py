"""Encodes and decodes go straight to their endpoints: matching and preparing a route takes FastAPI longer than all
else that a request of one row needs.

The same endpoints are FastAPI's routes, too: those tell of them in the OpenAPI document, refuse other methods, and
serve an app that is mounted under another path. Both ways make the same answers.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import EXPECTED, problem_of
from app.services import Services

ROUTE = "dictserve.route"  # of an ASGI scope: the path that was answered here
Endpoint = Callable[[Request, Services], Awaitable[Response]]


class Direct:
    """Middleware that answers POSTs to these paths itself, and leaves all others to the app."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint], services: Services) -> None:
        self._app = app
        self._endpoints = endpoints
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._endpoints.get(scope["path"]) if is_post else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope[ROUTE] = scope["path"]
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request, self._services)
        except EXPECTED as error:
            response = problem_of(error).response_to(request)
        await response(scope, receive, send)
