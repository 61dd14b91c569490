"""Compressed bodies (RFC 9110, gzip and deflate), inflated within a bound: a small body can hold a very large one."""

import zlib
from collections.abc import Callable

from app.errors import BodyTooLarge, MalformedBody

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

CODINGS = frozenset(_WINDOW_BITS)
GZIP_MAGIC = b"\x1f\x8b"
MAX_MEMBERS = 10_000  # of a gzip body: each costs some time, though there may be nothing in it
READ_BYTES = 64 * 1024  # of the body at a time
WRITTEN_BYTES = 1024 * 1024  # of what it holds at a time, at most


def inflated(body: bytearray, coding: str, max_bytes: int, hold: Callable[[int], None]) -> bytearray:
    """What a body of this coding holds.

    Args:
        hold: called with the number of bytes that there are so far.

    Raises:
        BodyTooLarge: it holds more than ``max_bytes``; hardly more than those are inflated.
        MalformedBody: it is not of this coding, is cut off, or more follows its end.
        Whatever ``hold`` raises.
    """
    content, left = bytearray(), memoryview(body)
    for _ in range(MAX_MEMBERS):
        left = _inflate_member(left, coding, content, max_bytes, hold)
        if not left:
            return content
        if coding == "deflate" or left[:2] != GZIP_MAGIC:
            raise MalformedBody(f"{len(left)} bytes follow the end of the {coding} body")
    raise MalformedBody(f"the {coding} body has more than {MAX_MEMBERS} members")


def _inflate_member(
    body: memoryview, coding: str, content: bytearray, max_bytes: int, hold: Callable[[int], None]
) -> memoryview:
    """Add to the content what the body's first member holds (of deflate there is but one); what follows it."""
    stream = zlib.decompressobj(_WINDOW_BITS[coding])
    left, piece = body, memoryview(b"")
    while not stream.eof:
        if not piece:
            piece, left = left[:READ_BYTES], left[READ_BYTES:]
        try:
            inflated = stream.decompress(piece, WRITTEN_BYTES)
        except zlib.error:
            raise MalformedBody(f"Content-Encoding is {coding!r}, but the body is not") from None
        if not piece and not inflated:
            raise MalformedBody(f"the {coding} body is cut off")
        piece = memoryview(stream.unconsumed_tail)
        content += inflated
        hold(len(content))
        if len(content) > max_bytes:
            raise BodyTooLarge(f"a body of this kind may have {max_bytes} bytes; this one inflates to more")
    return body[len(body) - len(stream.unused_data) - len(left) :]
