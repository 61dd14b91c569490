"""Which object store has the dictionaries, as the service and its worker are told of it."""

from typing import Any

import msgspec

CACHE_BYTES = 8 * 1024**3
LISTING_SECONDS: float = 2


class ObjectStore(msgspec.Struct, frozen=True):
    """
    Attributes:
        url: as fsspec reads it, ``s3://bucket/prefix``.
        options: what fsspec's file system is told beside that.
        cache_bytes: of copies on the local disk.
        listing_seconds: for which a list of versions holds: what others publish is seen after that at the latest.
    """

    url: str
    options: dict[str, Any] = {}
    cache_bytes: int = CACHE_BYTES
    listing_seconds: float = LISTING_SECONDS
