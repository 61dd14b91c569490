"""Compressed bodies: what they hold, and how much is done for those that hold very much, or nothing very often."""

import gzip
import time
import zlib

import pytest

from app.errors import BodyTooLarge, MalformedBody
from app.http.inflate import MAX_MEMBERS, READ_BYTES, inflated

MOST_BYTES = 1_000_000
MOST_CPU_SECONDS = 5.0  # of what takes a tenth of one


def read(body: bytes, coding: str = "gzip") -> bytes:
    return bytes(inflated(bytearray(body), coding, MOST_BYTES, lambda _: None))


@pytest.mark.parametrize("lengths", [(1, 0, 2), (READ_BYTES - 30, 3), (300_000, 5, 300_000)])
def test_a_body_of_several_members_is_read(lengths: tuple[int, ...]) -> None:
    """As `cat a.gz b.gz` makes one; the second of them has members that end about where a piece does."""
    parts = [bytes([i]) * length for i, length in enumerate(lengths)]
    for level in (0, 9):
        assert read(b"".join(gzip.compress(part, level) for part in parts)) == b"".join(parts)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_follows_a_body_and_is_no_member_is_refused(coding: str) -> None:
    body = gzip.compress(b"a") if coding == "gzip" else zlib.compress(b"a")
    for more in (b"x", bytes(91), zlib.compress(b"a"), *([gzip.compress(b"a")] if coding == "deflate" else [])):
        with pytest.raises(MalformedBody, match=f"{len(more)} bytes follow the end of the {coding} body"):
            read(body + more, coding)


def test_a_member_that_is_cut_off_is_refused() -> None:
    for length in (2, 12, 20):
        with pytest.raises(MalformedBody, match="cut off"):
            read(gzip.compress(b"a") + gzip.compress(b"b")[:length])


def test_members_have_one_limit_together() -> None:
    told: list[int] = []
    body = bytearray(gzip.compress(bytes(300_000)) * 1000)
    with pytest.raises(BodyTooLarge):
        inflated(body, "gzip", MOST_BYTES, told.append)
    assert max(told) < 2 * MOST_BYTES


def test_very_many_members_are_refused_soon() -> None:
    """There is nothing in them, so that no limit on what they hold is ever met."""
    body = gzip.compress(b"") * 1_000_000
    begun = time.process_time()
    with pytest.raises(MalformedBody, match=f"more than {MAX_MEMBERS} members"):
        read(body)
    assert time.process_time() - begun < MOST_CPU_SECONDS
    assert read(gzip.compress(b"") * MAX_MEMBERS) == b""
