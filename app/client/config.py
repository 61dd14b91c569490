"""Where the service is and who asks."""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx

from app import __version__
from app.client.errors import ClientClosed
from app.client.patience import Sockets

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = 5
DEFAULT_TIMEOUT_SECONDS = 600.0

# A connection that is idle for longer is not used again. A proxy may close it after 5 s (Apache does), a service that
# has too many after a second; one that is closed while a request is on its way fails a call that is not repeatable.
KEEP_ALIVE_SECONDS = 2.0
MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS = 100, 20
CLOSED = "the client is closed, and calls nobody any more: make another one"

Pool = TypeVar("Pool", httpx.Client, httpx.AsyncClient)


class Closable:
    """What calls go through until it is closed."""

    _is_closed = False

    def refuse_closed(self) -> None:
        """Raises ClientClosed."""
        if self._is_closed:
            raise ClientClosed(CLOSED)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around what goes through it.

        Raises:
            ClientClosed: it was closed meanwhile, whatever came of that.
        """
        try:
            yield
        except Exception:
            self.refuse_closed()
            raise


class Pools(Closable):
    """The connections of a `Client`: some for calls, and one for each job that is followed, which holds up no call.

    Each process makes its own. A forked one has its parent's sockets, too, on which it would take what the parent
    is answered for its own.

    Args:
        options: of httpx's clients.

    Raises:
        ValueError: proxies that the environment names cannot be used.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._streams: httpx.Client | None = None
        self._of_parents: list[httpx.Client] = []  # inherited, never closed: that could end a TLS session of theirs
        self._make()

    @property
    def calls(self) -> httpx.Client:
        """Raises ClientClosed after `close`."""
        self._look()
        return self._calls

    @property
    def streams(self) -> httpx.Client:
        """Raises ClientClosed after `close`."""
        self._look()
        if self._streams is None:
            self._streams = made(httpx.Client, self._options, None, 0)
        return self._streams

    @property
    def extensions(self) -> dict[str, Any]:
        """Of each request."""
        return {"trace": self._sockets.trace}

    def close(self) -> None:
        """Those of this process. Threads that wait for an answer are woken: closing alone does not do that."""
        self._is_closed = True
        self._renew_in_child()
        self._sockets.shut_down()
        for pool in self._made_so_far():
            pool.close()

    def _look(self) -> None:
        self.refuse_closed()
        self._renew_in_child()

    def _made_so_far(self) -> list[httpx.Client]:
        return [self._calls] if self._streams is None else [self._calls, self._streams]

    def _renew_in_child(self) -> None:
        if self._pid != os.getpid():
            self._of_parents += self._made_so_far()
            self._make()

    def _make(self) -> None:
        self._calls = made(httpx.Client, self._options, MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS)
        self._streams = None
        self._sockets = Sockets()
        self._pid = os.getpid()


def made(make: Callable[..., Pool], options: Mapping[str, Any], most: int | None, most_idle: int) -> Pool:
    """One of httpx's clients.

    Args:
        most: connections that there may be (None: any number),
        most_idle: and that are kept while they are idle.

    Raises:
        ValueError: proxies that the environment names cannot be used.
    """
    limits = httpx.Limits(
        max_connections=most, max_keepalive_connections=most_idle, keepalive_expiry=KEEP_ALIVE_SECONDS
    )
    try:
        return make(**options, limits=limits)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        told = "the proxies that the environment names (HTTP_PROXY, NO_PROXY, …) cannot be used"
        raise ValueError(f"{told}: {error}") from None


def http_options(url: str | None, token: str | None, transport: object) -> dict[str, Any]:
    """For both of httpx's clients. What is not told comes from DICTSERVE_URL and DICTSERVE_TOKEN.

    Raises:
        ValueError: the URL is none of HTTP, the token none that a header can hold, or the certificates that the
            environment names cannot be used.
    """
    url = url or os.environ.get("DICTSERVE_URL") or DEFAULT_URL
    token = (token or os.environ.get("DICTSERVE_TOKEN") or "").strip()  # one from a file ends with a line
    try:
        base_url = httpx.URL(url)
        host = base_url.host
        base_url.raw_host.decode().encode("idna")  # as it will be looked up: no label of it empty, or too long
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if base_url.scheme not in ("http", "https") or not host or base_url.query or base_url.fragment:
        raise ValueError(f"{url!r} is not a URL such as {DEFAULT_URL}, without a query or a fragment")
    # Arrays do not get smaller, and the service compresses none.
    headers = {"User-Agent": f"dictserve/{__version__}", "Accept-Encoding": "identity"}
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("the token has characters that tokens do not have")  # no more of it: it is a secret
    if token and base_url.userinfo:  # httpx would send the password, and not the token
        raise ValueError("the URL has a user and a password, and there is a token: a call can have one of the two")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    options = {"base_url": base_url, "headers": headers, "transport": transport}
    return options if transport is not None else options | {"verify": _certificates()}


def _certificates() -> ssl.SSLContext:
    """For all connections of a client: reading them takes tens of milliseconds."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise ValueError(f"the certificates (SSL_CERT_FILE, SSL_CERT_DIR) cannot be read: {error}") from None


def place_of(options: Mapping[str, Any]) -> str:
    """Where the service is, for messages, and what stands before it."""
    url: httpx.URL = options["base_url"]
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    is_near = proxy_bypass(url.host) or proxy_bypass(url.netloc.decode())  # NO_PROXY may tell a port, too
    if options["transport"] is not None or not proxy or is_near:
        return _without_password(url)
    told = _without_password(httpx.URL(proxy if "://" in proxy else f"http://{proxy}"))
    return f"{_without_password(url)} through the proxy {told} (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)"


def _without_password(url: httpx.URL) -> str:
    return str(url.copy_with(username=None, password=None))
