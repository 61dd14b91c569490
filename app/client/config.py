"""Where the service is and who asks."""

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import httpx

from app import __version__
from app.client.errors import ClientClosed

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = 5
DEFAULT_TIMEOUT_SECONDS = 600.0

# A connection that is idle for longer is not used again. A proxy may close it after 5 s (Apache does), a service that
# has too many after a second; one that is closed while a request is on its way fails a call that is not repeatable.
KEEP_ALIVE_SECONDS = 2.0
MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS = 100, 20
CLOSED = "the client is closed, and calls nobody any more: make another one"


Pool = TypeVar("Pool")


class Pools(Generic[Pool]):
    """The connections of a client: some for calls, and one for each job that is followed, which holds up no call.

    Each process makes its own. A forked one has its parent's sockets, too, on which it would take what the parent
    is answered for its own.

    Args:
        make: from how many connections there may be (None: any number), and how many idle ones are kept.

    Raises:
        ValueError: proxies or certificates that the environment names cannot be used.
    """

    def __init__(self, make: Callable[[httpx.Limits], Pool]) -> None:
        self._make = make
        self._is_closed = False
        self._of_parents: list[Pool] = []  # kept, for what closes them might say so to the service
        self._calls = self._made(MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS)
        self._streams: Pool | None = None
        self._pid = os.getpid()

    @property
    def calls(self) -> Pool:
        """Raises ClientClosed after `closed`."""
        self._look()
        return self._calls

    @property
    def streams(self) -> Pool:
        """Raises ClientClosed after `closed`."""
        self._look()
        if self._streams is None:
            self._streams = self._made(None, 0)
        return self._streams

    def closed(self) -> list[Pool]:
        """Those of this process, to be closed: none is given out from now on."""
        self._is_closed = True
        self._renew_in_child()
        return self._made_so_far()

    def _look(self) -> None:
        if self._is_closed:
            raise ClientClosed(CLOSED)
        self._renew_in_child()

    def _made_so_far(self) -> list[Pool]:
        return [self._calls] if self._streams is None else [self._calls, self._streams]

    def _renew_in_child(self) -> None:
        if self._pid != os.getpid():
            self._of_parents += self._made_so_far()
            self._calls, self._streams = self._made(MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS), None
            self._pid = os.getpid()

    def _made(self, most: int | None, most_idle: int) -> Pool:
        try:
            return self._make(
                httpx.Limits(
                    max_connections=most, max_keepalive_connections=most_idle, keepalive_expiry=KEEP_ALIVE_SECONDS
                )
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            told = "the proxies that the environment names (HTTP_PROXY, NO_PROXY, …) cannot be used"
            raise ValueError(f"{told}: {error}") from None
        except OSError as error:
            raise ValueError(f"the certificates (SSL_CERT_FILE, SSL_CERT_DIR) cannot be read: {error}") from None


def http_options(url: str | None, token: str | None) -> dict[str, Any]:
    """For both of httpx's clients. What is not told comes from DICTSERVE_URL and DICTSERVE_TOKEN.

    Raises:
        ValueError: the URL is none of HTTP, or the token none that a header can hold.
    """
    url = url or os.environ.get("DICTSERVE_URL") or DEFAULT_URL
    token = (token or os.environ.get("DICTSERVE_TOKEN") or "").strip()  # one from a file ends with a line
    try:
        base_url = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if base_url.scheme not in ("http", "https") or not base_url.host:
        raise ValueError(f"{url!r} is not a URL such as {DEFAULT_URL}")
    # Arrays do not get smaller, and the service compresses none.
    headers = {"User-Agent": f"dictserve/{__version__}", "Accept-Encoding": "identity"}
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("the token has characters that tokens do not have")  # no more of it: it is a secret
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return {"base_url": base_url, "headers": headers}


def without_password(url: httpx.URL) -> str:
    return str(url.copy_with(username=None, password=None))
