"""What fails again and again, in the log: that it has begun, what else is wrong since, and that it is over."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import JobsUnavailable, StoreUnavailable

logger = logging.getLogger("dictserve")

_NUMBER = re.compile(r"\d+")


class Outage:
    """
    Args:
        what: cannot be done while it lasts, as the log says it.
    """

    def __init__(self, what: str, level: int = logging.ERROR) -> None:
        self._what = what
        self._level = level
        self._told: str | None = None
        self._begun = 0.0

    @property
    def lasts(self) -> bool:
        return self._told is not None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Something that is done again and again, and is to go on whatever fails."""
        try:
            yield
        except (JobsUnavailable, StoreUnavailable) as error:
            self.note(error)
        except Exception as error:
            self.note(error, is_expected=False)
        else:
            self.end()

    def note(self, error: Exception, *, is_expected: bool = True) -> None:
        """It has failed (again). The same words with other numbers, of the bytes that are free say, are nothing new;
        what nobody expects is told with where it was raised."""
        if self._told is None:
            self._begun = time.monotonic()
        if self._told != (told := _NUMBER.sub("", repr(error))):
            self._told = told
            logger.log(self._level, "%s: %s", self._what, error, exc_info=None if is_expected else error)

    def end(self) -> None:
        """It has not failed."""
        if self._told is not None:
            self._told = None
            logger.warning("over after %.0f s: %s", time.monotonic() - self._begun, self._what)
