"""Where the service is and who asks."""

import os
from typing import Any

import httpx

from app import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = 5
DEFAULT_TIMEOUT_SECONDS = 600.0

# A connection that is idle for longer is not used again. A proxy may close it after 5 s (Apache does), a service that
# has too many after a second; one that is closed while a request is on its way fails a call that is not repeatable.
KEEP_ALIVE_SECONDS = 2.0
MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS = 100, 20


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
    headers = {"User-Agent": f"dictserve/{__version__}"}
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("the token has characters that tokens do not have")  # no more of it: it is a secret
    if token:
        headers["Authorization"] = f"Bearer {token}"
    limits = httpx.Limits(
        max_connections=MAX_CONNECTIONS,
        max_keepalive_connections=MAX_IDLE_CONNECTIONS,
        keepalive_expiry=KEEP_ALIVE_SECONDS,
    )
    return {"base_url": base_url, "headers": headers, "limits": limits}
