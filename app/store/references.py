"""What dictionaries are called: names, versions, and references to either."""

import re
from dataclasses import dataclass

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")


def check_name(name: str) -> str:
    """A dictionary's name, or ValueError with what would be right."""
    if NAME.fullmatch(name) is None or name.endswith("."):
        raise ValueError(
            f"{name[:60]!r} is not a name: 1 to 128 letters, digits, `.`, `_` or `-`, "
            "the first a letter or digit, the last no dot"
        )
    return name


@dataclass(frozen=True)
class Reference:
    """``name`` (the latest version) or ``name@version``, as clients write it."""

    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        name, at, version = text.partition("@")
        check_name(name)
        if not at:
            return cls(name)
        if VERSION.fullmatch(version) is None:
            raise ValueError(f"{version[:20]!r} is not a version: a whole number from 1, as in `{name}@3`")
        return cls(name, int(version))

    @property
    def pinned(self) -> tuple[str, int]:
        """Name and version of one that has a version. Raises ValueError for another."""
        if self.version is None:
            raise ValueError(f"{self.name!r} may mean any version")
        return self.name, self.version

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"
