"""A request's headers, looked up by name: a search through their list for each name would take longer than all else
that is done with them."""

from collections.abc import Mapping

from starlette.types import Scope

HEADERS = "dictserve.headers"  # of an ASGI scope


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """The headers by name, in lower case; of several of one name the first."""
    known: Mapping[bytes, bytes] | None = scope.get(HEADERS)
    if known is None:
        known = scope[HEADERS] = dict(scope["headers"][::-1])
    return known


def header(scope: Scope, name: bytes) -> str:
    """A header's value, empty where it is absent."""
    return headers_of(scope).get(name, b"").decode("latin-1")
