"""The bodies of all requests that are in memory, bounded together: each by itself may be large, and many are sent at
once.

A request's share is what has come of its body, not what its client says will come: who sends slowly, or nothing,
takes no room from others. Where there is none left for what comes, the request is refused, which makes room for those
that were there before it; so some always come through, and nobody waits for anybody. The beginning of a body is not
counted: connections bound these, and small requests are served however full it is.
"""

import threading

from app.errors import Overloaded

FREE_BYTES = 256 * 1024  # of each request


class Room:
    """What bodies may take.

    Attributes:
        limit_bytes: together, beside the beginning of each.
        held_bytes: that they take now.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._lock = threading.Lock()  # a thread inflates

    def change(self, by: int) -> None:
        """Raises Overloaded where there is no room for so many bytes more."""
        with self._lock:
            if by > 0 and self.held_bytes + by > self.limit_bytes:
                raise Overloaded(
                    f"bodies of {self.held_bytes} bytes are in memory already; send this request again in a moment"
                )
            self.held_bytes += by


class Share:
    """What one request takes of it."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._counted = 0

    def expect(self, nbytes: int) -> None:
        """Raises Overloaded where a body of this length would find no room, were it there now."""
        if nbytes > FREE_BYTES:
            self._room.change(nbytes)
            self._room.change(-nbytes)

    def hold(self, nbytes: int) -> None:
        """Have so many bytes from now on, in place of those before.

        Raises:
            Overloaded: there is no room for them.
        """
        counted = max(0, nbytes - FREE_BYTES)
        if counted != self._counted:
            self._room.change(counted - self._counted)
            self._counted = counted
