"""What others have written, for a terminal."""

import re

# What moves a terminal's cursor, or sets its title: a label, or a page in the service's place, is not to do that.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """It gives the terminal no orders: they are to be seen, as ``\\x1b``."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
