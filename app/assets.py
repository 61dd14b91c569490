"""Files for browsers, which come with the service or with a package that is installed: read, compressed and hashed
once, when they are first asked for."""

import gzip
import hashlib
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from fastapi import Request, Response

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
DAY = "max-age=86400"  # what a package holds changes with the package alone
ASK = "no-cache"  # kept, but asked about each time: ours and the service are of one version


class Asset:
    """One file.

    Args:
        package: that holds it.
        path: inside of that.
        caching: its Cache-Control.
    """

    def __init__(self, package: str, path: str, caching: str = ASK) -> None:
        self._path = _folder(package) / path
        self._caching = caching

    @cached_property
    def body(self) -> bytes:
        return self._path.read_bytes()

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.body, mtime=0)

    @cached_property
    def tag(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:32]

    def answer(self, request: Request, headers: dict[str, str]) -> Response:
        """The file under these headers, compressed for whom reads that; 304 to whom has it."""
        takes_gzip = "gzip" in request.headers.get("accept-encoding", "")
        tag = f'"{self.tag}-gzip"' if takes_gzip else f'"{self.tag}"'
        told = headers | {"ETag": tag, "Cache-Control": self._caching, "Vary": "Accept-Encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=told)
        if takes_gzip:
            told["Content-Encoding"] = "gzip"
        return Response(
            self.compressed if takes_gzip else self.body, headers=told, media_type=MEDIA_TYPES[self._path.suffix]
        )


def assets_in(package: str) -> dict[str, Asset]:
    """Every file of a package that is for browsers, by name."""
    names = [path.name for path in _folder(package).iterdir() if path.suffix in MEDIA_TYPES]
    return {name: Asset(package, name) for name in sorted(names)}


def _folder(package: str) -> Path:
    """Where a package lies, which is not imported for that."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package} is not installed", name=package)
    return Path(spec.submodule_search_locations[0])
