"""Pages of other sites, which a browser lets send requests anywhere: refused where no token keeps them out.

A form or a script of such a page may POST to whatever address this machine reaches, and would begin fits; browsers
tell of that by `Sec-Fetch-Site` or, older ones and on plain HTTP, by `Origin`. And whoever owns a name may have it
lead to this machine once the page is there (DNS rebinding); it then reads and changes all as the service's own page
would, and nothing but the name in `Host` tells. No other client sends the first two, and addresses and names that
nobody can register are safe.
"""

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Forbidden
from app.http.headers import header, headers_of
from app.http.problems import answer_to

LOCAL = (".localhost", ".local", ".internal")  # ends of names that are no domain's
PORTS = {"http": 80, "https": 443}  # of URLs, and origins, that name none
CHANGING_NOTHING = {"GET", "HEAD", "OPTIONS"}


class OwnSite:
    """Middleware that refuses requests of other sites' pages.

    Args:
        needs_tokens: which no other site's page has, so that it may send what it likes.
        hosts: names that the service answers to, beside addresses and local names; any where there are none.
    """

    def __init__(self, app: ASGIApp, *, needs_tokens: bool, hosts: frozenset[str]) -> None:
        self._app = app
        self._needs_tokens = needs_tokens
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (told := self._fault(scope)):
            await answer_to(Forbidden(told)).response_to(Request(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> str:
        if self._hosts and not _is_known(header(scope, b"host"), self._hosts):
            return (
                f"this service is not known as {header(scope, b'host')[:100]!r}; ask it by its address, or have it "
                "answer to that name (DICTSERVE_ALLOWED_HOSTS)"
            )
        if self._needs_tokens or scope["method"] in CHANGING_NOTHING or not _is_of_another(scope, self._hosts):
            return ""
        return (
            "this request comes from a page of another site; if that page is the service's own, behind a proxy, have "
            "the proxy pass on its name (Host or X-Forwarded-Host, or DICTSERVE_ALLOWED_HOSTS), else set up tokens"
        )


def _is_of_another(scope: Scope, hosts: frozenset[str]) -> bool:
    headers = headers_of(scope)
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    if b"origin" not in headers:
        return False
    scheme, _, place = header(scope, b"origin").partition("://")
    origin = _place(place, scheme)
    if origin is None:
        return True
    # Where a proxy asks, its own name may be in the second; of several proxies, each's.
    told = [header(scope, b"host"), *header(scope, b"x-forwarded-host").split(",")]
    if any(_place(host, scheme) == origin for host in told):
        return False
    name, port = origin  # names of this machine have other ports of others
    return name == "localhost" or name not in hosts or port != PORTS.get(scheme)


def _place(host: str, scheme: str) -> tuple[str, int | None] | None:
    """Name and port, the scheme's own where none is told; None for what is no host."""
    try:
        name, port = _name(host), urlsplit(f"//{host.strip()}").port
    except ValueError:
        return None
    return (name, port or PORTS.get(scheme)) if name else None


def _name(host: str) -> str:
    """Of a host, without its port; ValueError where it has brackets without an address."""
    return (urlsplit(f"//{host.strip()}").hostname or "").rstrip(".")


@lru_cache(maxsize=64)  # a client's requests have the same
def _is_known(host: str, hosts: frozenset[str]) -> bool:
    try:
        name = _name(host)
    except ValueError:
        return False
    if "." not in name or name.endswith(LOCAL) or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def hosts_of(setting: str) -> frozenset[str]:
    """The names of the setting, whose ports do not matter."""
    return frozenset(filter(None, map(_name, setting.split(","))))
