"""Compressed bodies (RFC 9110, gzip and deflate), inflated within a bound: a small body can hold a very large one."""

import zlib

from app.errors import BodyTooLarge, MalformedBody

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

CODINGS = frozenset(_WINDOW_BITS)


def inflated(body: bytearray, coding: str, max_bytes: int) -> bytes:
    """What a body of this coding holds.

    Raises:
        BodyTooLarge: it holds more than ``max_bytes``; no more than those are inflated.
        MalformedBody: it is not of this coding, is cut off, or more follows its end.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        raise MalformedBody(f"Content-Encoding is {coding!r}, but the body is not") from None
    if len(content) > max_bytes:
        raise BodyTooLarge(f"a body of this kind may have {max_bytes} bytes; this one inflates to more")
    if not stream.eof:
        raise MalformedBody(f"the {coding} body is cut off")
    if stream.unused_data:
        raise MalformedBody(f"{len(stream.unused_data)} bytes follow the end of the {coding} body")
    return content
