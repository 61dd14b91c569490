"""What is in memory of all requests' bodies is bounded together, and so is what is there of their answers: each by
itself may be large, and many are sent, or read slowly, at once.

A request's share is what has come of its body, not what its client says will come: who sends slowly, or nothing,
takes no room from others. Where there is none left for what comes, the request is refused, which makes room for those
that were there before it; so some always come through, and nobody waits for anybody. The beginning of a body is not
counted: connections bound these, and small requests are served however full it is.
"""

import threading

from app.errors import Overloaded

FREE_BYTES = 256 * 1024  # of each body


class MemoryBudget:
    """What bodies of requests may take, or those of answers.

    Attributes:
        limit_bytes: together, beside the beginning of each.
        held_bytes: that they take now.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.lock = threading.Lock()  # a thread inflates

    def expect(self, nbytes: int) -> None:
        """Raises Overloaded where a body of this length would not fit. One larger than the whole limit may come where
        nothing else is held."""
        if nbytes > FREE_BYTES and self.held_bytes and self.held_bytes + nbytes > self.limit_bytes:
            raise self._full()

    def change(self, by: int, *, anyhow: bool = False, alone: bool = False) -> None:
        """Hold so many bytes more; the caller has the lock. Raises Overloaded where they do not fit, unless they are
        held ``anyhow`` (they exist already), or may be of any size where they are ``alone``."""
        has_room = self.held_bytes + by <= self.limit_bytes or (alone and not self.held_bytes)
        if by > 0 and not has_room and not anyhow:
            raise self._full()
        self.held_bytes += by

    def _full(self) -> Overloaded:
        return Overloaded(
            f"bodies of {self.held_bytes} bytes are in memory already; send this request again in a moment"
        )


class RequestOver(Exception):
    """Of what goes on in a thread for a request that has ended, as its client has left: it is to end, too."""


class Share:
    """What one request takes of it."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._counted = 0
        self._is_over = False

    def expect(self, nbytes: int) -> None:
        self._budget.expect(nbytes)

    def hold(self, nbytes: int, *, anyhow: bool = False, alone: bool = False) -> None:
        """Have so many bytes from now on, in place of those before.

        Raises:
            Overloaded: there is no room for them, and they are neither there ``anyhow`` nor may come where they are
                ``alone``, however many they are.
            RequestOver: it has `end`ed.
        """
        counted = max(0, nbytes - FREE_BYTES)
        if counted == self._counted and not self._is_over:
            return
        with self._budget.lock:
            if self._is_over:
                raise RequestOver
            self._budget.change(counted - self._counted, anyhow=anyhow, alone=alone)
            self._counted = counted

    def end(self) -> None:
        """Give all back, for good."""
        with self._budget.lock:
            self._is_over = True
            self._budget.change(-self._counted)
            self._counted = 0
