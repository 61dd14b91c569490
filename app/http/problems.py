"""Errors as HTTP tells them: problems of RFC 9457, or the Open Inference Protocol's own form; and nothing else."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.errors import INTERNAL, AppError, InvalidFields, Kind, kind_of, shortened
from app.problems import Problem, problem, problem_of
from core.errors import CoreError

logger = logging.getLogger("dictserve")

ALLOWED_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")  # HEAD wherever GET is: app.http.head_method
TOLD = "dictserve.told"  # of an ASGI scope: the problem that is raised has been answered, and logged
FAULTS = {500, 507}  # something of this side is damaged, has failed or is full
PROTOCOL = "/v2"  # where the Open Inference Protocol is spoken

HTTP_KINDS: Mapping[int, Kind] = {
    404: Kind(404, "not-found", "No such resource"),
    405: Kind(405, "method-not-allowed", "The resource does not take this method"),
}


def is_of_protocol(path: str) -> bool:
    return path == PROTOCOL or path.startswith(f"{PROTOCOL}/")


@dataclass
class HttpProblem:
    problem: Problem
    headers: dict[str, str]

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(self.problem)

    def response_to(self, request: Request) -> Response:
        """The problem as it is, or in the Open Inference Protocol's own form to a request of that protocol. Faults of
        this side are logged, for whoever has the answer's request id to look for."""
        if self.problem.status in FAULTS and self.problem.type != INTERNAL.slug:  # which is logged whole already
            logger.error("%s %s: %s: %s", request.method, request.url.path, self.problem.type, self.problem.detail)
        if is_of_protocol(request.scope["path"]):  # by which it is routed, whatever the host is
            body, media_type = msgspec.json.encode({"error": self.problem.detail}), "application/json"
        else:
            body, media_type = self.body, "application/problem+json"
        return Response(body, self.problem.status, self.headers, media_type)


def answer_to(error: Exception) -> HttpProblem:
    """The answer that tells of this exception."""
    own = error.headers if isinstance(error, AppError) else {}
    return HttpProblem(problem_of(error), {**retry_after(kind_of(error)), **own})


def retry_after(kind: Kind) -> dict[str, str]:
    """The header that tells when to ask again, where that is known."""
    return {} if kind.retry_after_seconds is None else {"Retry-After": str(kind.retry_after_seconds)}


def install_handlers(app: FastAPI) -> None:
    """Give every error of every route its problem."""

    async def told_by_table(request: Request, error: Exception) -> Response:
        return answer_to(error).response_to(request)

    async def framework_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - what FastAPI promises for this handler
        return answer_to(InvalidFields.from_pydantic(error)).response_to(request)

    async def framework_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what FastAPI promises for this handler
        kind = HTTP_KINDS.get(error.status_code, Kind(error.status_code, "http-error", "The request failed"))
        detail, headers = f"{error.detail}: {request.method} {request.url.path}", dict(error.headers or {})
        if error.status_code == 405:  # the router names the methods of the first of its routes alone
            headers["Allow"] = ", ".join(_methods_of(request))
            detail += f"; there are {headers['Allow']}"
        elif error.status_code == 404 and is_a_route(request, meant := request.url.path.rstrip("/")):
            detail += f"; there is {meant}"
        return HttpProblem(problem(kind, shortened(detail)), retry_after(kind) | headers).response_to(request)

    async def told_before_it_is_raised(request: Request, error: Exception) -> Response:
        request.scope[TOLD] = True
        return answer_to(error).response_to(request)

    for cls in (AppError, CoreError):
        app.add_exception_handler(cls, told_by_table)
    app.add_exception_handler(RequestValidationError, framework_validation)
    app.add_exception_handler(HTTPException, framework_http)
    app.add_exception_handler(Exception, told_before_it_is_raised)


def _methods_of(request: Request) -> list[str]:
    """The methods that the resource takes."""
    return [method for method in ALLOWED_METHODS if _takes(request, method if method != "HEAD" else "GET")]


def _takes(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


def is_a_route(request: Request, path: str) -> bool:
    """Whether a route has this path, for whatever method."""
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in request.app.routes)
