"""Refuses query parameters that a route does not know, or that come twice: a misspelt filter would filter nothing,
and of two values one would win unseen."""

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from app.errors import InvalidFields, shortened

READS_ITS_OWN = {"POST", "PUT"}  # `app.http.bodies` takes those for fields


def _refuse_unheeded(request: Request) -> None:
    if not request.url.query or request.method in READS_ITS_OWN:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)  # noqa: S101 - what dependencies are of
    known = [parameter.alias for parameter in route.dependant.query_params]
    for name in request.query_params:
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "there are none here"
            raise InvalidFields.at("query", shortened(name), msg=f"unknown parameter; {there_are}")
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidFields.at("query", name, msg="given more than once")


# For a router.
KNOWN_ALONE = [Depends(_refuse_unheeded)]
