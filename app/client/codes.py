"""Codes as an encode answers with them, to be decoded: that may be several arrays, and the service takes one."""

import os

from app.client.answers import NO_ARRAY, dense
from app.client.bodies import MEDIA_TYPES, Body, body_of, npy_body


def codes_body(Z: object) -> Body:
    """As ``body_of``, of codes: of safetensors also compressed rows, and codes beside the relative errors of rows.

    Raises:
        ValueError: they cannot be read.
    """
    body = body_of(Z)
    if body.content_type != MEDIA_TYPES["safetensors"]:
        return body
    start = bytes(next(iter(body.chunks()), b""))  # which has the whole header, if an encode has made it
    header = start[8 : 8 + int.from_bytes(start[:8], "little")]
    if not (b'"indptr"' in header or (b'"codes"' in header and b'"relative_error"' in header)):
        return body  # one array, as it lies
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(b"".join(body.chunks()))
        return npy_body(tensors["codes"] if "codes" in tensors else dense(tensors))
    except (SafetensorError, *NO_ARRAY) as error:
        told = f"{Z}: " if isinstance(Z, str | os.PathLike) else ""
        raise ValueError(f"{told}the codes cannot be read: {error}") from None
