"""A request's headers, looked up by name: a search through their list for each name would take longer than all else
that is done with them."""

from collections.abc import Mapping

from starlette.types import Scope

HEADERS = "dictserve.headers"  # of an ASGI scope
# These may come in several lines, which are one.
LISTS = (b"accept", b"accept-encoding", b"if-match", b"if-none-match", b"prefer")


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """The headers by name, in lower case; of several of one name the first, unless they are lists. Whoever reads the
    scope's own list later finds lists in one, too."""
    known: Mapping[bytes, bytes] | None = scope.get(HEADERS)
    if known is None:
        given = scope["headers"]
        known = dict(given[::-1])
        if len(known) < len(given):
            joined = {name: b", ".join(value for of, value in given if of == name) for name in LISTS if name in known}
            scope["headers"] = [(name, value) for name, value in given if name not in joined] + list(joined.items())
            known |= joined
        scope[HEADERS] = known
    return known


def header(scope: Scope, name: bytes) -> str:
    """A header's value, empty where it is absent."""
    return headers_of(scope).get(name, b"").decode("latin-1")
