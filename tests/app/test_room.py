"""Shares of the memory for bodies."""

import pytest

from app.errors import Overloaded
from app.room import FREE_BYTES, RequestOver, Room, Share

MIB = 1024 * 1024


def test_a_share_that_has_ended_holds_nothing_more() -> None:
    """A thread that inflates a body goes on for a while after its client has left."""
    room = Room(4 * MIB)
    share = Share(room)
    share.hold(3 * MIB)
    assert room.held_bytes == 3 * MIB - FREE_BYTES
    share.end()
    for nbytes in (0, 100, 5 * MIB):
        with pytest.raises(RequestOver):
            share.hold(nbytes)
    assert room.held_bytes == 0


def test_what_finds_no_room_is_not_counted() -> None:
    room = Room(4 * MIB)
    first, second = Share(room), Share(room)
    first.hold(3 * MIB)
    with pytest.raises(Overloaded):
        second.hold(2 * MIB)
    second.hold(2 * MIB, anyhow=True)
    first.end()
    second.end()
    assert room.held_bytes == 0
