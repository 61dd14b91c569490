"""Encodes, decodes and inferences go straight to their endpoints: matching and preparing a route takes FastAPI longer
than all else that a request of one row needs.

The same endpoints are FastAPI's routes, too: those tell of them in the OpenAPI document, refuse other methods, and
serve an app that is mounted under another path. Both ways make the same answers.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.disconnects import unless_gone
from app.http.problems import TOLD, answer_to
from app.services import Services

_ROUTE = "dictserve.route"  # of an ASGI scope: the route that was answered here
Endpoint = Callable[[Request, Services], Awaitable[Response]]


def route_of(scope: Scope) -> str | None:
    """The pattern of the route that a request was answered by, here or by FastAPI."""
    return scope.get(_ROUTE) or getattr(scope.get("route"), "path", None)


class Direct:
    """Middleware that answers POSTs to these routes itself, and leaves all others to the app."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint], services: Services) -> None:
        self._app = app
        self._endpoints = endpoints
        self._patterns = [(compile_path(route)[0], route) for route in endpoints if "{" in route]
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = self._route(scope) if is_post else None
        if route is None:
            await self._of_app(scope, receive, send)
            return
        scope[_ROUTE] = route
        request = Request(scope, receive, send)
        answering = self._endpoints[route](request, self._services)
        try:
            response = await unless_gone(scope, answering)
        except Exception as error:  # whatever it is, there is a problem that tells of it
            response = answer_to(error).response_to(request)
        await response(scope, receive, send)

    async def _of_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            if TOLD not in scope:  # an answer had begun, and is to be cut off
                raise

    def _route(self, scope: Scope) -> str | None:
        """The route that the path is of, its parameters then in the scope; None where it is none of these."""
        path: str = scope["path"]
        if path in self._endpoints:
            return path
        for pattern, route in self._patterns:
            if (found := pattern.match(path)) is not None:
                scope["path_params"] = found.groupdict()
                return route
        return None
