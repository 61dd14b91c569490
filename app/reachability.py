"""Whether something on a network answers: while it does not, one thread asks again, and nobody else waits."""

import logging
import socket
import threading
from collections.abc import Callable

from app.errors import AppError

logger = logging.getLogger("dictserve")

ASK_SECONDS = 1.0  # between two times that it is asked for
SILENT_SECONDS = 5.0  # in which the other machine acknowledges nothing that it was sent, after which it is given up


def give_up_in_time(connection: socket.socket) -> socket.socket:
    """A network that swallows what is sent is told from a server that takes its time: Linux goes on for a quarter of
    an hour where nobody says otherwise."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENT_SECONDS))
    return connection


class Reachability:
    """
    Args:
        what: is asked, for the log.
        ask: something small of it; raises whatever it does while there is no answer.
    """

    def __init__(self, what: str, ask: Callable[[], object]) -> None:
        self._what = what
        self._ask = ask
        self._guard = threading.Lock()
        self._lost: AppError | None = None
        self._closed = threading.Event()

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last asked."""
        return self._lost is None

    def require_up(self) -> None:
        """Raises what it was lost with, until it has answered again."""
        if (lost := self._lost) is not None:
            raise type(lost)(str(lost))  # another: each has where it was raised

    def lose(self, error: AppError, cause: object = None) -> None:
        """It did not answer. ``cause`` is for the log alone."""
        with self._guard:
            if self._lost is not None:
                return
            self._lost = error
        logger.error("%s", error if cause is None else f"{error}: {cause}")
        threading.Thread(target=self._await_answer, name=f"reach {self._what}", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()

    def _await_answer(self) -> None:
        while not self._closed.is_set():
            try:
                self._ask()
            except Exception:  # of the many kinds that there are; the first was told
                self._closed.wait(ASK_SECONDS)
            else:
                break
        with self._guard:
            self._lost = None
        if not self._closed.is_set():
            logger.warning("%s answers again", self._what)
