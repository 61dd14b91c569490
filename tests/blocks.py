"""The fenced blocks of README.md, CHANGELOG.md and docs/."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Attributes:
        line: of its first line in the page.
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = [Block(page, text.count("\n", 0, m.start()) + 2, m[2].strip(), m[3]) for m in _FENCED.finditer(text)]
    assert not re.search(r"\n\n {4,}\S", _FENCED.sub("", text)), f"{page}: a block by its indent; fence it"
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE)), f"{page}: a fence that is not closed"
    return found
