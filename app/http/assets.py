"""Files for browsers, which come with the service or with a package that is installed: read, compressed and hashed
once, when they are first asked for."""

import gzip
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import brotli
from fastapi import Request, Response

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
BROTLI_QUALITY = 9  # past it a hundredth is gained in ten times the time
DAY = "max-age=86400"  # what a package holds changes with the package alone
ASK = "no-cache"  # kept, but asked about each time: ours and the service are of one version


# Best first. Brotli takes a sixth off what gzip leaves of the charts; browsers ask for it on loopback and over TLS.
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "br": partial(brotli.compress, quality=BROTLI_QUALITY),
    "gzip": partial(gzip.compress, mtime=0),
}


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
        self._kept: dict[str, bytes] = {}  # by encoding

    @cached_property
    def body(self) -> bytes:
        return self._path.read_bytes()

    @cached_property
    def tag(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:32]

    def answer(self, request: Request, headers: Mapping[str, str]) -> Response:
        """The file under these headers, as small as its reader can take it; 304 to whom has it."""
        taken = _taken(request.headers.get("accept-encoding", ""))
        encoding = next((name for name in ENCODINGS if name in taken), "")
        tag = f'"{self.tag}{encoding}"'
        told = {**headers, "ETag": tag, "Cache-Control": self._caching, "Vary": "Accept-Encoding"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=told)
        if encoding:
            told["Content-Encoding"] = encoding
        return Response(self._encoded(encoding), headers=told, media_type=MEDIA_TYPES[self._path.suffix])

    def _encoded(self, encoding: str) -> bytes:
        if not encoding:
            return self.body
        if encoding not in self._kept:
            self._kept[encoding] = ENCODINGS[encoding](self.body)
        return self._kept[encoding]


def assets_in(package: str) -> dict[str, Asset]:
    """Every file of a package that is for browsers, by name."""
    names = [path.name for path in _folder(package).iterdir() if path.suffix in MEDIA_TYPES]
    return {name: Asset(package, name) for name in sorted(names)}


def _taken(header: str) -> set[str]:
    """The encodings that an Accept-Encoding names, but for those that it refuses."""
    told = [part.replace(" ", "").partition(";") for part in header.split(",")]
    return {name for name, _, weight in told if not re.fullmatch(r"q=0(\.0*)?", weight)}


def _folder(package: str) -> Path:
    """Where a package lies, which is not imported for that."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package} is not installed", name=package)
    return Path(spec.submodule_search_locations[0])
