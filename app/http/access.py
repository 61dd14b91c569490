"""Who may do what: with a tokens file set, everything but the probes, and the pages' own files, which hold no data,
needs a token of the right scope."""

from collections.abc import Mapping

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import AppError, Forbidden, Unauthorized
from app.http.problems import PROTOCOL, answer_to, is_a_route, is_of_protocol
from app.http.tokens import READ, WRITE, Caller, TokenFile

PROBES = {"/livez", "/readyz", f"{PROTOCOL}/health/live", f"{PROTOCOL}/health/ready"}
WATCHING = PROBES | {"/metrics"}  # asked every few seconds by what watches the service
PAGES, PAGE_FILES = {"/", "/docs", "/openapi.json"}, ("/page/", "/docs/")
READING = {"/encode", "/decode"}  # POST, but nothing is changed
CALLER = "dictserve.caller"  # of an ASGI scope


class Access:
    """Middleware that lets through who may, and refuses the rest before anything of the request is read."""

    def __init__(self, app: ASGIApp, tokens: TokenFile, metrics_open: bool) -> None:
        self._app = app
        self._tokens = tokens
        self._open = WATCHING if metrics_open else PROBES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["method"], scope["path"]):
            request = Request(scope)
            try:
                scope[CALLER] = self._admitted(request)
            except AppError as error:
                await answer_to(error).response_to(request)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, method: str, path: str) -> bool:
        is_page = method in ("GET", "HEAD") and (path in PAGES or path.startswith(PAGE_FILES))
        return path in self._open or is_page

    def _admitted(self, request: Request) -> Caller:
        token = _token(request.headers)
        if token is None:
            raise Unauthorized("this needs a token: send it as `Authorization: Bearer …` or as `X-API-Key: …`")
        caller = self._tokens.find(token)
        if caller is None:
            raise Unauthorized("this token is not known here", 'Bearer error="invalid_token"')
        path = request.scope["path"]  # by which it is routed, whatever the host is
        scope = _scope_of(request.method, path)
        if scope not in caller.scopes and is_a_route(request, path):  # a path of none is told as such
            told = f"this needs a token of scope {scope}; the one of {caller.name} does not have it"
            raise Forbidden(told, f'Bearer error="insufficient_scope", scope="{scope}"')
        caller.take("requests_per_minute", 1)
        return caller


def take_rows(request: Request, count: int) -> None:
    """Count a request's rows against the limit of its caller, where there is one.

    Raises:
        RateLimited: it is used up for now.
    """
    caller = request.scope.get(CALLER)
    if caller is not None:
        caller.take("rows_per_minute", count)


def _token(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")


def _scope_of(method: str, path: str) -> str:
    is_reading = method in ("GET", "HEAD", "OPTIONS") or path in READING or is_of_protocol(path)
    return READ if is_reading else WRITE
